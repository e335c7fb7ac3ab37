"""Layer normalisation: `layerport_builtin::layer_norm`."""

from layerport_builtin_layers.layer_norm.reference import layer_norm

__all__ = ["layer_norm"]
