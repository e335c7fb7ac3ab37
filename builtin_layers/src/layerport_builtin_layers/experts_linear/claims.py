"""Which modules are the experts of a mixture: transformers' classes of one weight for all experts.

They differ in how they gate, in biases and in the layout of their weights, which the module says; its own gate is
called.  Not claimed are those that transformers itself runs on many machines.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

import layerport as lp
from layerport_builtin_layers.experts_linear.reference import experts_linear
from layerport_builtin_layers.module_looks import held

_GATE = "_apply_gate"


def claim_experts(module: torch.nn.Module) -> Any:
    """The rewritten forward of a module of experts, None for any other."""
    names = tuple(inspect.signature(inspect.unwrap(type(module).forward)).parameters)[1:]
    up = "gate_up_proj" if held(module, "has_gate") else "up_proj"
    weights = [held(module, name) for name in (up, "down_proj")]
    flags = [held(module, name) for name in ("has_gate", "has_bias", "is_transposed")]
    if (
        not all(isinstance(one, Tensor) and one.ndim == 3 for one in weights)
        or not all(isinstance(one, bool) for one in flags)
        or held(module, "_is_expert_parallel")
        or len(names) != 3
    ):
        return None

    def forward(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        given = dict(zip(names, args, strict=False)) | kwargs
        return _run(module, *(given[name] for name in names))

    return lp.rewrite(forward, layers=(experts_linear,))


def _run(module: Any, hidden_states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """As transformers computes it for all chosen experts at once."""
    result = _linear(module, "gate_up_proj" if module.has_gate else "up_proj", hidden_states, index)
    result = getattr(module, _GATE)(result) if module.has_gate else module.act_fn(result)
    result = _linear(module, "down_proj", result, index)
    if getattr(module, "has_post_expert_norm", False):
        result = module.post_expert_norm(result)
    return (result * weights.unsqueeze(-1)).sum(1).to(hidden_states.dtype)


def _linear(module: Any, name: str, x: Tensor, index: Tensor) -> Tensor:
    weight = getattr(module, name)
    if module.is_transposed:
        weight = weight.transpose(1, 2)
    result: Tensor = experts_linear(x, index, weight, getattr(module, f"{name}_bias") if module.has_bias else None)
    return result
