"""The layer `layerport_builtin::ms_deform_attn`: what it computes, and how its kernel is launched."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import layerport as lp

_THREADS = 256


@lp.layer("layerport_builtin::ms_deform_attn", version=1, find=False, purpose="wrong in TensorRT")
def ms_deform_attn(value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The sampling of multi-scale deformable attention: Zhu et al. (2021), "Deformable DETR", equation 3.

    value: (batch, pixels, heads, channels), floating point: the maps of all levels, one behind the other, row by row.
    sizes: (levels, 2), int64: height and width of each map, which add up to the pixels.
    locations: (batch, queries, heads, levels, points, 2): x and y of each point, where 0 and 1 are the edges of a map.
    weights: (batch, queries, heads, levels, points).  Both of one dtype: value's or float32.
    Each point is read between its four pixels, with zeros outside the map, and the points of a head are summed by
    their weights.  Computed in float32 (float64 for float64) and rounded once, at the end.
    Returns (batch, queries, heads * channels) of value's dtype.  Raises ValueError for shapes and dtypes that do not
    fit; on the CPU also RuntimeError for sizes that do not add up, where a kernel reads zeros past the pixels.
    """
    _refuse(value, sizes, locations, weights)
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    batch, pixels, heads, channels = value.shape
    heights, widths = sizes[:, :1], sizes[:, 1:]
    areas = heights * widths
    lp.check_values(
        (areas.sum() == pixels) & (sizes >= 0).all(),
        "ms_deform_attn: sizes do not add up to the pixels of value; give the height and width of each level",
    )
    x = locations[..., 0].to(wide) * widths - 0.5
    y = locations[..., 1].to(wide) * heights - 0.5
    near = (x > -1) & (x < widths) & (y > -1) & (y < heights)
    # A location that is not finite would reach the gradients through the pixels that it does not have.
    x, y = torch.where(near, x, -2.0), torch.where(near, y, -2.0)
    left, top = x.floor(), y.floor()
    images = torch.arange(batch, device=value.device).reshape(-1, 1, 1, 1, 1)
    parts = torch.arange(heads, device=value.device).reshape(-1, 1, 1)
    starts = areas.cumsum(0) - areas
    sampled: Tensor | float = 0.0
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        share = (1 - (x - column).abs()) * (1 - (y - row).abs())
        inside = (column >= 0) & (column < widths) & (row >= 0) & (row < heights)
        pixel = torch.where(inside, starts + row.to(torch.int64) * widths + column.to(torch.int64), 0)
        found = torch.where(inside.unsqueeze(-1), value[images, pixel, parts].to(wide), 0.0)
        sampled = sampled + found * share.unsqueeze(-1)
    result = (sampled * weights.unsqueeze(-1).to(wide)).sum((3, 4))
    return result.reshape(batch, locations.shape[1], heads * channels).to(value.dtype)


def _refuse(value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor) -> None:
    shapes = (
        f"value {list(value.shape)}, sizes {list(sizes.shape)}, locations {list(locations.shape)}, "
        f"weights {list(weights.shape)}"
    )
    if (
        (value.ndim, sizes.ndim, locations.ndim, weights.ndim) != (4, 2, 6, 5)
        or sizes.shape[1] != 2
        or locations.shape[5] != 2
        or locations.shape[:5] != weights.shape
        or (locations.shape[0], locations.shape[2]) != (value.shape[0], value.shape[2])
        or locations.shape[3] != sizes.shape[0]
    ):
        raise ValueError(
            f"ms_deform_attn: shapes do not fit: {shapes}; give value: (batch, pixels, heads, channels), "
            "sizes: (levels, 2), locations: (batch, queries, heads, levels, points, 2), weights: the same without the 2"
        )
    if (
        sizes.dtype != torch.int64
        or locations.dtype != weights.dtype
        or locations.dtype not in (value.dtype, torch.float32)
        or not value.is_floating_point()
    ):
        raise ValueError(
            f"ms_deform_attn: dtypes do not fit: value {value.dtype}, sizes {sizes.dtype}, "
            f"locations {locations.dtype}, weights {weights.dtype}; "
            "give sizes in int64, locations and weights both in value's dtype or float32"
        )


@ms_deform_attn.kernel(
    lp.cuda("kernel.cu", "ms_deform_attn<{value}, {weights}>"),
    dtypes=(
        {"sizes": "int64", "*": "float32"},
        {"sizes": "int64", "*": "float16"},
        {"sizes": "int64", "*": "bfloat16"},
        {"sizes": "int64", "locations": "float32", "weights": "float32", "*": "float16"},
        {"sizes": "int64", "locations": "float32", "weights": "float32", "*": "bfloat16"},
    ),
    name="ms_deform_attn",
)
def launch(
    value: lp.TensorType, sizes: lp.TensorType, locations: lp.TensorType, weights: lp.TensorType, y: lp.TensorType
) -> lp.Launch:
    _, pixels, heads, channels = value.shape
    _, queries, _, levels, points = weights.shape
    count = math.prod(weights.shape[:3]) * lp.cdiv(channels, 16 // value.itemsize)
    return lp.Launch(
        grid=lp.cdiv(count, _THREADS),
        block=_THREADS,
        args=(value, sizes, locations, weights, y, count, pixels, queries, heads, channels, levels, points),
    )
