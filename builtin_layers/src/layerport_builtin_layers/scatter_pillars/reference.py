"""The layer `layerport_builtin::scatter_pillars`: what it computes, and how its kernel is launched."""

from __future__ import annotations

import torch
from torch import Tensor

import layerport as lp

_CELLS = 512  # of a block, as in kernel.cu


@lp.layer("layerport_builtin::scatter_pillars", version=1, find=False, purpose="not expressible")
def scatter_pillars(features: Tensor, places: Tensor, batch: int, height: int, width: int) -> Tensor:
    """The pseudo-image of Lang et al. (2019), "PointPillars", section 2.1: features of pillars written into a map.

    features: (pillars, channels), floating point.  places: (pillars, 4), int32 or int64: sample, z, row and column of
    each; z is not read.  batch, height, width: of the map.
    A pillar that lies outside of the map (padding, often -1) is left away; of several at one place the last one stays.
    Returns (batch, channels, height, width) of features' dtype, zeros where no pillar is.  Raises ValueError for
    shapes, dtypes and attributes that do not fit.
    """
    _refuse(features, places, batch, height, width)
    sample, _, row, column = places.to(torch.int64).unbind(1)
    inside = (sample >= 0) & (sample < batch) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    cells = batch * height * width
    # One more cell for those that lie outside, and one more pillar, of zeros, for cells without any.
    cell = torch.where(inside, (sample * height + row) * width + column, cells)
    number = torch.arange(1, features.shape[0] + 1, device=features.device)
    last = torch.zeros(cells + 1, dtype=torch.int64, device=features.device).scatter_reduce(0, cell, number, "amax")
    known = torch.cat((features.new_zeros(1, features.shape[1]), features))
    found = known[last[:cells]].reshape(batch, height, width, features.shape[1])
    return found.permute(0, 3, 1, 2)


def _refuse(features: Tensor, places: Tensor, batch: int, height: int, width: int) -> None:
    if (features.ndim, places.ndim) != (2, 2) or places.shape[1] != 4 or places.shape[0] != features.shape[0]:
        raise ValueError(
            f"scatter_pillars: shapes do not fit: features {list(features.shape)}, places {list(places.shape)}; "
            "give features: (pillars, channels), places: (pillars, 4), sample, z, row, column"
        )
    if min(batch, height, width) < 1:
        raise ValueError(
            f"scatter_pillars: batch is {batch}, height {height}, width {width}; give the map's, each from 1"
        )
    if not features.is_floating_point() or places.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"scatter_pillars: dtypes do not fit: features {features.dtype}, places {places.dtype}; "
            "give features in a floating-point dtype, places in int32 or int64"
        )


@scatter_pillars.kernel(
    lp.cuda("kernel.cu", "scatter_pillars<{features}, {places}>"),
    dtypes=tuple(
        {"places": index, "*": one} for index in ("int64", "int32") for one in ("float32", "float16", "bfloat16")
    ),
    name="scatter_pillars",
)
def launch(
    features: lp.TensorType, places: lp.TensorType, y: lp.TensorType, batch: int, height: int, width: int
) -> lp.Launch:
    pillars, channels = features.shape
    return lp.Launch(
        grid=(lp.cdiv(height * width, _CELLS), batch),
        block=256,
        args=(features, places, y, pillars, channels, height, width),
    )
