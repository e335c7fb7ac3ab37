"""Conversions of framework types, as packs use them: the public names of `parameters.conversion`."""

from layerport.parameters.conversion import (
    ConversionTable,
    Converted,
    Hop,
    Step,
    convert_arguments,
    from_standard,
    register,
    register_back,
    to_plain,
    to_standard,
)

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
