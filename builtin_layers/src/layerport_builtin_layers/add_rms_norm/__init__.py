"""Residual sum and RMS normalisation in one: `layerport_builtin::add_rms_norm`."""

from layerport_builtin_layers.add_rms_norm.reference import add_rms_norm

__all__ = ["add_rms_norm"]
