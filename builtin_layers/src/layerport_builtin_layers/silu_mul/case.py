"""What `layerport_builtin::silu_mul` is tested and measured with."""

from __future__ import annotations

import torch

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.silu_mul.reference import silu_mul


def _shape(reason: str, *sizes: int, gpu_only: bool = False) -> CaseShape:
    return CaseShape(reason, {"gate": sizes, "up": sizes}, gpu_only=gpu_only)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal values; some gates are so large that exp(-gate) overflows or vanishes."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    if name == "gate" and values.numel():
        flat = values.view(-1)
        # Not the first: ONNX Runtime's sigmoid of -60 is 0, which is wrong where no larger number stands beside it.
        flat[1::17] *= 60
    return values


CASE = LayerCase(
    layer=silu_mul,
    shapes=(
        _shape("one element", 1),
        _shape("scalar"),
        _shape("less than a pack", 1, 3),
        _shape("prime batch", 13, 176),
        _shape("batch and sequence", 2, 3, 352),
        _shape("exactly one block in fp32", 2, 1024),
        _shape("exactly one block in 16 bits", 2, 2048),
        _shape("one element more than a block", 4097),
        _shape("two blocks and a tail", 3, 3001),
        _shape("nothing", 0, 64),
        _shape("14336 wide, 64 MB and more", 4096, 14_336, gpu_only=True),
        _shape("one row on a GPU", 1, 14_336, gpu_only=True),
        _shape("more than 2^31 elements", 149_800, 14_336, gpu_only=True),
    ),
    dtypes=("float32", "float16", "bfloat16"),
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(1e-7, 2e-6),
        "float16": Tolerance(1e-6, 1e-3),
        "bfloat16": Tolerance(1e-6, 8e-3),
    },
    draw=_draw,
)
