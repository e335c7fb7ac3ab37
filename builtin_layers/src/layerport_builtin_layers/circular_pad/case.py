"""What `layerport_builtin::circular_pad` is tested and measured with."""

from __future__ import annotations

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.circular_pad.reference import circular_pad


def _shape(reason: str, *x: int, pads: list[int], gpu_only: bool = False) -> CaseShape:
    return CaseShape(reason, {"x": x}, {"pads": pads}, gpu_only)


CASE = LayerCase(
    layer=circular_pad,
    shapes=(
        _shape("one element", 1, 1, pads=[1, 1, 1, 1]),
        _shape("image of a prime size", 2, 3, 11, 13, pads=[1, 2, 3, 4]),
        _shape("no other axis, one side only", 5, 7, pads=[0, 3, 0, 0]),
        _shape("more than once round", 2, 2, 3, pads=[4, 7, 5, 2]),
        _shape("no pads", 3, 4, 5, pads=[0, 0, 0, 0]),
        _shape("no images", 0, 4, 5, pads=[1, 1, 1, 1]),
        _shape("64 MB and more", 16, 64, 256, 256, pads=[1, 1, 1, 1], gpu_only=True),
        _shape("more than 2^31 elements", 513, 64, 256, 256, pads=[1, 1, 1, 1], gpu_only=True),
    ),
    dtypes=("float32", "float16", "bfloat16"),
    tolerances={name: Tolerance(0.0, 0.0) for name in ("float64", "float32", "float16", "bfloat16")},
)
