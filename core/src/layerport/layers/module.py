"""The `nn.Module` of a bound layer.  Used by `Layer.module` and by the structural copy of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from layerport.errors import UsageError
from layerport.parameters.conversion import from_standard
from layerport.parameters.signature import Kind

if TYPE_CHECKING:
    from layerport.layers.written import WrittenLayer
    from layerport.parameters.standard_form import Parameters


class LayerModule(torch.nn.Module):
    """Applies a layer to its inputs, given in the order of the layer's signature, with the parameters it holds.

    A source that is a Torch tensor and needed no conversion is registered itself, so shared weights stay shared.
    """

    def __init__(self, layer: WrittenLayer, parameters: Parameters, sources: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = layer
        self.attributes = dict(parameters.attributes)
        self._most_inputs = len(layer.signature.inputs)
        for name, array in parameters.items():
            source = sources.get(name)
            tensor = from_standard(array, "torch")
            if isinstance(source, torch.Tensor) and _same_memory(source, tensor):
                tensor = source
            if isinstance(tensor, torch.nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)
        for argument in layer.signature.params:
            if argument.name not in parameters:
                self.register_parameter(argument.name, None)

    def forward(self, *inputs: Any) -> Any:
        """The layer's outputs for its inputs, optional ones left out at the end or None.  Raises UsageError."""
        if len(inputs) > self._most_inputs:
            raise UsageError(
                f"layer {self.layer.name} takes {self._most_inputs} inputs, got {len(inputs)}",
                "its parameters and attributes are given when the module is made",
            )
        places = iter(inputs)
        values = []
        for argument in self.layer.signature.arguments:
            if argument.kind is Kind.INPUT:
                # An optional input that the caller left out arrives as None.
                values.append(next(places, None))
            elif argument.kind is Kind.PARAM:
                values.append(getattr(self, argument.name))
            else:
                values.append(self.attributes[argument.name])
        return self.layer(*values)

    def extra_repr(self) -> str:
        """The layer and its attributes, as Torch prints modules."""
        attributes = ", ".join(f"{name}={value}" for name, value in self.attributes.items())
        return f"{self.layer.name}{', ' if attributes else ''}{attributes}"


def _same_memory(source: torch.Tensor, tensor: torch.Tensor) -> bool:
    return (
        source.device == tensor.device
        and source.dtype == tensor.dtype
        and source.shape == tensor.shape
        and source.is_contiguous()
        and source.data_ptr() == tensor.data_ptr()
    )
