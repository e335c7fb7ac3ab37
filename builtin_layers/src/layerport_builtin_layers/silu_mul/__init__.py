"""Gated activation: `layerport_builtin::silu_mul`."""

from layerport_builtin_layers.silu_mul.reference import silu_mul

__all__ = ["silu_mul"]
