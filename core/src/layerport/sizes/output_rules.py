"""Output rules as records, and the override: a rule that the author writes where none can be derived.

Torch-free, so that plugin specs can be made from these records anywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.sizes.expressions import Const, Expr, Symbol, as_expr
from layerport.sizes.tensors import Dim, TensorType


@dataclass(frozen=True, eq=False)
class SizeSymbol:
    """A size that depends on data.

    upper_bound: an expression in the inputs' sizes that it never exceeds; None where none is known.  Memory is
    reserved by it, so it is never guessed: a reference states it with `torch._check(size <= bound)`.
    """

    name: str
    upper_bound: Expr | None

    def __post_init__(self) -> None:
        if isinstance(self.upper_bound, int):  # a rule sees numbers where sizes are static
            object.__setattr__(self, "upper_bound", as_expr(self.upper_bound))

    @property
    def greatest(self) -> Expr:
        """The upper bound of a size that has one, as every size of a plugin does."""
        assert self.upper_bound is not None
        return self.upper_bound


@dataclass(frozen=True, eq=False)
class RuleAnswer:
    """What a written rule says: `outputs` and `size_symbols` as in a derivation."""

    outputs: tuple[TensorType, ...]
    size_symbols: tuple[SizeSymbol, ...]


def from_rule(
    rule: Callable[..., Any],
    tensors: Mapping[str, TensorType | None],
    attributes: Mapping[str, Any],
    layer: str,
) -> RuleAnswer:
    """The output rules that a `shape_rule` gives.

    rule: is called with those tensors (None where absent) and attributes that it has parameters for, by
    name, and returns (dtype, dims) for each output, or one such pair.  A dim is an int, an expression, or a
    `SizeSymbol` with its bound for a size that depends on data (the same record for the same size).
    Raises UsageError with all faults of the answer, each with its output; what the rule raises is chained.
    """
    values: dict[str, Any] = {**by_first_place(tensors), **attributes}
    try:
        answer = rule(**_wanted(rule, values, layer))
    except UsageError as error:
        raise UsageError(f"{layer}: its shape rule failed: {error.fault}", error.repair) from error
    except Exception as error:
        raise UsageError(
            f"{layer}: its shape rule failed: {type(error).__name__}: {error}", "correct the shape rule"
        ) from error
    pairs = [answer] if _is_pair(answer) else list(answer) if isinstance(answer, (tuple, list)) else []
    known = {symbol for value in values.values() if isinstance(value, TensorType) for symbol in value.symbols()}
    sizes: dict[str, SizeSymbol] = {}
    faults: list[str] = []
    outputs = [_output(index, len(pairs), pair, known, sizes, faults) for index, pair in enumerate(pairs)]
    if not pairs:
        faults.append(f"expected (dtype, dims) for each output, got {answer!r}")
    if faults:
        raise UsageError(
            f"{layer}: its shape rule gave a wrong answer",
            "return a tuple of (dtype, dims), such as ((x.dtype, (x.shape[0], 4)),)",
            faults=faults,
        )
    return RuleAnswer(tuple(output for output in outputs if output), tuple(sizes.values()))


def by_first_place(tensors: Mapping[str, TensorType | None]) -> dict[str, TensorType | None]:
    """The tensors as a layer's rules see them: equal dims are the symbol of the first place that has them."""
    first: dict[str, Expr] = {}
    made: dict[str, TensorType | None] = {}
    for name, tensor in tensors.items():
        dims: list[Dim] = []
        for axis, dim in enumerate(tensor.shape if tensor is not None else ()):
            place = Symbol(f"{name}.{axis}")
            dims.append(dim if isinstance(dim, int) else place if dim is None else first.setdefault(dim.text, place))
        made[name] = None if tensor is None else TensorType(name, tensor.dtype, tuple(dims))
    return made


def _wanted(rule: Callable[..., Any], values: Mapping[str, Any], layer: str) -> dict[str, Any]:
    parameters = inspect.signature(rule).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return dict(values)
    missing = [p.name for p in parameters if p.name not in values and p.default is inspect.Parameter.empty]
    if missing:
        raise UsageError(
            f"{layer}: its shape rule asks for {', '.join(missing)}, no argument of the layer",
            f"use names from {', '.join(values)}",
        )
    return {p.name: values[p.name] for p in parameters if p.name in values}


def output_name(index: int, count: int) -> str:
    """The name of an output that the author gave none: "output", or "output0", "output1", ... of several."""
    return "output" if count == 1 else f"output{index}"


def _is_pair(answer: object) -> bool:
    return isinstance(answer, (tuple, list)) and len(answer) == 2 and isinstance(answer[0], str)


def _output(
    index: int, count: int, pair: object, known: set[str], sizes: dict[str, SizeSymbol], faults: list[str]
) -> TensorType | None:
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[1], (tuple, list))):
        faults.append(f"output {index}: expected (dtype, dims), got {pair!r}")
        return None
    dims: list[Expr] = []
    try:
        for dim in pair[1]:
            if isinstance(dim, SizeSymbol):
                if str(sizes.setdefault(dim.name, dim).upper_bound) != str(dim.upper_bound):
                    faults.append(f"output {index}: {dim.name} has two bounds")
                dims.append(Symbol(dim.name))
                continue
            made = as_expr(dim)
            strangers = sorted(made.symbols() - known - set(sizes))
            if strangers:
                faults.append(f"output {index}: {made} names {', '.join(strangers)}, a size of no argument")
            if isinstance(made, Const) and made.value < 0:
                faults.append(f"output {index}: a size of {made}")
                continue
            dims.append(made)
        return TensorType(output_name(index, count), DType.of(pair[0]), tuple(dims))
    except UsageError as error:
        faults.append(f"output {index}: {error.fault}")
        return None
