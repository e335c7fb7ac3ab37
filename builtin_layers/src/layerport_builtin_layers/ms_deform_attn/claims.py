"""Which modules sample as `ms_deform_attn` does: a class of its own, or a function that a module calls or holds.

transformers has the class `MultiScaleDeformableAttention` in many models (Deformable DETR, RT-DETR, Grounding DINO)
and a function in others (Mask2Former, OneFormer, RT-DETR v2; D-FINE holds it, as the authors' RT-DETR does); all come
from the operator of Deformable DETR, as mmcv's does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

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
    for name, value in vars(module).items():
        if inspect.isfunction(value) and (held := _FUNCTIONS.get(value.__name__)) is not None:
            return lp.rewrite(_with_held(name, held), layers=(ms_deform_attn,))
    signature = inspect.signature(forward)
    if not set(_INPUTS) <= set(signature.parameters):
        return None

    def sample(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        given = signature.bind(module, *args, **kwargs).arguments
        return _sample(*(given[name] for name in _INPUTS))

    return lp.rewrite(sample, layers=(ms_deform_attn,))


def _with_held(name: str, call: Callable[..., Tensor]) -> Callable[..., Any]:
    """The module's own forward, in which it holds another function by this name."""

    def forward(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        own = vars(module)
        before, own[name] = own[name], call
        try:
            return type(module).forward(module, *args, **kwargs)
        finally:
            own[name] = before

    return forward


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
    """The points of all levels on one axis.  Those that are read in another way are no such layer."""
    if method != "default":
        raise ValueError(f"ms_deform_attn: method is {method!r}; it reads points between their four pixels")
    most = max(num_points_list)
    if set(num_points_list) == {most}:
        levels = (len(num_points_list), most)
        locations, weights = sampling_locations.unflatten(3, levels), attention_weights.unflatten(3, levels)
    else:
        # Levels with fewer points get some outside of the map, of no weight.
        parts = zip(
            sampling_locations.split(num_points_list, 3), attention_weights.split(num_points_list, 3), strict=True
        )
        padded = [
            (
                functional.pad(one, (0, 0, 0, most - one.shape[3]), value=-2.0),
                functional.pad(of, (0, most - of.shape[3])),
            )
            for one, of in parts
        ]
        locations, weights = (torch.stack(each, 3) for each in zip(*padded, strict=True))
    return _sample(value, value_spatial_shapes, locations, weights)


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "multi_scale_deformable_attention": _sample,
    "multi_scale_deformable_attn_pytorch": _sample,
    "multi_scale_deformable_attention_v2": _sample_v2,
    # Those of the authors of Deformable DETR and of RT-DETR.
    "ms_deform_attn_core_pytorch": _sample,
    "deformable_attention_core_func": _sample,
}
