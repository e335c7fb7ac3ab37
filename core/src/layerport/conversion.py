"""Conversions of framework types, as packs use them: the public names of `parameters.conversion`."""

from layerport.parameters.binding import convert_arguments
from layerport.parameters.conversion import ConversionTable, from_standard, register, register_back, to_standard
from layerport.parameters.plain import to_plain
from layerport.parameters.steps import Converted, Hop, Step

__all__ = [
    "ConversionTable",
    "Converted",
    "Hop",
    "Step",
    "convert_arguments",
    "from_standard",
    "register",
    "register_back",
    "to_plain",
    "to_standard",
]
