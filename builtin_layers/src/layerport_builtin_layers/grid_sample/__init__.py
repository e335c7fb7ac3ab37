"""A map read at the places of a grid: `layerport_builtin::grid_sample`."""

from layerport_builtin_layers.grid_sample.reference import grid_sample

__all__ = ["grid_sample"]
