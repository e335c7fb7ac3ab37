"""What the pack tells layerport: its layers, and which modules of a model are one of them; the others are found.

Loaded through the entry point `builtin_layers` of the group `layerport`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import layerport as lp
from layerport_builtin_layers.add_layer_norm import add_layer_norm
from layerport_builtin_layers.add_rms_norm import add_rms_norm
from layerport_builtin_layers.causal_conv1d import causal_conv1d
from layerport_builtin_layers.circular_pad import circular_pad
from layerport_builtin_layers.deform_conv2d import deform_conv2d
from layerport_builtin_layers.deform_conv2d.claims import claim_deform_conv2d
from layerport_builtin_layers.experts_linear import experts_linear
from layerport_builtin_layers.experts_linear.claims import claim_experts
from layerport_builtin_layers.gated_rms_norm import gated_rms_norm
from layerport_builtin_layers.gated_rms_norm.claims import claim_gated_rms_norm
from layerport_builtin_layers.gelu_mul import gelu_mul
from layerport_builtin_layers.grid_sample import grid_sample
from layerport_builtin_layers.group_norm_silu import group_norm_silu
from layerport_builtin_layers.index_add import index_add
from layerport_builtin_layers.layer_norm import layer_norm
from layerport_builtin_layers.local_correlation import local_correlation
from layerport_builtin_layers.local_correlation.claims import claim_local_correlation
from layerport_builtin_layers.ms_deform_attn import ms_deform_attn
from layerport_builtin_layers.ms_deform_attn.claims import claim_ms_deform_attn
from layerport_builtin_layers.nms import nms
from layerport_builtin_layers.nms.claims import claim_nms
from layerport_builtin_layers.packed_gate_mul import packed_gate_mul
from layerport_builtin_layers.rms_norm import rms_norm
from layerport_builtin_layers.rms_norm.claims import claim_rms_norm
from layerport_builtin_layers.roi_align import roi_align
from layerport_builtin_layers.roi_align.claims import claim_roi_align
from layerport_builtin_layers.rope import rope
from layerport_builtin_layers.scatter_pillars import scatter_pillars
from layerport_builtin_layers.scatter_pillars.claims import claim_scatter_pillars
from layerport_builtin_layers.selective_scan import selective_scan
from layerport_builtin_layers.selective_scan.claims import claim_selective_scan
from layerport_builtin_layers.silu_mul import silu_mul
from layerport_builtin_layers.ssd_scan import ssd_scan
from layerport_builtin_layers.ssd_scan.claims import claim_ssd_scan
from layerport_builtin_layers.weight_only_linear import weight_only_linear
from layerport_builtin_layers.weight_only_linear.claims import claim_linear, claim_quantised
from layerport_builtin_layers.weight_only_linear.convert import packed

if TYPE_CHECKING:
    import torch


@lp.hookimpl
def layerport_layers() -> tuple[lp.Layer, ...]:
    return (
        *(rms_norm, add_rms_norm, layer_norm, silu_mul, gelu_mul, rope, circular_pad),
        *(ms_deform_attn, experts_linear, selective_scan, weight_only_linear),
        *(deform_conv2d, grid_sample, roi_align, nms, local_correlation, scatter_pillars),
        *(add_layer_norm, gated_rms_norm, packed_gate_mul, group_norm_silu, causal_conv1d),
        *(ssd_scan, index_add),
    )


@lp.hookimpl
def layerport_export_parameters(module: torch.nn.Module, name: str) -> Any:
    claims = (
        *(claim_rms_norm, claim_gated_rms_norm, claim_ms_deform_attn, claim_experts, claim_selective_scan),
        *(claim_quantised, claim_linear, claim_deform_conv2d, claim_roi_align, claim_nms, claim_scatter_pillars),
        *(claim_local_correlation, claim_ssd_scan),
    )
    return next((answer for claim in claims if (answer := claim(module)) is not None), None)


@lp.hookimpl
def layerport_convert_parameters(layer: lp.Layer, parameters: lp.Parameters) -> lp.Parameters | None:
    return packed(parameters) if layer is weight_only_linear else None
