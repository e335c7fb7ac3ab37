"""What a call of the operator on CUDA tensors returns, told before it runs; `cuda_operator` imports it.

The reference tells it, run without data.  Where sizes depend on data it runs over fake tensors, in which such a size is
a symbol with a range: the kernel gets room for the greatest, and writes how much it used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.foreign import torch_private
from layerport.layers.sympy_sizes import from_sympy
from layerport.layers.written import WrittenLayer
from layerport.parameters.frameworks.torch_dtypes import from_dtype, to_dtype
from layerport.sizes.expressions import Symbol
from layerport.sizes.output_rules import from_rule
from layerport.sizes.tensors import Dim, TensorType, renamed


@dataclass(frozen=True, eq=False)
class CallOutputs:
    """The outputs of one call.

    tensors: by the layer's names; their dims are numbers, or expressions over the sizes that depend on data.
    most: the greatest value of each such size, in the order in which the kernel takes them; mostly empty.
    """

    tensors: tuple[TensorType, ...]
    most: Mapping[str, int]

    def largest(self) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
        """Name, shape and dtype of each output, with all sizes at their greatest."""
        return [(one.name, one.resolve(self.most), from_dtype(one.dtype)) for one in self.tensors]

    def written(self) -> dict[str, TensorType]:
        """All that a kernel writes, as its rules see it in a call: the outputs, then the sizes."""
        outputs = {name: TensorType(name, to_dtype(dtype), shape) for name, shape, dtype in self.largest()}
        return outputs | {name: TensorType(name, DType.INT64, ()) for name in self.most}

    def shapes(self, written: Sequence[int], *, layer: str) -> list[tuple[int, ...]]:
        """The shape of each output for the sizes that a kernel wrote.  Raises UsageError for impossible ones."""
        sizes = dict(zip(self.most, written, strict=True))
        if wrong := [
            f"{name} is {size}, allowed are 0 to {self.most[name]}"
            for name, size in sizes.items()
            if not 0 <= size <= self.most[name]
        ]:
            raise UsageError(
                f"layer {layer}: its kernel writes no possible size",
                "correct the kernel: it writes each size once",
                faults=wrong,
            )
        return [one.resolve(sizes) for one in self.tensors]


def call_outputs(layer: WrittenLayer, values: Mapping[str, Any]) -> CallOutputs:
    """The outputs of a call with these arguments, by name.

    The reference runs in any case, so its own checks of shapes are made before a kernel trusts them.  Raises what it
    raises, and UsageError where a size has no greatest value.
    """
    names = layer.signature.output_names
    if not any(kernel.writes_sizes(layer.signature) for kernel in layer.kernels):
        return _read(names, _run(layer, values, "meta"))
    with torch_private.FakeTensorMode(shape_env=torch_private.ShapeEnv()):
        outputs = _run(layer, values, None)
    if layer.shapes_override is None:
        found = _read(names, outputs)
        if not found.most:  # of an empty tensor nothing is above 0, and Torch knows it
            raise UsageError("no size depends on data here, and its kernel writes one", "state them with a shape_rule")
        return found
    tensors = {
        one.name: None if values[one.name] is None else _type(one.name, values[one.name])
        for one in layer.signature.tensors
    }
    attributes = {name: one for name, one in values.items() if name not in tensors}
    rule = from_rule(layer.shapes_override, tensors, attributes, layer.name)
    bounds = {one.name: one.upper_bound for one in rule.size_symbols}
    most = {name: None if bound is None else bound.evaluate({}) for name, bound in bounds.items()}
    return CallOutputs(renamed(rule.outputs, names), _bounded(most))


def _run(layer: WrittenLayer, values: Mapping[str, Any], device: str | None) -> tuple[torch.Tensor, ...]:
    """The reference over tensors of the same kinds, made anew."""

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        where = device or ("cpu" if tensor.device.type == "meta" else tensor.device)  # none is fake on "meta"
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=where)

    answer = layer.reference(
        **{name: empty(value) if isinstance(value, torch.Tensor) else value for name, value in values.items()}
    )
    return (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)


def _type(name: str, tensor: torch.Tensor) -> TensorType:
    return TensorType(name, to_dtype(tensor.dtype), tuple(map(int, tensor.shape)))


def _read(names: Sequence[str], outputs: Sequence[torch.Tensor]) -> CallOutputs:
    known: dict[str, Symbol] = {}
    most: dict[str, int | None] = {}

    def read(size: int | torch.SymInt) -> Dim:
        if isinstance(size, int):
            return size
        expression = torch_private.expression(size)
        for symbol in sorted(expression.free_symbols, key=lambda one: (len(one.name), one.name)):
            if symbol.name not in known:
                known[symbol.name] = Symbol(f"u{len(known)}")
                most[known[symbol.name].name] = torch_private.greatest(size, symbol)
        return from_sympy(expression, known)

    tensors = tuple(
        TensorType(name, to_dtype(output.dtype), tuple(map(read, output.shape)))
        for name, output in zip(names, outputs, strict=True)
    )
    return CallOutputs(tensors, _bounded(most))


def _bounded(most: Mapping[str, int | None]) -> dict[str, int]:
    if unbounded := [name for name, bound in most.items() if bound is None]:
        raise UsageError(
            f"no greatest value is known for its size {', '.join(unbounded)}",
            "state it with torch._check(size <= bound) in the reference, or with a shape_rule",
        )
    return {name: bound for name, bound in most.items() if bound is not None}
