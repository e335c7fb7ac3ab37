"""The layer `layerport_builtin::local_correlation`: what it computes, and how its kernel is launched."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import layerport as lp

_PIXELS = 32  # of a block, as in kernel.cu
_LARGEST = 8  # radius, of which a block's shared memory holds the window


@lp.layer("layerport_builtin::local_correlation", version=1, find=False, purpose="fusion that TensorRT lacks")
def local_correlation(left: Tensor, right: Tensor, places: Tensor, radius: int = 4) -> Tensor:
    """The lookup of RAFT: Teed and Deng (2020), "RAFT", section 3.2, without the volume of all pairs.

    left: (batch, channels, height, width).  right: (batch, channels, rows, columns), pooled for the lower levels of a
    pyramid.  places: (batch, 2, height, width): x and y, in pixels of right, of the middle of each pixel's window.  All
    of one floating-point dtype.
    radius: of the window, from 0 to 8.
    Each pixel of left is multiplied with right at the (2 * radius + 1)**2 places of its window, read between four
    pixels with zeros outside, and divided by the root of the channels; what is not finite lies outside.
    Returns (batch, (2 * radius + 1)**2, height, width) of left's dtype: first along x, then along y.  Computed in
    float32 (float64 for float64) and rounded once, at the end.  Raises ValueError for what does not fit.
    """
    _refuse(left, right, places, radius)
    wide = torch.float64 if left.dtype == torch.float64 else torch.float32
    batch, channels, height, width = left.shape
    rows, columns = right.shape[2:]
    side = 2 * radius + 2  # the pixels along an axis between which a window lies
    volume = left.to(wide).flatten(2).transpose(1, 2) @ right.to(wide).flatten(2)
    x, y = (one.flatten(1) for one in places.to(wide).unbind(1))
    near = (x > -1 - radius) & (x < columns + radius) & (y > -1 - radius) & (y < rows + radius)
    # A place that is not finite would reach the gradients; this one lies outside with its whole window.
    x, y = torch.where(near, x, -2.0 - radius), torch.where(near, y, -2.0 - radius)
    first_x, first_y = x.floor() - radius, y.floor() - radius
    step = torch.arange(side, device=left.device)
    column = (first_x.to(torch.int64).unsqueeze(2) + step).unsqueeze(2)
    row = (first_y.to(torch.int64).unsqueeze(2) + step).unsqueeze(3)
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    pixel = torch.where(inside, row * columns + column, 0).flatten(2)
    found = torch.where(inside, volume.gather(2, pixel).reshape(inside.shape), 0.0)
    across, down = ((one - one.floor()).reshape(batch, height * width, 1, 1) for one in (x, y))
    found = found[..., :-1] * (1 - across) + found[..., 1:] * across
    found = found[..., :-1, :] * (1 - down) + found[..., 1:, :] * down
    result = found.transpose(2, 3).flatten(2).transpose(1, 2) / math.sqrt(channels)
    return result.reshape(batch, (2 * radius + 1) ** 2, height, width).to(left.dtype)


def _refuse(left: Tensor, right: Tensor, places: Tensor, radius: int) -> None:
    if not 0 <= radius <= _LARGEST:
        raise ValueError(f"local_correlation: radius is {radius}; give one from 0 to {_LARGEST}")
    given = {"left": left, "right": right, "places": places}
    # A symbolic size is not asked whether it is 0: the answer would hold for some sizes only.
    if (
        any(one.ndim != 4 for one in given.values())
        or left.shape[:2] != right.shape[:2]
        or (places.shape[0], *places.shape[2:]) != (left.shape[0], *left.shape[2:])
        or places.shape[1] != 2
        or any(isinstance(size, int) and size == 0 for size in (left.shape[1], *right.shape[2:]))
    ):
        shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in given.items())
        raise ValueError(
            f"local_correlation: shapes do not fit: {shapes}; give left: (batch, channels, height, width), right: "
            "(batch, channels, rows, columns) with at least one pixel, places: (batch, 2, height, width)"
        )
    if len({one.dtype for one in given.values()}) != 1 or not left.is_floating_point():
        dtypes = ", ".join(f"{name} {one.dtype}" for name, one in given.items())
        raise ValueError(f"local_correlation: dtypes do not fit: {dtypes}; give all in one floating-point dtype")


@local_correlation.kernel(
    lp.cuda("kernel.cu", "local_correlation<{left}, {radius}>"),
    dtypes=("float32", "float16", "bfloat16"),
    name="local_correlation",
)
def launch(
    left: lp.TensorType, right: lp.TensorType, places: lp.TensorType, y: lp.TensorType, radius: int
) -> lp.Launch:
    batch, channels, height, width = left.shape
    pixels = height * width
    return lp.Launch(
        grid=(lp.cdiv(pixels, _PIXELS), batch),
        block=(_PIXELS, 2 * radius + 2),
        args=(left, right, places, y, channels, pixels, right.shape[2], right.shape[3]),
    )
