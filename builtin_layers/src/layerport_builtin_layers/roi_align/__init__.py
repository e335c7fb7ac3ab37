"""Boxes of a map, pooled to one size: `layerport_builtin::roi_align`."""

from layerport_builtin_layers.roi_align.reference import roi_align

__all__ = ["roi_align"]
