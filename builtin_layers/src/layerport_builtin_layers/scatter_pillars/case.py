"""What `layerport_builtin::scatter_pillars` is tested and measured with."""

from __future__ import annotations

from layerport.testing import CaseShape, LayerCase
from layerport_builtin_layers.scatter_pillars.reference import scatter_pillars


def _shape(
    reason: str, places: list[list[int]] | int, channels: int, *of_map: int, gpu_only: bool = False
) -> CaseShape:
    """places: of each pillar, or how many are counted over a map that is a little larger than it is."""
    batch, height, width = of_map
    if isinstance(places, int):
        places = [[i % batch, 0, i * 7 % (height + 2) - 1, i * 5 % (width + 2) - 1] for i in range(places)]
    return CaseShape(
        reason,
        {"features": (len(places), channels), "places": (len(places), 4)},
        attributes={"batch": batch, "height": height, "width": width},
        values={"places": places},
        gpu_only=gpu_only,
    )


_SEVERAL = [[0, 1, 2, 3], [1, 5, 2, 3], [0, 0, 2, 3], [0, 0, 4, 0]]

CASE = LayerCase(
    layer=scatter_pillars,
    shapes=(
        _shape("one pillar, one cell", [[0, 0, 0, 0]], 1, 1, 1, 1),
        _shape(
            "several at one place, and outside", [[0, 1, 2, 3], [1, 5, 2, 3], [0, 0, 2, 3], [0, 0, 4, 0]], 3, 2, 4, 5
        ),
        _shape("a prime of pillars, two samples", 131, 5, 2, 7, 9),
        _shape("more cells than a block", 300, 2, 1, 23, 29),
        _shape("padding only", [[-1, -1, -1, -1], [0, 0, -1, 1], [0, 0, 1, 9], [2, 0, 0, 0]], 2, 2, 3, 4),
        _shape("no pillars", 0, 4, 1, 2, 3),
        _shape("PointPillars of KITTI", 12000, 64, 1, 496, 432, gpu_only=True),
    ),
    dtypes=tuple(
        {"places": index, "*": one} for index in ("int64", "int32") for one in ("float32", "float16", "bfloat16")
    ),
    tolerances={},
)
