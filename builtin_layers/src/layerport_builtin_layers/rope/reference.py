"""The layer `layerport_builtin::rope`: what it computes, and how its kernel is launched.

No claim goes with it: it is a few lines in the forward of an attention, and found there by its reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

import layerport as lp

_THREADS = 64  # few, so that the rows of one token spread over many multiprocessors
_NARROW_BYTES = 512  # a row for 8 lanes: pairs of packs of 16 bytes, two rounds at most
_GROUPS = 2**15  # of 8 lanes: about what a large GPU holds at once; fewer groups would leave parts of it idle
_MOST_BLOCKS = 2**31 - 1


@lp.layer("layerport_builtin::rope", version=1)
def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary position embedding of Su et al. (2021), "RoFormer", halves rotated against each other.

    x: (batch, heads, positions, width), floating point.  cos, sin: (batch or 1, positions, rotary), of x's dtype or
    float32; rotary is even and at most the width.  The first `rotary` elements of each row become
    x * cos + (-second half, first half) * sin; the others stay as they are.
    Computed in float32 (float64 for float64) and rounded once, at the end.  Returns a tensor like x.
    Raises ValueError for shapes that do not fit.
    """
    # A symbolic size is not asked whether it is 1: the answer would hold for some sizes only.
    one_table = cos.ndim == 3 and isinstance(cos.shape[0], int) and cos.shape[0] == 1
    if (
        (x.ndim, cos.ndim, sin.ndim) != (4, 3, 3)
        or cos.shape != sin.shape
        or cos.shape[1] != x.shape[2]
        or (not one_table and cos.shape[0] != x.shape[0])
        or cos.shape[2] % 2 != 0
        or cos.shape[2] > x.shape[3]
    ):
        raise ValueError(
            f"rope: shapes do not fit: x {list(x.shape)}, cos {list(cos.shape)}, sin {list(sin.shape)}; give x: "
            "(batch, heads, positions, width), cos and sin: (batch or 1, positions, an even number up to the width)"
        )
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rotary = cos.shape[2]
    half = rotary // 2
    part = x[..., :rotary].to(wide)
    turned = torch.cat((-part[..., half:], part[..., :half]), dim=-1)
    result = part * cos.unsqueeze(1).to(wide) + turned * sin.unsqueeze(1).to(wide)
    if rotary == x.shape[3]:
        return result.to(x.dtype)
    return torch.cat((result.to(x.dtype), x[..., rotary:]), dim=-1)


@rope.kernel(
    lp.cuda("kernel.cu", "rope<{x}, {cos}>"),
    dtypes=(
        "float32",
        "float16",
        "bfloat16",
        {"cos": "float32", "sin": "float32", "*": "float16"},
        {"cos": "float32", "sin": "float32", "*": "bfloat16"},
    ),
    name="rope",
)
def launch(x: lp.TensorType, cos: lp.TensorType, sin: lp.TensorType, y: lp.TensorType) -> lp.Launch:
    lanes = lp.where(x.shape[3] * x.itemsize <= _NARROW_BYTES, 8, 32)
    groups_of_block = _THREADS // lanes
    batch, heads, positions, width = x.shape
    part = lp.maximum(lp.minimum(batch * heads * positions // _GROUPS, heads), 1)
    parts = lp.cdiv(heads, part)
    groups = batch * parts * positions
    return lp.Launch(
        grid=lp.minimum(lp.cdiv(groups, groups_of_block), _MOST_BLOCKS),
        block=(lanes, groups_of_block),
        args=(x, cos, sin, y, groups, parts, part, heads, positions, width, cos.shape[2], cos.shape[0]),
    )
