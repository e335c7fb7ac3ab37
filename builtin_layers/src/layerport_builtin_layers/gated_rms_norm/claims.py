"""Which modules are an RMS normalisation with a gate: the `*RMSNormGated` classes of transformers.

Mamba2, Bamba, Zamba2 and their like gate first, and normalise groups; Qwen3-Next and its like gate at the end.  Which
of them a module is, is proven on its own inputs.
"""

from __future__ import annotations

import torch

import layerport as lp
from layerport_builtin_layers.gated_rms_norm.reference import gated_rms_norm
from layerport_builtin_layers.module_looks import held
from layerport_builtin_layers.rms_norm.claims import epsilon


def claim_gated_rms_norm(module: torch.nn.Module) -> tuple[lp.BoundLayer, ...] | None:
    """The layers that this module may be, or None."""
    weights = list(module.parameters(recurse=False))
    if not type(module).__name__.endswith("RMSNormGated") or len(weights) != 1 or weights[0].ndim != 1:
        return None
    eps = epsilon(module)
    if eps is None:
        return None
    size = held(module, "group_size")
    is_size = type(size) is int and size > 0 and weights[0].numel() % size == 0
    groups = {weights[0].numel() // size: None, 1: None} if is_size else {1: None}
    return tuple(
        gated_rms_norm.bind(weight=weights[0], eps=eps, groups=count, gate_first=gate_first)
        for count in groups
        for gate_first in (True, False)
    )
