"""What `layerport_builtin::packed_gate_mul` is tested and measured with."""

from __future__ import annotations

from typing import Any

import torch

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.packed_gate_mul.reference import packed_gate_mul


def _shape(reason: str, *x: int, gpu_only: bool = False, **attributes: Any) -> CaseShape:
    return CaseShape(reason, {"x": x}, attributes, gpu_only)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal values, and gates of either end of an activation in the first half."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    if values.numel():
        values[..., : shape[-1] // 2 : 17] *= 60
    return values


CASE = LayerCase(
    layer=packed_gate_mul,
    shapes=(
        _shape("one element of each", 2),
        _shape("a small odd half", 3, 10, gate_last=True),
        _shape("halves of whole packs", 2, 3, 64),
        _shape("a prime of odd rows", 13, 354),
        _shape("more than a block", 2, 8208, activation="gelu"),
        _shape("tanh, odd", 5, 6, activation="gelu_tanh"),
        _shape("nothing", 0, 64),
        _shape("14336 wide, 64 MB and more", 4096, 28_672, gpu_only=True),
    ),
    dtypes=("float32", "float16", "bfloat16"),
    # As for gelu_mul: Torch's own 1 + erf(x), in the reference, loses digits of negative gates.
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(4e-6, 2e-6),
        "float16": Tolerance(1e-5, 1e-3),
        "bfloat16": Tolerance(1e-5, 8e-3),
    },
    draw=_draw,
)
