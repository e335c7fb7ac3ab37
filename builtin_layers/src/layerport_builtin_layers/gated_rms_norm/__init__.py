"""RMS normalisation with a gate: `layerport_builtin::gated_rms_norm`."""

from layerport_builtin_layers.gated_rms_norm.reference import gated_rms_norm

__all__ = ["gated_rms_norm"]
