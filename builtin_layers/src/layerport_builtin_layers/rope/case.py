"""What `layerport_builtin::rope` is tested and measured with."""

from __future__ import annotations

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.rope.reference import rope


def _shape(
    reason: str,
    *x: int,
    rotary: int | None = None,
    tables: int | None = None,
    form: str = "halves",
    gpu_only: bool = False,
) -> CaseShape:
    table = (x[0] if tables is None else tables, x[2], x[3] if rotary is None else rotary)
    return CaseShape(reason, {"x": x, "cos": table, "sin": table}, {"form": form}, gpu_only)


CASE = LayerCase(
    layer=rope,
    shapes=(
        _shape("one pair", 1, 1, 1, 2),
        _shape("prime batch of small heads", 7, 2, 3, 16),
        _shape("five heads", 2, 5, 3, 16),
        _shape("one table for all", 3, 2, 5, 64, tables=1),
        _shape("a quarter is rotated", 2, 3, 5, 64, rotary=16),
        _shape("half is rotated, half of that no multiple of a pack", 2, 2, 3, 24, rotary=12),
        _shape("no multiple of a pack", 2, 3, 3, 10),
        _shape("an odd width behind the rotated part", 1, 3, 2, 11, rotary=6),
        _shape("heads of 128", 1, 2, 9, 128),
        _shape("wider than 8 lanes take in fp32", 1, 2, 3, 256),
        _shape("neighbours, no multiple of a pack", 2, 3, 3, 10, form="interleaved"),
        _shape("neighbours, an odd width behind them", 1, 3, 2, 11, rotary=6, form="interleaved", tables=1),
        _shape("neighbours, half is rotated, by the first columns", 2, 5, 3, 32, rotary=16, form="interleaved_first"),
        _shape("nothing is rotated", 2, 2, 3, 8, rotary=0),
        _shape("no positions", 2, 2, 0, 16),
        _shape("a prompt of a 7B model", 1, 32, 4096, 128, gpu_only=True),
        _shape("a prompt of a 7B model, neighbours", 1, 32, 4096, 128, form="interleaved", gpu_only=True),
        _shape("one token on a GPU", 8, 32, 1, 128, gpu_only=True),
        _shape("more than 2^31 elements", 9, 64, 32768, 128, gpu_only=True),
    ),
    dtypes=(
        "float32",
        "float16",
        "bfloat16",
        {"cos": "float32", "sin": "float32", "*": "float16"},
        {"cos": "float32", "sin": "float32", "*": "bfloat16"},
    ),
    # Half a unit in the last place for the rounding at the end; a difference of two products may cancel.
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(2e-6, 2e-6),
        "float16": Tolerance(1e-5, 1e-3),
        "bfloat16": Tolerance(1e-5, 8e-3),
    },
)
