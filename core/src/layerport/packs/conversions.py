"""The conversions that installed packs have for a layer's parameters, for its calls in Torch."""

from __future__ import annotations

import functools

from layerport.layers.layer import Layer
from layerport.packs import host
from layerport.parameters.standard_form import Parameters
from layerport.targets import TorchTarget


@functools.cache
def installed_packs() -> host.Packs:
    """The installed packs, loaded when the first conversion is needed."""
    return host.load()


def has_conversion(layer: Layer) -> bool:
    """Whether the layer's pack is installed and has the hook."""
    packs = installed_packs()
    if not any(one.operator is layer.operator for one in packs.every_version):
        return False  # a layer of the same lines, made by a second import, has the same operator
    return "layerport_convert_parameters" in packs.owner(layer).hooks


def convert(layer: Layer, parameters: Parameters, target: TorchTarget) -> Parameters:
    """What the hook of the layer's pack answers."""
    return installed_packs().convert_parameters(layer, parameters, target)
