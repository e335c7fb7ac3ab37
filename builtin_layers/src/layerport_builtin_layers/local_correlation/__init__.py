"""Correlation of two maps in a window that moves: `layerport_builtin::local_correlation`."""

from layerport_builtin_layers.local_correlation.reference import local_correlation

__all__ = ["local_correlation"]
