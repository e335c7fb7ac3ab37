"""The layer `layerport_builtin::group_norm_silu`: what it computes, and how its kernel is launched."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import layerport as lp
from layerport_builtin_layers.refused import refuse_eps, refuse_other_than_floats
from layerport_builtin_layers.row_launches import CENTRED_DTYPES

_THREADS = 512
_PIECE = 8192  # items that a block of pieces.cu keeps in registers
_MOST_PIECES = 512  # each block reads what the first launch wrote for all pieces of its group


@lp.layer("layerport_builtin::group_norm_silu", version=1, find=False)
def group_norm_silu(x: Tensor, groups: int, weight: lp.Param, bias: lp.Param, eps: float = 1e-5) -> Tensor:
    """silu(v) of the group normalisation v = (x - mean) * rsqrt(var + eps) * weight + bias (Wu and He, 2018).

    x: (batch, C, ...), floating point, an image or a video with its channels first.  mean and var are those of one
    image and one of `groups` equal parts of the channels.  weight, bias: (C,), of x's dtype or float32.
    Computed in float32 (float64 for float64) and rounded once, at the end.  Returns a tensor like x.
    Raises ValueError for shapes, dtypes or groups that do not fit.
    """
    refuse_other_than_floats("group_norm_silu", x=x, weight=weight, bias=bias)
    refuse_eps("group_norm_silu", eps)
    if x.ndim < 2 or weight.shape != x.shape[1:2] or bias.shape != x.shape[1:2]:
        raise ValueError(
            f"group_norm_silu: shapes do not fit: x {list(x.shape)}, weight {list(weight.shape)}, bias "
            f"{list(bias.shape)}; give x: (batch, C, ...), weight: (C,) and bias: (C,)"
        )
    if groups < 1 or x.shape[1] % groups != 0:
        raise ValueError(f"group_norm_silu: {groups} groups of {x.shape[1]} channels; give a divisor of the channels")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    result = torch.group_norm(x.to(wide), groups, weight.to(wide), bias.to(wide), eps)
    return torch.nn.functional.silu(result).to(x.dtype)


@group_norm_silu.kernel(
    lp.cuda("pieces.cu", "group_norm_moments<{x}>"),
    lp.cuda("pieces.cu", "group_norm_apply<{x}, {weight}>"),
    dtypes=CENTRED_DTYPES,
    when=lambda x, groups: x.shape[1] // groups * math.prod(x.shape[2:]) > _PIECE,
    name="group_norm_silu_pieces",
)
def launch_pieces(
    x: lp.TensorType, groups: int, weight: lp.TensorType, bias: lp.TensorType, eps: float, y: lp.TensorType
) -> tuple[lp.Launch, ...]:
    channels, pixels = x.shape[1] // groups, math.prod(x.shape[2:])
    count = channels * pixels
    pieces = lp.minimum(lp.cdiv(count, _PIECE), _MOST_PIECES)
    blocks = x.shape[0] * groups * pieces
    moments = lp.scratch((blocks, 2), "float32")
    return (
        lp.Launch(grid=blocks, block=256, args=(x, moments, pieces, count)),
        lp.Launch(
            grid=blocks,
            block=256,
            args=(x, moments, weight, bias, y, groups, channels, pixels, pieces, count, eps),
        ),
    )


@group_norm_silu.kernel(
    lp.cuda("kernel.cu", "group_norm_silu<{x}, {weight}>"), dtypes=CENTRED_DTYPES, name="group_norm_silu"
)
def launch(
    x: lp.TensorType, groups: int, weight: lp.TensorType, bias: lp.TensorType, eps: float, y: lp.TensorType
) -> lp.Launch:
    channels, pixels = x.shape[1] // groups, math.prod(x.shape[2:])
    return lp.Launch(
        grid=x.shape[0] * groups,
        block=_THREADS,
        args=(x, weight, bias, y, groups, channels, pixels, channels * pixels, eps),
    )
