"""The boxes that no better one overlaps: `layerport_builtin::nms`."""

from layerport_builtin_layers.nms.reference import nms

__all__ = ["nms"]
