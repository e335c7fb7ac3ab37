"""Shapes and dtypes of the outputs that a kernel is to write in a test, from the layer's reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import layerport.layers
import layerport.parameters.frameworks
from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.layers.layer import Layer
from layerport.parameters.conversion import from_standard
from layerport.sizes.tensors import TensorType

if TYPE_CHECKING:
    from layerport.layers.derivation import Derivation

Array = np.ndarray[Any, np.dtype[Any]]


def output_arrays(layer: Layer, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> list[TensorType]:
    """The outputs as they come out of the reference."""
    import torch

    values = {argument.name: None for argument in layer.signature.tensors} | {
        name: from_standard(array, "torch") for name, array in arrays.items()
    }
    with torch.inference_mode():
        answer = layer.reference(**values, **attributes)
    made = (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)
    to_dtype = layerport.parameters.frameworks.torch_dtypes.to_dtype
    names = layer.signature.output_names
    return [TensorType(name, to_dtype(one.dtype), tuple(one.shape)) for name, one in zip(names, made, strict=True)]


def data_dependent(layer: Layer, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> Derivation | None:
    """The output rules where a size depends on data, which shows in a kernel that takes more than the outputs."""
    if not any(kernel.writes_sizes(layer.signature) for kernel in layer.kernels):
        return None
    shapes: dict[str, TensorType | None] = {argument.name: None for argument in layer.signature.tensors}
    shapes |= {
        name: TensorType(name, DType.from_numpy(one.dtype), tuple(map(int, one.shape))) for name, one in arrays.items()
    }
    return layerport.layers.derivation.derive(
        layer.reference, shapes, attributes, layer=layer.name, rule=layer.shapes_override
    )


def greatest_sizes(layer: Layer, derivation: Derivation, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """The greatest value of each size that depends on data.

    sizes: of the inputs, where the derivation leaves them open.
    """
    bounds = {size.name: size.upper_bound for size in derivation.size_symbols}
    if unbounded := [name for name, bound in bounds.items() if bound is None]:
        raise UsageError(
            f"layer {layer.name}: no greatest value is known for its size {', '.join(unbounded)}",
            "state it with torch._check(size <= bound) in the reference, or with a shape_rule",
        )
    return {name: bound.evaluate(sizes or {}) for name, bound in bounds.items() if bound is not None}
