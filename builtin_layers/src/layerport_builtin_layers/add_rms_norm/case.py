"""What `layerport_builtin::add_rms_norm` is tested and measured with."""

from __future__ import annotations

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.add_rms_norm.reference import add_rms_norm


def _shape(reason: str, *x: int, weight: bool = True, gpu_only: bool = False, **attributes: float) -> CaseShape:
    return CaseShape(reason, {"x": x, "residual": x, "weight": x[-1:] if weight else None}, attributes, gpu_only)


CASE = LayerCase(
    layer=add_rms_norm,
    shapes=(
        _shape("row of one", 3, 1),
        _shape("no other axis", 96),
        _shape("tokens of a transformer", 2, 3, 5, 64),
        _shape("narrow and no multiple of a pack", 7, 129),
        _shape("widest of the warp kernel in 16 bits", 3, 1024),
        _shape("wide, the last warp half empty", 2, 2304),
        _shape("wide and odd", 2, 4097),
        _shape("eight packs for each thread", 2, 16392),
        _shape("wider than the registers in fp32", 1, 33024),
        _shape("no weight, narrow", 5, 128, weight=False),
        _shape("large eps", 4, 64, eps=0.5),
        _shape("no rows", 0, 64),
        _shape("4096 wide, 64 MB and more", 16_384, 4096, gpu_only=True),
        _shape("more than 2^31 elements", 524_297, 4096, gpu_only=True),
    ),
    dtypes=(
        "float32",
        "float16",
        "bfloat16",
        {"weight": "float32", "*": "float16"},
        {"weight": "float32", "*": "bfloat16"},
    ),
    # Half a unit in the last place for each of two roundings, that of the sum and that at the end, and as much again.
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(1e-7, 2e-6),
        "float16": Tolerance(1e-7, 2e-3),
        "bfloat16": Tolerance(1e-7, 1.6e-2),
    },
)
