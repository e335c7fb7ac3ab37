"""`layerport.layer`: makes a layer that knows the installed packs, without its room knowing them.

The packs are loaded when a layer is first pickled, or first asked for a conversion.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any

import layerport.packs
from layerport.layers.layer import Layer
from layerport.parameters.standard_form import Parameters
from layerport.targets import Target, TorchTarget


class _InstalledPacks:
    """The packs as the converter of a layer."""

    def has_conversion(self, layer: Layer) -> bool:
        return layerport.packs.conversions.has_conversion(layer)

    def convert(self, layer: Layer, parameters: Parameters, target: Target | TorchTarget) -> Parameters:
        return layerport.packs.conversions.convert(layer, parameters, target)


def layer(
    name: str, *, version: int = 1, find: bool | None = None, purpose: str | None = None
) -> Callable[[Callable[..., Any]], Layer]:
    """Make a layer of a Torch reference function: the definition of what is correct.

    name: `namespace::name`.  version: whole number from 1.
    find: whether the reference is searched in models, see `Layer.spelling`; None searches it unless it is a single
    operator, which would take every such operator of a model.
    purpose: why a plugin is worth its place in an engine: "fusion that TensorRT lacks", "not expressible" (in ONNX or
    TensorRT), "wrong in TensorRT" or "other precision or layout"; None where TensorRT may do as well alone.
    `Tensor` arguments are run-time inputs, `layerport.Param` ones tensor parameters, all others attributes.
    Raises UsageError with all faults of the signature at once.
    """
    return lambda reference: Layer(name, version, reference, converter=_InstalledPacks(), find=find, purpose=purpose)


def _reduce(one: Layer) -> tuple[Callable[..., Layer], tuple[Any, ...]]:
    return layerport.packs.saved_layers.reduce_layer(one)


copyreg.pickle(Layer, _reduce)
