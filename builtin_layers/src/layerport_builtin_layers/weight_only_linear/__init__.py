"""A linear layer whose weight is whole numbers with scales: `layerport_builtin::weight_only_linear`."""

from layerport_builtin_layers.weight_only_linear.reference import weight_only_linear

__all__ = ["weight_only_linear"]
