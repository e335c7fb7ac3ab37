"""Output rules of a layer, read off its reference: the reference runs once on symbolic sizes, nobody writes a rule.

The front half and the Torch side of a layer import it.  `sizes.output_rules` holds the override for what
cannot be derived.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from layerport.errors import BuildError, LayerportError, UsageError
from layerport.foreign import torch_private
from layerport.foreign.torch_modules import EXPORT_LOGGERS
from layerport.layers.derivation_reading import Reading, check_deterministic, size_override
from layerport.parameters.frameworks.torch_dtypes import from_dtype
from layerport.sizes.expressions import Expr
from layerport.sizes.output_rules import RuleAnswer, SizeSymbol, from_rule
from layerport.sizes.tensors import TensorType

__all__ = ["Derivation", "RuleAnswer", "SizeSymbol", "TensorType", "derive", "from_rule"]

_PRIMES = (1, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59)


@dataclass(frozen=True, eq=False)
class Derivation:
    """What a reference says about its outputs, in terms of its inputs' sizes ("x.0" is axis 0 of argument x).

    outputs: dtype and dims of each output.
    size_symbols: the sizes u0, u1, ... in them that depend on data, each with its upper bound.
    equalities: pairs of dims that the reference needs equal beyond those named alike; the rules use the first.
    fixed: dims given as dynamic that the rules hold for at one size only: a weight's size demands it, or the reference
    made an int of the dim, and then the size is just the example's.
    constraints: conditions (expressions of value 0 or 1) under which the rules hold, because the reference branched
    on them; empty for most.  They can be stricter than the reference itself: Torch rules out size 1 here and there.
    unread: such conditions in Torch's words, of a reference with a written rule, that are no size expressions.
    program: the exported reference, with the tensors in their order as inputs.
    body: the reference as a module of these tensors.  example: the shapes and example sizes it was exported with.
    """

    outputs: tuple[TensorType, ...]
    size_symbols: tuple[SizeSymbol, ...]
    equalities: tuple[tuple[str, str], ...]
    fixed: Mapping[str, int]
    constraints: tuple[Expr, ...]
    unread: tuple[str, ...]
    program: ExportedProgram
    body: torch.nn.Module
    example: tuple[Mapping[str, TensorType], Mapping[str, int]]


def derive(
    reference: Callable[..., Any],
    tensors: Mapping[str, TensorType | None],
    attributes: Mapping[str, Any],
    *,
    layer: str,
    hint: Mapping[str, int] | None = None,
    rule: Callable[..., Any] | None = None,
) -> Derivation:
    """The output rules of `reference` for inputs of these shapes.

    reference: a function of Torch tensors; it is called with `tensors` and `attributes` by name and never sees data.
    tensors: None stands for an optional tensor that is absent.
    hint: example sizes by the dim's name or place ("batch", "x.1"), for a reference that branches on sizes or works
    with some only; others are chosen, and chosen anew where the reference rejects them.  0 and 1 are not used as
    examples, because Torch would take them for constants.
    rule: the author's own output rule (`shape_rule`), which is then taken at its word.

    Raises UsageError that names layer, output and expression for what is not whole-number arithmetic or depends on
    data in the reference's control flow, BuildError where the reference fails on every choice of example sizes.
    """
    present = {name: shape for name, shape in tensors.items() if shape is not None}
    absent = dict.fromkeys(name for name, shape in tensors.items() if shape is None)
    wrapper = _Wrapper(reference, tuple(present), {**absent, **attributes}, layer)
    failures: list[str] = []
    last: Exception | None = None
    for sizes in _example_sizes(present, hint or {}):
        try:
            program = _export(wrapper, present, sizes)
        except LayerportError:
            raise
        except torch_private.GuardOnDataDependentSymNode as error:
            raise UsageError(
                f"{layer}: the reference decides by its data: {str(error).splitlines()[0]}",
                f"write it without branches or sizes taken from data (torch.where), or {size_override(layer)}",
            ) from error
        except Exception as error:
            shapes = ", ".join(f"{name}={_shape_text(shape, sizes)}" for name, shape in present.items())
            failures.append(f"{shapes}: {type(error).__name__}: {_first_line(error)}")
            last = error
        else:
            check_deterministic(program, layer)
            answer = None if rule is None else from_rule(rule, tensors, attributes, layer)
            reading = Reading(program, present, layer, strict=answer is None)
            return Derivation(
                reading.outputs if answer is None else answer.outputs,
                reading.size_symbols if answer is None else answer.size_symbols,
                reading.equalities,
                reading.fixed,
                reading.constraints(),
                tuple(reading.unread),
                program,
                wrapper,
                (present, sizes),
            )
    raise BuildError(
        f"{layer}: the reference does not run on symbolic sizes{_with_lists(attributes)}",
        f"give example sizes that it works with (hint={{'x.0': 8}}), or {size_override(layer)}",
        faults=failures,
    ) from last


def _with_lists(attributes: Mapping[str, Any]) -> str:
    """The attributes that may have a wrong length, for messages."""
    lists = [f"{name}={list(value)}" for name, value in attributes.items() if isinstance(value, (tuple, list))]
    return f" with {', '.join(lists)} (is that as many values as it takes?)" if lists else ""


def export_together(derivations: Sequence[Derivation]) -> ExportedProgram:
    """One program of several references side by side: the tensors of all as inputs, the outputs of all as outputs."""
    tensors: dict[str, TensorType] = {}
    sizes: dict[str, int] = {}
    for place, derivation in enumerate(derivations):
        shapes, example = derivation.example
        tensors |= {f"b{place}_{name}": replace(one, name=f"b{place}_{name}") for name, one in shapes.items()}
        sizes |= {f"b{place}_{name}": size for name, size in example.items()}
    return _export(_Together(derivations), tensors, sizes)


class _Together(torch.nn.Module):
    def __init__(self, derivations: Sequence[Derivation]) -> None:
        super().__init__()
        self._parts = [(derivation.body, len(derivation.example[0])) for derivation in derivations]

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs: list[torch.Tensor] = []
        start = 0
        for body, count in self._parts:
            outputs += body(*tensors[start : start + count])
            start += count
        return tuple(outputs)


class _Wrapper(torch.nn.Module):
    def __init__(
        self, reference: Callable[..., Any], names: tuple[str, ...], constants: Mapping[str, Any], layer: str
    ) -> None:
        super().__init__()
        self._reference = reference
        self._names = names
        self._constants = constants
        self._layer = layer

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        version = torch_private.versions()
        before = [version(tensor) for tensor in tensors]
        answer = self._reference(**dict(zip(self._names, tensors, strict=True)), **self._constants)
        pairs = zip(self._names, tensors, before, strict=True)
        if changed := [name for name, tensor, earlier in pairs if version(tensor) != earlier]:
            raise UsageError(
                f"{self._layer}: the reference changes its input {', '.join(changed)} in place",
                "write it without in-place operations on its inputs, or clone the tensor first",
            )
        outputs = tuple(answer) if isinstance(answer, (tuple, list)) else (answer,)
        for index, output in enumerate(outputs):
            if not isinstance(output, torch.Tensor):
                raise UsageError(
                    f"{self._layer}: output {index} of the reference is {type(output).__name__}, not a tensor",
                    "return a tensor or a tuple of tensors",
                )
        if not outputs:
            raise UsageError(f"{self._layer}: the reference returns no output", "return a tensor")
        return outputs


def _export(wrapper: torch.nn.Module, tensors: Mapping[str, TensorType], sizes: Mapping[str, int]) -> ExportedProgram:
    # Fake inputs hold no memory, whatever the sizes.
    with torch_private.FakeTensorMode(shape_env=torch_private.ShapeEnv()):
        examples = tuple(
            torch.empty(_example_shape(tensor, sizes), dtype=from_dtype(tensor.dtype)) for tensor in tensors.values()
        )
    dynamic = tuple(
        tuple(Dim.STATIC if isinstance(dim, int) else Dim.AUTO for dim in tensor.shape) for tensor in tensors.values()
    )
    # No duck shapes: equal example sizes are not equal dims.  Oblivious: no rule is bent to "sizes are at least 2".
    with (
        torch.no_grad(),
        quiet_export(),
        any_size(use_duck_shape=False),
    ):
        # `*tensors` in forward nests the dynamic shapes once more.
        return torch.export.export(wrapper, examples, dynamic_shapes=(dynamic,) if dynamic else None, strict=False)


def any_size(**more: bool) -> contextlib.AbstractContextManager[None]:
    """Trace dynamic dims as sizes that may also be 0 or 1; torch.onnx does so where it traces a model itself."""
    return torch_private.size_config(backed_size_oblivious=True, **more)


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Without what a failing torch.export prints: its half-made graph; our error says what matters of it."""
    said = io.StringIO()

    def reject(record: logging.LogRecord) -> bool:
        return False

    loggers = [logging.getLogger(name) for name in EXPORT_LOGGERS]
    for logger in loggers:
        logger.addFilter(reject)
    try:
        with contextlib.redirect_stderr(said):
            yield
        sys.stderr.write(said.getvalue())
    finally:
        for logger in loggers:
            logger.removeFilter(reject)


