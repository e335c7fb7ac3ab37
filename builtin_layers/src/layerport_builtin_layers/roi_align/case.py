"""What `layerport_builtin::roi_align` is tested and measured with."""

from __future__ import annotations

from typing import Any

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.roi_align.reference import roi_align


def _shape(
    reason: str, x: tuple[int, ...], boxes: list[list[float]] | int, *, gpu_only: bool = False, **attributes: Any
) -> CaseShape:
    """boxes: image, left, top, right, bottom of each, or how many are counted over the images."""
    if isinstance(boxes, int):
        boxes = [_box(number, x[0]) for number in range(boxes)]
    return CaseShape(
        reason, {"x": x, "boxes": (len(boxes), 5)}, gpu_only=gpu_only, values={"boxes": boxes}, attributes=attributes
    )


def _box(number: int, images: int) -> list[float]:
    """Boxes of an image of 1000 pixels, of many sizes, in eighths, which 16 bits hold."""
    left, top = number * 37 % 700, number * 91 % 650
    return [number % images, left + 0.125, top + 0.25, left + 20.5 + number % 29 * 10, top + 9.75 + number % 23 * 15]


_LOOSE = [
    [0, -4.5, -3.0, 2.25, 20.5],  # beyond three edges
    [1, 30.0, 40.0, 50.0, 60.0],  # wholly outside
    [0, -900.0, -700.0, 800.0, 1000.0],  # far larger than the map
    [1, 5.0, 5.0, 3.0, 1.0],  # turned around
    [1, 2.0, 3.0, 2.0, 3.0],  # without an extent
]

CASE = LayerCase(
    layer=roi_align,
    shapes=(
        _shape("one of everything", (1, 1, 1, 1), [[0, 0, 0, 1, 1]], output_size=[1, 1]),
        _shape(
            "two points along an axis",
            (2, 3, 6, 7),
            [[1, 1, 0.5, 5, 4.75], [0, 2, 2, 6, 5]],
            output_size=[2, 3],
            sampling_ratio=2,
        ),
        _shape("as many points as pixels", (2, 5, 9, 8), [[0, 0.5, 1, 7.25, 8], [1, 2, 2, 3, 7]], output_size=[3, 2]),
        _shape(
            "centres of pixels",
            (2, 5, 9, 8),
            [[0, 0.5, 1, 7.25, 8], [1, 2, 2, 2.5, 7]],
            output_size=[3, 2],
            aligned=True,
        ),
        _shape("boxes of any kind", (2, 2, 7, 6), _LOOSE, output_size=[2, 2]),
        _shape("boxes of any kind, centres", (2, 2, 7, 6), _LOOSE, output_size=[2, 2], aligned=True),
        _shape(
            "boxes of any kind, one point", (2, 2, 7, 6), _LOOSE, output_size=[2, 2], aligned=True, sampling_ratio=1
        ),
        _shape(
            "a map of 1 to 32 and seven bins",
            (2, 9, 31, 30),
            11,
            output_size=[7, 7],
            spatial_scale=0.03125,
            sampling_ratio=2,
        ),
        _shape(
            "the largest in boxes of any kind", (2, 5, 7, 6), _LOOSE, output_size=[2, 2], aligned=True, pool_mode="max"
        ),
        _shape("no boxes", (1, 2, 4, 4), [], output_size=[7, 7]),
        _shape(
            "the boxes of Mask R-CNN",
            (1, 256, 200, 336),
            1000,
            output_size=[7, 7],
            spatial_scale=0.25,
            gpu_only=True,
            sampling_ratio=2,
        ),
        _shape(
            "the same, the largest points",
            (1, 256, 200, 336),
            1000,
            output_size=[7, 7],
            spatial_scale=0.25,
            gpu_only=True,
            sampling_ratio=2,
            pool_mode="max",
        ),
    ),
    dtypes=(
        "float32",
        "float16",
        "bfloat16",
        {"boxes": "float32", "*": "float16"},
        {"boxes": "float32", "*": "bfloat16"},
    ),
    # The place of a point is rounded, relative to the size of the map.
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(1e-5, 1e-5),
        "float16": Tolerance(1e-4, 1e-3),
        "bfloat16": Tolerance(1e-3, 8e-3),
    },
)
