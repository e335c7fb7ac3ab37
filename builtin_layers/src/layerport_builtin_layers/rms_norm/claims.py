"""Which modules are an RMS normalisation: `torch.nn.RMSNorm`, and classes that look like one.

Transformers has some 140 such classes; some scale by `weight`, some by `1 + weight`, which the class does not tell.
The host proves which.
"""

from __future__ import annotations

import torch

import layerport as lp
from layerport_builtin_layers.module_looks import held, takes_one_tensor
from layerport_builtin_layers.rms_norm.reference import rms_norm

_EPSILONS = ("eps", "variance_epsilon", "epsilon", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps")


def claim_rms_norm(module: torch.nn.Module) -> tuple[lp.BoundLayer, ...] | None:
    """The layers that this module may be, or None."""
    if isinstance(module, torch.nn.RMSNorm):
        return _claim_torch(module)
    if not _looks_like_one(module) or not takes_one_tensor(module):
        return None
    eps = epsilon(module)
    if eps is None:
        return None
    weights = [weight for weight in module.parameters() if weight is not None]
    if not weights:
        return (rms_norm.bind(eps=eps),)
    if len(weights) != 1 or weights[0].ndim != 1 or not weights[0].is_floating_point():
        return None
    weight = weights[0]
    # Computed in float32 as Gemma does; 1 + weight in 16 bits would lose the weight's last bits.
    shifted = 1.0 + weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    return (rms_norm.bind(weight=weight, eps=eps), rms_norm.bind(weight=shifted, eps=eps))


def _claim_torch(module: torch.nn.RMSNorm) -> tuple[lp.BoundLayer, ...] | None:
    if type(module).forward is not torch.nn.RMSNorm.forward or len(module.normalized_shape) != 1:
        return None
    eps = module.eps
    if eps is None:
        # Torch takes that of the type it computes in: float32 also where the input has 16 bits.
        is_double = module.weight is not None and module.weight.dtype == torch.float64
        eps = torch.finfo(torch.float64 if is_double else torch.float32).eps
    return (rms_norm.bind(weight=module.weight, eps=float(eps)),)


def _looks_like_one(module: torch.nn.Module) -> bool:
    name = type(module).__name__
    # T5 and its relatives call theirs LayerNorm, with an epsilon for a variance and no bias.
    return name.endswith("RMSNorm") or (name.endswith("LayerNorm") and held(module, "variance_epsilon") is not None)


def epsilon(module: torch.nn.Module) -> float | None:
    """The epsilon that a normalisation holds, by any of the names that libraries give it; None where it holds none."""
    for name in _EPSILONS:
        value = held(module, name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    return None
