"""Multi-scale deformable attention: `layerport_builtin::ms_deform_attn`."""

from layerport_builtin_layers.ms_deform_attn.reference import ms_deform_attn

__all__ = ["ms_deform_attn"]
