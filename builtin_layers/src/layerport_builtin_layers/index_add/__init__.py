"""Sums over equal indices: `layerport_builtin::index_add`."""

from layerport_builtin_layers.index_add.reference import index_add

__all__ = ["index_add"]
