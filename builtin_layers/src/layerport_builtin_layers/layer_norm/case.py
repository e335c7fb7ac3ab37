"""What `layerport_builtin::layer_norm` is tested and measured with."""

from __future__ import annotations

import torch

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.layer_norm.reference import layer_norm


def _shape(
    reason: str, *x: int, weight: bool = True, bias: bool = True, gpu_only: bool = False, **attributes: float
) -> CaseShape:
    shapes = {"x": x, "weight": x[-1:] if weight else None, "bias": x[-1:] if bias else None}
    return CaseShape(reason, shapes, attributes, gpu_only)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal values; those of x lie around 3, where a variance from mean(x * x) would lose digits."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return values + 3 if name == "x" else values


CASE = LayerCase(
    layer=layer_norm,
    shapes=(
        _shape("row of one", 3, 1),
        _shape("no other axis", 96),
        _shape("one pack in a row", 5, 8),
        _shape("tokens of a transformer", 2, 3, 5, 64),
        _shape("narrow and no multiple of a pack", 7, 129),
        _shape("widest of the warp kernel in 16 bits", 3, 1024),
        _shape("wide, the last warp half empty", 2, 2304),
        _shape("wide and odd", 2, 4097),
        _shape("eight packs for each thread", 2, 16392),
        _shape("wider than the registers in fp32", 1, 33024),
        _shape("neither weight nor bias, narrow", 5, 128, weight=False, bias=False),
        _shape("no bias", 5, 131, bias=False),
        _shape("no weight, wide", 2, 2304, weight=False),
        _shape("large eps", 4, 64, eps=0.5),
        _shape("no rows", 0, 64),
        _shape("4096 wide, 64 MB and more", 16_384, 4096, gpu_only=True),
        _shape("more than 2^31 elements", 524_297, 4096, gpu_only=True),
    ),
    dtypes=(
        "float32",
        "float16",
        "bfloat16",
        {"weight": "float32", "bias": "float32", "*": "float16"},
        {"weight": "float32", "bias": "float32", "*": "bfloat16"},
    ),
    # A result near zero, where product and bias cancel, keeps the rounding errors of both.
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(4e-6, 2e-6),
        "float16": Tolerance(4e-6, 1e-3),
        "bfloat16": Tolerance(4e-6, 8e-3),
    },
    draw=_draw,
)
