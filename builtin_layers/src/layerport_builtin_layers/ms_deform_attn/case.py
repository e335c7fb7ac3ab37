"""What `layerport_builtin::ms_deform_attn` is tested and measured with."""

from __future__ import annotations

import torch

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.ms_deform_attn.reference import ms_deform_attn


def _shape(
    reason: str, *of_value: int, levels: list[tuple[int, int]], queries: int, points: int, gpu_only: bool = False
) -> CaseShape:
    batch, heads, channels = of_value
    weights = (batch, queries, heads, len(levels), points)
    shapes = {
        "value": (batch, sum(height * width for height, width in levels), heads, channels),
        "sizes": (len(levels), 2),
        "locations": (*weights, 2),
        "weights": weights,
    }
    return CaseShape(reason, shapes, gpu_only=gpu_only, values={"sizes": levels})


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal values; locations lie around the map too, so that each point has from none to four pixels inside."""
    wide = torch.float64 if generator.device.type == "cpu" else torch.float32
    values = torch.randn(shape, generator=generator, dtype=wide, device=generator.device)
    return 0.5 + 0.4 * values if name == "locations" else values


# A backbone's maps of an image of 800 x 1333.
_MAPS = [(100, 167), (50, 84), (25, 42), (13, 21)]

CASE = LayerCase(
    layer=ms_deform_attn,
    shapes=(
        _shape("one pixel", 1, 1, 1, levels=[(1, 1)], queries=1, points=1),
        _shape("two levels of one size", 2, 3, 4, levels=[(2, 3), (2, 3)], queries=5, points=2),
        _shape("less than a pack, a prime of queries", 2, 2, 3, levels=[(3, 4), (2, 2)], queries=7, points=3),
        _shape("heads of 32", 1, 2, 32, levels=[(6, 9), (3, 5), (2, 3), (1, 2)], queries=11, points=4),
        _shape("a pack and a part", 2, 2, 21, levels=[(7, 3), (1, 5)], queries=4, points=2),
        _shape("more than a block", 2, 4, 32, levels=[(8, 8), (4, 4)], queries=37, points=1),
        _shape("no queries", 1, 2, 8, levels=[(2, 3)], queries=0, points=4),
        _shape("no points", 1, 2, 8, levels=[(2, 3)], queries=3, points=0),
        _shape("an encoder of Deformable DETR", 1, 8, 32, levels=_MAPS, queries=22223, points=4, gpu_only=True),
        _shape("a decoder of Deformable DETR", 2, 8, 32, levels=_MAPS, queries=300, points=4, gpu_only=True),
    ),
    dtypes=(
        {"sizes": "int64", "*": "float32"},
        {"sizes": "int64", "*": "float16"},
        {"sizes": "int64", "*": "bfloat16"},
        {"sizes": "int64", "locations": "float32", "weights": "float32", "*": "float16"},
        {"sizes": "int64", "locations": "float32", "weights": "float32", "*": "bfloat16"},
    ),
    # The reference rounds the place between two pixels in float32, relative to the width of the map, the kernel does
    # not; then the sum is rounded.
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(1e-5, 1e-5),
        "float16": Tolerance(1e-4, 1e-3),
        "bfloat16": Tolerance(1e-3, 8e-3),
    },
    draw=_draw,
)
