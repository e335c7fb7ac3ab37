"""A sum and its layer normalisation at once: `layerport_builtin::add_layer_norm`."""

from layerport_builtin_layers.add_layer_norm.reference import add_layer_norm

__all__ = ["add_layer_norm"]
