"""The plugin spec that a build makes of a layer, from tensors alone: for tests and benchmarks of plugins."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from layerport.errors import BuildError
from layerport.layers.derivation import derive
from layerport.layers.layer import Layer, Place
from layerport.packs.kernel_plugins import plugin_from_kernels
from layerport.parameters.conversion import from_standard
from layerport.parameters.frameworks.torch_dtypes import to_dtype
from layerport.parameters.signature import Kind
from layerport.sizes.expressions import Symbol
from layerport.sizes.tensors import Dim, TensorType
from layerport.targets import Target

if TYPE_CHECKING:
    from layerport.bundle.plugin_spec import PluginSpec
    from layerport.parameters.standard_form import Parameters


def plugin_spec(layer: Layer, target: Target, *args: Any) -> PluginSpec | None:
    """The spec for inputs like these, every axis of an input but the last dynamic; None where no kernel fits.

    args: tensors and attributes in the layer's order, all of them; parameters are converted as a build does it.
    """
    values = layer.signature.bind(args, {}, layer=layer.name)
    inputs = {one.name for one in layer.signature.arguments if one.kind is Kind.INPUT}
    shapes: dict[str, TensorType | None] = {}
    known: dict[str, int] = {}
    for argument in layer.signature.tensors:
        tensor = values[argument.name]
        if tensor is None:
            shapes[argument.name] = None
            continue
        sizes = [int(size) for size in tensor.shape]
        dims: tuple[Dim, ...] = tuple(sizes)
        if argument.name in inputs:
            names = {f"axis_{axis}_of_{len(sizes)}": size for axis, size in enumerate(sizes[:-1])}
            # An axis of several inputs is one size only where it is one here.
            symbols = (
                Symbol(name if known.setdefault(name, size) == size else f"{name}_of_{argument.name}")
                for name, size in names.items()
            )
            dims = (*symbols, *dims[-1:])
        shapes[argument.name] = TensorType(argument.name, to_dtype(tensor.dtype), dims)
    given = {name: value for name, value in values.items() if name not in inputs and value is not None}
    bound = layer.bind(**given)
    attributes = bound.parameters.attributes
    parameters = _by_pack(layer, bound.parameters, target)
    tensors = {name: values[name] for name in shapes}
    # Its inputs may fit together in more ways than their axes tell, or by arithmetic: then its sizes are as they are.
    for made in (shapes, _by_size(tensors, inputs)):
        with contextlib.suppress(BuildError):
            shapes, derivation = made, derive(layer.reference, made, attributes, layer=layer.name)
            break
    else:
        shapes = _by_size(tensors, set())
        derivation = derive(layer.reference, shapes, attributes, layer=layer.name)
    return plugin_from_kernels(
        layer, dataclasses.replace(bound, parameters=parameters, place=Place(shapes, derivation, "")), target
    )


def converted(layer: Layer, target: Target, *args: Any) -> tuple[Any, ...]:
    """The arguments of a call with the parameters that a pack converts for this target, on the CPU, in their places."""
    values = layer.signature.bind(args, {}, layer=layer.name)
    inputs = {one.name for one in layer.signature.arguments if one.kind is Kind.INPUT}
    before = layer.bind(
        **{name: one for name, one in values.items() if name not in inputs and one is not None}
    ).parameters
    after = _by_pack(layer, before, target)
    return tuple(
        from_standard(after[name], "torch") if name in after and after[name] is not before.get(name) else value
        for name, value in values.items()
    )


def _by_pack(layer: Layer, parameters: Parameters, target: Target) -> Parameters:
    """The parameters as the layer's pack converts them."""
    if layer.converter is None or not layer.converter.has_conversion(layer):
        return parameters
    return layer.converter.convert(layer, parameters, target)


def _by_size(tensors: Mapping[str, Any], inputs: set[str]) -> dict[str, TensorType | None]:
    """The same with one symbol for all axes of one size; a size that a last axis or a parameter has is a number."""
    given = {name: tuple(int(size) for size in one.shape) for name, one in tensors.items() if one is not None}
    fixed = {1, *(size for name, shape in given.items() for size in (shape[-1:] if name in inputs else shape))}
    return {
        name: None
        if one is None
        else TensorType(
            name,
            to_dtype(one.dtype),
            tuple(size if size in fixed else Symbol(f"size_{size}") for size in given[name]),
        )
        for name, one in tensors.items()
    }
