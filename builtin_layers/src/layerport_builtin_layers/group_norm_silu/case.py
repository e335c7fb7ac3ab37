"""What `layerport_builtin::group_norm_silu` is tested and measured with."""

from __future__ import annotations

import torch

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.group_norm_silu.reference import group_norm_silu


def _shape(reason: str, groups: int, *x: int, gpu_only: bool = False, **attributes: float) -> CaseShape:
    return CaseShape(reason, {"x": x, "weight": x[1:2], "bias": x[1:2]}, {"groups": groups, **attributes}, gpu_only)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal values; those of x lie around 3, where a variance from mean(x * x) would lose digits."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return values + 3 if name == "x" else values


CASE = LayerCase(
    layer=group_norm_silu,
    shapes=(
        _shape("a group of two", 1, 1, 2),
        _shape("images of odd groups", 3, 2, 15, 3, 3),
        _shape("an image of a UNet", 8, 1, 64, 8, 8),
        _shape("a prime image, a channel in each group", 5, 2, 5, 7, 11),
        _shape("a video", 2, 2, 6, 2, 3, 5, eps=0.5),
        _shape("more than a round of a block", 2, 1, 6, 37, 41),
        _shape("no pixels beside the channels", 4, 3, 16),
        _shape("groups of two pieces, the second group not aligned", 2, 1, 2, 16381),
        _shape("pieces of channels that end within a pack", 2, 1, 6, 53, 54),
        _shape("no images", 2, 0, 4, 3, 3),
        _shape("Stable Diffusion, the first level", 32, 2, 320, 64, 64, gpu_only=True),
        _shape("its VAE, the last level", 32, 1, 128, 512, 512, gpu_only=True),
    ),
    dtypes=(
        "float32",
        {"weight": "float32", "bias": "float32", "*": "float16"},
        "float16",
        "bfloat16",
        {"weight": "float32", "bias": "float32", "*": "bfloat16"},
    ),
    # A result near zero, where product and bias cancel, keeps the rounding errors of both.
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(8e-6, 2e-6),
        "float16": Tolerance(8e-6, 1e-3),
        "bfloat16": Tolerance(8e-6, 8e-3),
    },
    draw=_draw,
)
