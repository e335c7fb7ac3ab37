"""Whether an exported program computes what its Python original does, at sizes that it was not exported for.

Torch records conditions on sizes: real branches of the original, and its own caution (size 1 ruled out here and there).
Running both on real tensors tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export.graph_signature import InputKind, OutputKind

from layerport.foreign import torch_private
from layerport.foreign.torch_private import pytree

# Beyond this many elements of input nothing is run.
LARGEST = 2**25
_RELATIVE = {torch.float64: 1e-7, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}

AGREES, DIFFERS, REJECTED, UNKNOWN = "agrees", "differs", "rejected", "unknown"


@dataclass(frozen=True)
class Outcome:
    """What running both at some sizes showed.

    verdict: AGREES, DIFFERS, REJECTED (the original itself does not take these sizes), or UNKNOWN.
    """

    verdict: str
    text: str
    shapes: tuple[tuple[int, ...], ...] = ()


def compare(
    original: Callable[[], Any],
    program: torch.export.ExportedProgram,
    inputs: Sequence[Any],
    sizes: Mapping[str, int] | None = None,
) -> Outcome:
    """Run the original and the program on the same inputs.

    inputs: the program's, flat.  sizes: those of Torch's symbols, where the inner shapes must be the exported ones too.
    """
    tensors = [one for one in inputs if isinstance(one, torch.Tensor)]
    if sum(one.numel() for one in tensors) > LARGEST:
        return Outcome(UNKNOWN, "the tensors are too large to try it")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            wanted = [one for one in pytree.tree_leaves(original()) if isinstance(one, torch.Tensor)]
        except Exception as error:
            return Outcome(REJECTED, f"it fails there itself: {_short(error)}")
        torch.manual_seed(0)
        try:
            got = _run(program, inputs, sizes)
        except Exception as error:
            return Outcome(DIFFERS, f"its exported form fails there: {_short(error)}")
    shapes = tuple(tuple(one.shape) for one in wanted)
    if [(one.shape, one.dtype) for one in got] != [(one.shape, one.dtype) for one in wanted]:
        shown = ", ".join(str(list(one.shape)) for one in got)
        return Outcome(
            DIFFERS, f"the exported form gives {shown} there, it gives {', '.join(map(str, shapes))}", shapes
        )
    if not any(one.numel() == 0 or bool(one.isfinite().any()) for one in wanted):
        return Outcome(UNKNOWN, "all it gives there is NaN or infinite", shapes)
    for one, other in zip(got, wanted, strict=True):
        if (fault := _difference(one, other)) is not None:
            return Outcome(DIFFERS, f"the exported form gives other numbers there ({fault})", shapes)
    return Outcome(AGREES, "both give the same there", shapes)


def _run(
    program: torch.export.ExportedProgram, inputs: Sequence[Any], sizes: Mapping[str, int] | None
) -> list[torch.Tensor]:
    held = {**program.state_dict, **program.constants}
    given = iter(inputs)
    values = [
        next(given) if spec.kind is InputKind.USER_INPUT else held[str(spec.target)]
        for spec in program.graph_signature.input_specs
    ]
    outputs = _AsOnnx(program.graph_module, sizes).run(*values)
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    user = (one for one, kind in zip(outputs, kinds, strict=True) if kind is OutputKind.USER_OUTPUT)
    return [one for one in user if isinstance(one, torch.Tensor)]


class _AsOnnx(torch.fx.Interpreter):
    """Runs a graph as ONNX will run it: without checks at run time, but with the shapes that are written down in it."""

    def __init__(self, module: torch.fx.GraphModule, sizes: Mapping[str, int] | None) -> None:
        super().__init__(module)
        self._sizes = sizes
        self._known: dict[Any, int | None] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        if n.op == "call_function" and "_assert_" in str(n.target):
            return None
        result = super().run_node(n)
        stated = n.meta.get("val")
        if self._sizes is not None and isinstance(stated, torch.Tensor) and isinstance(result, torch.Tensor):
            for axis, (size, real) in enumerate(zip(stated.shape, result.shape, strict=True)):
                if (expected := self._size(size)) not in (None, real):
                    raise ValueError(f"axis {axis} of {n.name} is {real} there, and {expected} in the export")
        return result

    def _size(self, size: Any) -> int | None:
        """A size in this run; None for one that depends on data."""
        if isinstance(size, int):
            return size
        expr = torch_private.expression(size)
        if expr not in self._known:
            assert self._sizes is not None
            named = {symbol: self._sizes.get(symbol.name, symbol) for symbol in expr.free_symbols}
            value = expr.subs(named)
            self._known[expr] = int(value) if value.is_number else None
        return self._known[expr]


def _difference(got: torch.Tensor, wanted: torch.Tensor) -> str | None:
    if not wanted.dtype.is_floating_point:
        return None if torch.equal(got, wanted) else "whole numbers differ"
    left, right = got.double(), wanted.double()
    scale = float(right[right.isfinite()].abs().max()) if right.isfinite().any() else 1.0
    allowed = _RELATIVE.get(wanted.dtype, 0.1)
    if torch.allclose(left, right, rtol=allowed, atol=allowed * max(scale, 1e-30) * 1e-2, equal_nan=True):
        return None
    error = (left - right).abs()
    error = error[error.isfinite()]
    return f"off by {float(error.max()):.3g}" if error.numel() else "NaN or infinity"


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"


def random_tensor(shape: Sequence[int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Normal floats, zeros and ones for whole numbers, which are valid wherever an index is."""
    if math.prod(shape) > LARGEST:
        return torch.empty((), dtype=dtype).expand(tuple(shape))
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(tuple(shape), generator=generator).to(dtype)
    return torch.randint(0, 2, tuple(shape), generator=generator).to(dtype)


def resized(value: Any, shapes: Iterator[tuple[int, ...] | None]) -> Any:
    """An example input at another size: its rows repeated or left away, so that its values stay valid ones.

    Floats are varied, because an example of zeros or ones would show no difference.
    """
    generator = torch.Generator().manual_seed(0)

    def fit(leaf: Any) -> Any:
        shape = next(shapes)
        if not isinstance(leaf, torch.Tensor) or shape is None:
            return leaf
        for axis, size in enumerate(shape):
            if leaf.shape[axis] != size:
                leaf = leaf.index_select(axis, torch.arange(size, device=leaf.device) % max(1, leaf.shape[axis]))
        if not leaf.is_floating_point() or not bool(leaf.isfinite().all()):
            return leaf.clone()
        factor = torch.rand(leaf.shape, generator=generator) + 0.5
        return (leaf.float() * factor if leaf.any() else factor).to(leaf.dtype)

    return pytree.tree_map(fit, value)
