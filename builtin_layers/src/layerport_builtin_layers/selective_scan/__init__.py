"""The selective state space of Mamba: `layerport_builtin::selective_scan`."""

from layerport_builtin_layers.selective_scan.reference import selective_scan

__all__ = ["selective_scan"]
