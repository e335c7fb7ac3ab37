"""The layer `layerport_builtin::grid_sample`: what it computes, and how its kernels are launched."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

import layerport as lp

_THREADS, _CHANNELS, _MOST_BLOCKS = 256, 4, 65535  # the first two as in kernel.cu
_FAR = 1e6  # beyond any map, and far from what float32 holds
_Mode = Literal["bilinear", "nearest", "bicubic"]
_Padding = Literal["zeros", "border", "reflection"]
_PADDINGS = get_args(_Padding)  # in the order of kernel.cu
_AXES = {4: "(batch, channels, height, width)", 5: "(batch, channels, depth, height, width)"}


@lp.layer("layerport_builtin::grid_sample", version=1, find=False, purpose="other precision or layout")
def grid_sample(
    x: Tensor, grid: Tensor, mode: _Mode = "bilinear", padding_mode: _Padding = "zeros", align_corners: bool = False
) -> Tensor:
    """A map read between its pixels at the places of a grid, as `torch.nn.functional.grid_sample` does.

    x: (batch, channels, height, width) or (batch, channels, depth, height, width), floating point.
    grid: (batch, *output, 2) or (batch, *output, 3) with as many axes as x, of x's dtype or float32: x, y (and z) of
    each place, where -1 and 1 are the outer edges of the map, or with align_corners the middles of its outer pixels.
    mode: "bilinear" (trilinear in three dimensions), "nearest" (halves to the even pixel), or in two "bicubic", the
    convolution of Keys (1981) with -0.75.
    padding_mode: what lies outside: "zeros", the next pixel of the "border", or a "reflection" in the edges.
    Places are computed in float32 (float64 for float64), whatever x is, and the result is rounded once, at the end.
    Where a coordinate is not finite "bicubic" gives NaN; the others give what Torch gives on a GPU: zeros padding
    reads zero, border takes an infinity as the edge and NaN as the first pixel, reflection the first pixel.
    Returns (batch, channels, *output) of x's dtype.  Raises ValueError for shapes, dtypes and attributes that do not
    fit.
    """
    _refuse(x, grid, mode)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    values, places = x.to(wide), grid.to(wide)
    finite = places.isfinite()
    if padding_mode == "border" and mode != "bicubic":
        # At 2 a place is beyond any map, and farther ones read the same.
        places = torch.where(places > -2, places, -2.0)
        places = torch.where(places < 2, places, 2.0)
    else:
        places = torch.where(finite, places, -1.0)
        if padding_mode != "reflection":
            places = places.clamp(-_FAR, _FAR)
    result = torch.nn.functional.grid_sample(values, places, mode, padding_mode, align_corners)
    if mode == "bicubic" or padding_mode == "zeros":
        known = finite.all(-1).unsqueeze(1)
        result = torch.where(known, result, torch.nan if mode == "bicubic" else 0.0)
    return result.to(x.dtype)


@grid_sample.spelling
def of_torch(
    x: Tensor, grid: Tensor, mode: _Mode = "bilinear", padding_mode: _Padding = "zeros", align_corners: bool = False
) -> Tensor:
    """Torch's own function, which on a CPU takes a coordinate that is not finite otherwise from form to form."""
    return torch.nn.functional.grid_sample(x, grid, mode, padding_mode, align_corners)


def _refuse(x: Tensor, grid: Tensor, mode: str) -> None:
    # A symbolic size is not asked whether it is 0: the answer would hold for some sizes only.
    if (
        x.ndim not in _AXES
        or grid.ndim != x.ndim
        or grid.shape[0] != x.shape[0]
        or grid.shape[-1] != x.ndim - 2
        or any(isinstance(size, int) and size == 0 for size in x.shape[2:])
    ):
        raise ValueError(
            f"grid_sample: shapes do not fit: x {list(x.shape)}, grid {list(grid.shape)}; "
            f"give x: {_AXES[4]} or {_AXES[5]} with at least one pixel, "
            "grid: (batch, *output, 2) or (batch, *output, 3) with as many axes"
        )
    if mode == "bicubic" and x.ndim != 4:
        raise ValueError(f"grid_sample: mode is 'bicubic', x {list(x.shape)}; give x: {_AXES[4]}, or another mode")
    if not x.is_floating_point() or grid.dtype not in (x.dtype, torch.float32):
        raise ValueError(
            f"grid_sample: dtypes do not fit: x {x.dtype}, grid {grid.dtype}; "
            "give x in a floating-point dtype, grid in the same or in float32"
        )


def launch(
    x: lp.TensorType, grid: lp.TensorType, y: lp.TensorType, mode: str, padding_mode: str, align_corners: bool
) -> lp.Launch:
    batch, channels, *sizes = x.shape
    points = math.prod(y.shape[2:])
    groups = lp.minimum(lp.cdiv(channels, _CHANNELS), _MOST_BLOCKS)
    sizes = [1, *sizes][-3:]
    return lp.Launch(
        grid=(lp.cdiv(batch * points, _THREADS), groups),
        block=_THREADS,
        args=(x, grid, y, batch * points, points, channels, *sizes, _PADDINGS.index(padding_mode), align_corners),
    )


def _kernel(dims: int, wanted: str) -> None:
    """The kernel for maps of so many axes and one mode."""

    def takes(x: lp.TensorType, mode: str) -> bool:
        return len(x.shape) == dims + 2 and mode == wanted

    decorate: Callable[..., object] = grid_sample.kernel(
        lp.cuda("kernel.cu", f"{wanted}<{{x}}, {{grid}}, {dims}>"),
        dtypes=(
            "float32",
            "float16",
            "bfloat16",
            {"grid": "float32", "*": "float16"},
            {"grid": "float32", "*": "bfloat16"},
        ),
        when=takes,
        name=f"grid_sample_{wanted}_{dims}d",
    )
    decorate(launch)


for _dims, _wanted in ((2, "bilinear"), (2, "nearest"), (2, "bicubic"), (3, "bilinear"), (3, "nearest")):
    _kernel(_dims, _wanted)
