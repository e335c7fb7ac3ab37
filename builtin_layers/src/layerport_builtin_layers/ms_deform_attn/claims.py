"""Which modules sample as `ms_deform_attn` does: a class of its own, or a function that a module's forward calls.

transformers has the class `MultiScaleDeformableAttention` in many models (Deformable DETR, RT-DETR, Grounding DINO)
and a function in others (Mask2Former, OneFormer, RT-DETR v2); all come from the operator of Deformable DETR, as mmcv's
does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import layerport as lp
from layerport_builtin_layers.ms_deform_attn.reference import ms_deform_attn

_INPUTS = ("value", "value_spatial_shapes", "sampling_locations", "attention_weights")


def claim_ms_deform_attn(module: torch.nn.Module) -> Any:
    """The rewritten forward of a module that is, or calls, multi-scale deformable attention; None for any other."""
    forward: Any = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    if code is None:
        return None
    for name, call in _FUNCTIONS.items():
        if name in code.co_names and name in forward.__globals__:
            return lp.rewrite_call(module, name, call, layers=(ms_deform_attn,))
    signature = inspect.signature(forward)
    if not set(_INPUTS) <= set(signature.parameters):
        return None

    def sample(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        given = signature.bind(module, *args, **kwargs).arguments
        return _sample(*(given[name] for name in _INPUTS))

    return lp.rewrite(sample, layers=(ms_deform_attn,))


def _sample(value: Tensor, value_spatial_shapes: Any, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    sizes = value_spatial_shapes
    if not isinstance(sizes, Tensor):
        sizes = torch.tensor(sizes, dtype=torch.int64, device=value.device)
    result: Tensor = ms_deform_attn(value, sizes, sampling_locations, attention_weights)
    return result


def _sample_v2(
    value: Tensor,
    value_spatial_shapes: Any,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points_list: list[int],
    method: str = "default",
) -> Tensor:
    """The points of all levels on one axis.  Levels of unlike points, or read in another way, are no such layer."""
    if method != "default" or len(set(num_points_list)) != 1:
        raise ValueError(
            f"ms_deform_attn: method is {method!r}, points are {num_points_list}; it reads as many of each level"
        )
    levels = (len(num_points_list), num_points_list[0])
    locations, weights = sampling_locations.unflatten(3, levels), attention_weights.unflatten(3, levels)
    return _sample(value, value_spatial_shapes, locations, weights)


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "multi_scale_deformable_attention": _sample,
    "multi_scale_deformable_attn_pytorch": _sample,
    "multi_scale_deformable_attention_v2": _sample_v2,
}
