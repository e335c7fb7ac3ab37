"""Gated activation with GELU: `layerport_builtin::gelu_mul`."""

from layerport_builtin_layers.gelu_mul.reference import gelu_mul

__all__ = ["gelu_mul"]
