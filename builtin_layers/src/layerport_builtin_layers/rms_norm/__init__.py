"""RMS normalisation: `layerport_builtin::rms_norm`."""

from layerport_builtin_layers.rms_norm.reference import rms_norm

__all__ = ["rms_norm"]
