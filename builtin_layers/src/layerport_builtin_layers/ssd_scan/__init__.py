"""The scan of Mamba2, by the name of its paper, state space duality: `layerport_builtin::ssd_scan`."""

from layerport_builtin_layers.ssd_scan.reference import ssd_scan

__all__ = ["ssd_scan"]
