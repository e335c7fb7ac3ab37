"""What `layerport_builtin::gelu_mul` is tested and measured with."""

from __future__ import annotations

import torch

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.gelu_mul.reference import gelu_mul


def _shape(reason: str, *sizes: int, gpu_only: bool = False, **attributes: str) -> CaseShape:
    return CaseShape(reason, {"gate": sizes, "up": sizes}, attributes, gpu_only)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal values; some gates are so large that the exponential overflows or vanishes."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    if name == "gate" and values.numel():
        flat = values.view(-1)
        flat[::17] *= 60
    return values


CASE = LayerCase(
    layer=gelu_mul,
    shapes=(
        _shape("one element", 1),
        _shape("scalar"),
        _shape("less than a pack", 1, 3),
        _shape("prime batch", 13, 176),
        _shape("one element more than a block", 4097),
        _shape("two blocks and a tail", 3, 3001),
        _shape("nothing", 0, 64),
        _shape("tanh, less than a pack", 1, 3, approximate="tanh"),
        _shape("tanh, batch and sequence", 2, 3, 352, approximate="tanh"),
        _shape("tanh, two blocks and a tail", 3, 3001, approximate="tanh"),
        _shape("14336 wide, 64 MB and more", 4096, 14_336, gpu_only=True),
        _shape("tanh, 14336 wide, 64 MB and more", 4096, 14_336, gpu_only=True, approximate="tanh"),
        _shape("more than 2^31 elements", 149_800, 14_336, gpu_only=True, approximate="tanh"),
    ),
    dtypes=("float32", "float16", "bfloat16"),
    # Torch's own 1 + erf(x), in the reference, loses digits of negative gates: it is off by 1.4e-6 where the result is
    # small.  The kernels, which do not, are off by less than 1e-7.
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(2e-6, 5e-7),
        "float16": Tolerance(1e-6, 1e-3),
        "bfloat16": Tolerance(1e-6, 8e-3),
    },
    draw=_draw,
)
