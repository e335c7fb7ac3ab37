"""A linear layer of the expert that a router chose: `layerport_builtin::experts_linear`."""

from layerport_builtin_layers.experts_linear.reference import experts_linear

__all__ = ["experts_linear"]
