"""What `layerport_builtin::rms_norm` is tested and measured with."""

from __future__ import annotations

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.rms_norm.reference import rms_norm


def _shape(reason: str, *x: int, weight: bool = True, gpu_only: bool = False, **attributes: float) -> CaseShape:
    return CaseShape(reason, {"x": x, "weight": x[-1:] if weight else None}, attributes, gpu_only)


CASE = LayerCase(
    layer=rms_norm,
    shapes=(
        _shape("row of one", 3, 1),
        _shape("no other axis", 96),
        _shape("one pack in a row", 5, 8),
        _shape("heads of a transformer", 2, 3, 5, 64),
        _shape("prime batch of narrow rows", 67, 128),
        _shape("narrow and no multiple of a pack", 7, 129),
        _shape("widest of the warp kernel in fp32", 3, 512),
        _shape("widest of the warp kernel in 16 bits", 3, 1024),
        _shape("multiple of a pack in fp32 only", 3, 1028),
        _shape("wide, the last warp half empty", 2, 2304),
        _shape("single row of a model", 1, 4096),
        _shape("wide and odd", 2, 4097),
        _shape("widest of the block kernel in fp32", 2, 8192),
        _shape("eight packs for each thread", 2, 16392),
        _shape("wider than the registers in fp32", 1, 33024),
        _shape("no weight, narrow", 5, 128, weight=False),
        _shape("no weight, wide", 2, 2304, weight=False),
        _shape("large eps", 4, 64, eps=0.5),
        _shape("no rows", 0, 64),
        _shape("no columns", 4, 0),
        _shape("200k narrow rows", 200_000, 128, gpu_only=True),
        _shape("4096 wide, 64 MB and more", 16_384, 4096, gpu_only=True),
        _shape("8192 wide, 64 MB and more", 8192, 8192, gpu_only=True),
        _shape("16384 wide, 64 MB and more", 4096, 16_384, gpu_only=True),
        _shape("one row on a GPU", 1, 8192, gpu_only=True),
        _shape("more than 2^31 elements", 524_297, 4096, gpu_only=True),
    ),
    dtypes=(
        "float32",
        "float16",
        "bfloat16",
        {"weight": "float32", "*": "float16"},
        {"weight": "float32", "*": "bfloat16"},
    ),
    # Half a unit in the last place for the rounding at the end, and as much again for a sum in another order.
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(1e-7, 2e-6),
        "float16": Tolerance(1e-7, 1e-3),
        "bfloat16": Tolerance(1e-7, 8e-3),
    },
)
