"""The layer `layerport_builtin::rope`: what it computes, and how its kernel is launched.

No claim goes with it: it is a few lines in the forward of an attention, and found there by its reference.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

import layerport as lp

_THREADS = 64  # few, so that the rows of one token spread over many multiprocessors
_NARROW_BYTES = 512  # a row for 8 lanes: pairs of packs of 16 bytes, two rounds at most
_GROUPS = 2**15  # of 8 lanes: about what a large GPU holds at once; fewer groups would leave parts of it idle
_MOST_BLOCKS = 2**31 - 1


_DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    {"cos": "float32", "sin": "float32", "*": "float16"},
    {"cos": "float32", "sin": "float32", "*": "bfloat16"},
)


@lp.layer("layerport_builtin::rope", version=1)
def rope(
    x: Tensor, cos: Tensor, sin: Tensor, form: Literal["halves", "interleaved", "interleaved_first"] = "halves"
) -> Tensor:
    """The rotary position embedding of Su et al. (2021), "RoFormer".

    x: (batch, heads, positions, width), floating point.  cos, sin: (batch or 1, positions, rotary), of x's dtype or
    float32; rotary is even and at most the width.  The first `rotary` elements of each row become
    x * cos + turned * sin; the others stay as they are.
    form: which elements are rotated against each other.  halves: turned is (-second half, first half).  interleaved:
    neighbours are, turned is (-x1, x0, -x3, x2, ...).  interleaved_first: the same, and both of the neighbours 2i and
    2i + 1 have the angle of column i of cos and sin; the second half of these is not read.
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
    by_cos, by_sin = cos.unsqueeze(1).to(wide), sin.unsqueeze(1).to(wide)
    if form == "interleaved_first":
        by_cos, by_sin = (one[..., :half].repeat_interleave(2, dim=-1) for one in (by_cos, by_sin))
    if form == "halves":
        turned = torch.cat((-part[..., half:], part[..., :half]), dim=-1)
    else:
        turned = torch.stack((-part[..., 1::2], part[..., ::2]), dim=-1).flatten(-2)
    result = part * by_cos + turned * by_sin
    if rotary == x.shape[3]:
        return result.to(x.dtype)
    return torch.cat((result.to(x.dtype), x[..., rotary:]), dim=-1)


def _kernel(name: str, is_interleaved: bool) -> None:
    @rope.kernel(
        lp.cuda("kernel.cu", f"{name}<{{x}}, {{cos}}>"),
        dtypes=_DTYPES,
        when=lambda form: (form != "halves") == is_interleaved,
        name=name,
    )
    def launch(x: lp.TensorType, cos: lp.TensorType, sin: lp.TensorType, form: str, y: lp.TensorType) -> lp.Launch:
        lanes = lp.where(x.shape[3] * x.itemsize <= _NARROW_BYTES, 8, 32)
        groups_of_block = _THREADS // lanes
        batch, heads, positions, width = x.shape
        part = lp.maximum(lp.minimum(batch * heads * positions // _GROUPS, heads), 1)
        parts = lp.cdiv(heads, part)
        groups = batch * parts * positions
        told = (form == "interleaved_first",) if is_interleaved else ()
        return lp.Launch(
            grid=lp.minimum(lp.cdiv(groups, groups_of_block), _MOST_BLOCKS),
            block=(lanes, groups_of_block),
            args=(x, cos, sin, y, groups, parts, part, heads, positions, width, cos.shape[2], cos.shape[0], *told),
        )


_kernel("rope", False)
_kernel("rope_interleaved", True)
