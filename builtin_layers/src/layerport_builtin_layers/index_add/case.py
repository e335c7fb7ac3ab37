"""What `layerport_builtin::index_add` is tested and measured with."""

from __future__ import annotations

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.index_add.reference import index_add


def _shape(reason: str, index: list[int] | int, rows: int, *sizes: int, gpu_only: bool = False) -> CaseShape:
    """index: of each row of source, or how many there are, which go through the rows in steps of 7."""
    if isinstance(index, int):
        index = [place * 7 % rows for place in range(index)]
    return CaseShape(
        reason,
        {"base": (rows, *sizes), "index": (len(index),), "source": (len(index), *sizes)},
        values={"index": index},
        gpu_only=gpu_only,
    )


CASE = LayerCase(
    layer=index_add,
    shapes=(
        _shape("one row, one number", [0], 1, 1),
        _shape("equal indices, and a row without any", [3, 0, 3, 3, 1], 5, 3),
        _shape("rows of single numbers", 37, 11),
        _shape("a prime of rows with further axes", 131, 17, 5, 3),
        _shape("all to one row", [2] * 50, 4, 16),
        _shape("more packs than a block", 150, 140, 8, 4),
        _shape("nothing to add", 0, 3, 5),
        _shape("no rows", 0, 0, 4),
        _shape("messages of a graph as large as Cora", 10556, 2708, 128, gpu_only=True),
        _shape("points in pillars of 64 channels", 60000, 12000, 64, gpu_only=True),
    ),
    dtypes=tuple(
        {"index": index, "*": one} for index in ("int64", "int32") for one in ("float32", "float16", "bfloat16")
    ),
    # Sums may cancel, and their order is not fixed.
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(1e-5, 1e-6),
        "float16": Tolerance(1e-5, 1e-3),
        "bfloat16": Tolerance(1e-5, 8e-3),
    },
)
