"""Models whose plans hold what a plugin can have: optional inputs, data-dependent sizes, several dtypes and kernels."""

from __future__ import annotations

from pathlib import Path

import torch

from layerport import building
from layerport_builtin_layers.rms_norm.reference import rms_norm
from layerport_builtin_layers.silu_mul.reference import silu_mul
from small_models import net
from small_setup import ENGINE, SMALL

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Norms(torch.nn.Module):
    """In each of three dtypes a norm with weight, one without, and a gated product."""

    def __init__(self) -> None:
        super().__init__()
        weights = [torch.linspace(0.5, 1.5, 256, dtype=dtype) for dtype in DTYPES]
        self.weights = torch.nn.ParameterList(weights)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pairs = zip(inputs, self.weights, strict=True)
        return tuple(silu_mul(rms_norm(x, weight, 1e-6), rms_norm(x, None, 1e-5)) for x, weight in pairs)


def build_all(folder: Path) -> list[Path]:
    """The bundles of all of them."""
    made = [folder / "net.lp", folder / "norms.lp"]
    building.build(net(), made[0], target=ENGINE, packs=[SMALL])
    rows = torch.export.Dim("rows", min=1, max=64)
    inputs = tuple(torch.randn(4, 256).to(dtype) for dtype in DTYPES)
    shapes = {"inputs": tuple({0: rows} for _ in inputs)}
    building.build((Norms(), inputs, shapes), made[1], target=ENGINE, verify=False)
    return made
