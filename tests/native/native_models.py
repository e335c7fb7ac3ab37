"""Models whose plans hold what a plugin can have: optional inputs, data-dependent sizes, several dtypes and kernels."""

from __future__ import annotations

from pathlib import Path

import torch

from layerport import building
from layerport_builtin_layers.rms_norm.reference import rms_norm
from layerport_builtin_layers.silu_mul.reference import silu_mul
from small_models import net
from small_setup import ENGINE, SMALL


class Norms(torch.nn.Module):
    """A norm with weight, one without, and a gated product."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, 256, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return silu_mul(rms_norm(x, self.weight, 1e-6), rms_norm(x, None, 1e-5))


def build_all(folder: Path) -> list[Path]:
    """The bundles of all of them."""
    made = [folder / "net.lp"]
    building.build(net(), made[0], target=ENGINE, packs=[SMALL])
    rows = torch.export.Dim("rows", min=1, max=64)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        path = folder / f"norms_{str(dtype)[6:]}.lp"
        x = torch.randn(4, 256).to(dtype)
        building.build((Norms(dtype), (x,), {"x": {0: rows}}), path, target=ENGINE, verify=False)
        made.append(path)
    return made
