"""What `layerport_builtin::add_layer_norm` is tested and measured with."""

from __future__ import annotations

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.add_layer_norm.reference import add_layer_norm


def _shape(
    reason: str, *x: int, weight: bool = True, bias: bool = True, gpu_only: bool = False, **attributes: float
) -> CaseShape:
    own = x[-1:]
    shapes = {"x": x, "residual": x, "weight": own if weight else None, "bias": own if bias else None}
    return CaseShape(reason, shapes, attributes, gpu_only)


CASE = LayerCase(
    layer=add_layer_norm,
    shapes=(
        _shape("no other axis", 96),
        _shape("a small odd row", 3, 5),
        _shape("tokens of a transformer", 2, 3, 5, 64),
        _shape("wide, the last warp half empty", 2, 2304),
        _shape("wide and odd", 2, 4097),
        _shape("wider than the registers in fp32", 1, 33024),
        _shape("neither weight nor bias", 5, 128, weight=False, bias=False),
        _shape("no bias, a large eps", 4, 64, bias=False, eps=0.5),
        _shape("no rows", 0, 64),
        _shape("4096 wide, 64 MB and more", 16_384, 4096, gpu_only=True),
    ),
    dtypes=(
        "float32",
        {"weight": "float32", "bias": "float32", "*": "float16"},
        "float16",
        "bfloat16",
        {"weight": "float32", "bias": "float32", "*": "bfloat16"},
    ),
    # The rounding of the sum, that at the end, and where product and bias cancel the rounding errors of both.
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(4e-6, 2e-6),
        "float16": Tolerance(3e-3, 3e-3),
        "bfloat16": Tolerance(2.4e-2, 2.4e-2),
    },
)
