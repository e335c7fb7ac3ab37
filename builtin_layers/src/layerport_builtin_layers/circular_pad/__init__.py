"""Circular padding of images: `layerport_builtin::circular_pad`."""

from layerport_builtin_layers.circular_pad.reference import circular_pad

__all__ = ["circular_pad"]
