"""Rotary position embedding: `layerport_builtin::rope`."""

from layerport_builtin_layers.rope.reference import rope

__all__ = ["rope"]
