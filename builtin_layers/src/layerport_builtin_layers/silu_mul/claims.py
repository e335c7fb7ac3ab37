"""Which modules hold a gated activation: the MLPs of Llama and its relatives, with SiLU, separate or packed."""

from __future__ import annotations

from typing import Any

import torch

import layerport as lp
from layerport_builtin_layers.module_looks import held, takes_one_tensor
from layerport_builtin_layers.silu_mul.reference import silu_mul

_ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation")
_SILU_CLASSES = frozenset({"SiLU", "SiLUActivation"})
_SEPARATE = frozenset({"gate_proj", "up_proj", "down_proj"})
_PACKED = frozenset({"gate_up_proj", "down_proj"})


def claim_silu_mul(module: torch.nn.Module) -> Any:
    """The module's forward written with `silu_mul`, or None."""
    children = dict(module.named_children())
    activations = {name: value for name in _ACTIVATIONS if (value := held(module, name)) is not None}
    if len(activations) != 1 or not _is_silu(*activations.values()) or not takes_one_tensor(module):
        return None
    # Another child (a norm, a dropout) would be a step that the rewrite leaves out.
    projections = frozenset(children) - set(activations)
    if projections == _SEPARATE:
        return lp.rewrite(separate_forward, layers=(silu_mul,))
    if projections == _PACKED:
        return lp.rewrite(packed_forward, layers=(silu_mul,))
    return None


def separate_forward(module: Any, x: torch.Tensor) -> Any:
    """down_proj(silu(gate_proj(x)) * up_proj(x)), with the children of `module`."""
    return module.down_proj(silu_mul(module.gate_proj(x), module.up_proj(x)))


def packed_forward(module: Any, x: torch.Tensor) -> Any:
    """The same where one projection gives the gate in the first half of its last axis and the rest in the second."""
    gate, up = module.gate_up_proj(x).chunk(2, dim=-1)
    return module.down_proj(silu_mul(gate, up))


def _is_silu(activation: Any) -> bool:
    return activation is torch.nn.functional.silu or type(activation).__name__ in _SILU_CLASSES