def _example_sizes(tensors: Mapping[str, TensorType], hint: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Choices of example sizes by place, from the most general to the most alike; each at most once."""
    classes: dict[str, list[str]] = {}
    from_right: dict[str, int] = {}
    static: dict[int, int] = {}
    for name, tensor in tensors.items():
        for axis, dim in enumerate(tensor.shape):
            place = f"{name}.{axis}"
            if isinstance(dim, int):
                if dim > 1:
                    static.setdefault(tensor.ndim - axis, dim)
            else:
                key = place if dim is None else dim.text
                classes.setdefault(key, []).append(place)
                from_right.setdefault(key, tensor.ndim - axis)
    choices: tuple[Callable[[int, str], int], ...] = (
        lambda index, key: 24 * _prime(index),
        lambda index, key: static.get(from_right[key], 24 * _prime(from_right[key] - 1)),
        lambda index, key: 24,
        lambda index, key: 2 * _prime(index + 1),
        lambda index, key: 6,
    )
    tried: list[dict[str, int]] = []
    for choose in choices:
        sizes: dict[str, int] = {}
        for index, (key, places) in enumerate(classes.items()):
            hints = [hint[known] for known in (key, *places) if hint.get(known, 0) > 1]
            sizes.update(dict.fromkeys(places, hints[0] if hints else choose(index, key)))
        if sizes not in tried:
            tried.append(sizes)
            yield sizes


def _prime(index: int) -> int:
    return _PRIMES[index % len(_PRIMES)] + 60 * (index // len(_PRIMES))


def _example_shape(tensor: TensorType, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tensor.by_place().resolve(sizes)


def _shape_text(tensor: TensorType, sizes: Mapping[str, int]) -> str:
    return f"{tensor.dtype}{list(_example_shape(tensor, sizes))}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
