"""Features of pillars written into a map: `layerport_builtin::scatter_pillars`."""

from layerport_builtin_layers.scatter_pillars.reference import scatter_pillars

__all__ = ["scatter_pillars"]
