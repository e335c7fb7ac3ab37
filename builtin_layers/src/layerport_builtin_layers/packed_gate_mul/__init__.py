"""The product with an activated gate, both halves of one tensor: `layerport_builtin::packed_gate_mul`."""

from layerport_builtin_layers.packed_gate_mul.reference import packed_gate_mul

__all__ = ["packed_gate_mul"]
