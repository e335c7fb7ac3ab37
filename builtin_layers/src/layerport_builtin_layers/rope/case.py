"""What `layerport_builtin::rope` is tested and measured with."""

from __future__ import annotations

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.rope.reference import rope


def _shape(
    reason: str,
    *x: int,
    rotary: int | None = None,
    tables: int | None = None,
    beside: tuple[int, ...] = (),
    form: str = "halves",
    gpu_only: bool = False,
) -> CaseShape:
    columns = (x[-1] if rotary is None else rotary) // (2 if form.endswith("narrow") else 1)
    table = (*beside, columns) if beside else (x[0] if tables is None else tables, x[2], columns)
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
        _shape("neighbours, a row of packs", 2, 4, 3, 64, form="interleaved"),
        _shape("turned back, half is rotated", 2, 2, 3, 32, rotary=16, form="halves_back"),
        _shape("a column for both halves", 3, 2, 5, 64, form="halves_narrow", tables=1),
        _shape("a column for both halves, an odd width behind them", 1, 3, 2, 11, rotary=6, form="halves_narrow"),
        _shape("a column for both neighbours", 2, 3, 5, 32, rotary=16, form="interleaved_narrow"),
        _shape("neighbours that come out as halves", 2, 5, 3, 64, form="interleaved_to_halves", tables=1),
        _shape("neighbours that come out as halves, a part", 1, 2, 3, 11, rotary=6, form="interleaved_to_halves"),
        _shape("tables of each head", 2, 2, 3, 8, beside=(2, 2, 3)),
        _shape("positions before heads", 2, 7, 3, 32, beside=(2, 7, 1)),
        _shape("positions before heads, one table for all", 3, 5, 2, 16, beside=(1, 5, 1)),
        _shape("tables of each batch alone", 3, 2, 4, 16, beside=(3, 1, 1)),
        _shape("tables of each head of an image's patches", 3, 2, 8, beside=(3, 2)),
        _shape("an image's patches before heads", 7, 3, 16, beside=(7, 1)),
        _shape("tables without the first axes", 3, 2, 5, 16, beside=(5,), form="interleaved"),
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
