"""The conversions that installed packs have for a layer's parameters, for its calls in Torch."""

from __future__ import annotations

import functools

from layerport.layers.layer import Layer
from layerport.packs import host
from layerport.parameters.standard_form import Parameters
from layerport.targets import Target, TorchTarget


@functools.cache
def installed_packs() -> host.Packs:
    """The installed packs, loaded when the first conversion is needed."""
    return host.load()


def has_conversion(layer: Layer) -> bool:
    """Whether the layer's pack is installed and has the hook."""
    pack = _own_pack(layer)
    return pack is not None and "layerport_convert_parameters" in pack.hooks


def _own_pack(layer: Layer) -> host.Pack | None:
    """The pack of this very layer, also where another one disputes its name: a call has chosen already."""
    for pack in installed_packs():
        if any(one.operator is layer.operator for one in pack.layers):
            return pack  # a layer of the same lines, made by a second import, has the same operator
    return None


def convert(layer: Layer, parameters: Parameters, target: Target | TorchTarget) -> Parameters:
    """What the hook of the layer's pack answers."""
    return installed_packs().convert_parameters(layer, parameters, target, owner=_own_pack(layer))
