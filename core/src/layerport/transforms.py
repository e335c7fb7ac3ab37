"""Ready-made pieces for packs that bring parameters into the form their kernel wants: `parameters.transforms`."""

from layerport.parameters.transforms import (
    cast,
    crop,
    deinterleave,
    dequantize_groups,
    interleave,
    inverse_axes,
    pack_int4,
    pad,
    permute,
    quantize_groups,
    transpose,
    unpack_int4,
    widths_to_multiple,
)

__all__ = [
    "cast",
    "crop",
    "deinterleave",
    "dequantize_groups",
    "interleave",
    "inverse_axes",
    "pack_int4",
    "pad",
    "permute",
    "quantize_groups",
    "transpose",
    "unpack_int4",
    "widths_to_multiple",
]
