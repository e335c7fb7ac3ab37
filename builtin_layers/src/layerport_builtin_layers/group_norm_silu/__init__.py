"""Group normalisation and SiLU at once: `layerport_builtin::group_norm_silu`."""

from layerport_builtin_layers.group_norm_silu.reference import group_norm_silu

__all__ = ["group_norm_silu"]
