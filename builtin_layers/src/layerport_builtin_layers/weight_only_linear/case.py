"""What `layerport_builtin::weight_only_linear` is tested and measured with."""

from __future__ import annotations

import torch

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.weight_only_linear.reference import weight_only_linear


def _shape(
    reason: str,
    x: tuple[int, ...],
    width: int,
    groups: int,
    bits: int = 4,
    *,
    absent: tuple[str, ...] = (),
    gpu_only: bool = False,
) -> CaseShape:
    of_groups = (width, groups)
    shapes: dict[str, tuple[int, ...] | None] = {
        "x": x,
        "codes": (width, x[-1]),
        "scales": of_groups,
        "zeros": of_groups,
        "bias": (width,),
    }
    return CaseShape(reason, shapes | dict.fromkeys(absent), {"bits": bits}, gpu_only)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Codes and zeros of four bits, which are codes of eight too; small scales, so that sums stay near 1."""
    if name in ("codes", "zeros"):
        return torch.randint(0, 16, shape, generator=generator, device=generator.device)
    wide = torch.float64 if generator.device.type == "cpu" else torch.float32
    values = torch.randn(shape, generator=generator, dtype=wide, device=generator.device)
    return values * 0.1 if name == "scales" else values


CASE = LayerCase(
    layer=weight_only_linear,
    shapes=(
        _shape("one of everything", (1, 1), 1, 1),
        _shape("one row, groups of 32", (1, 64), 11, 2),
        _shape("a row of bytes, groups of 16", (1, 48), 5, 3, 8),
        _shape("rows of two kinds of axes, more than a tile", (2, 5, 40), 9, 5),
        _shape("bytes, symmetric, more than a tile", (9, 24), 6, 1, 8, absent=("zeros", "bias")),
        _shape("an odd width in groups of three", (3, 21), 4, 7, absent=("bias",)),
        _shape("groups that end within a piece", (2, 60), 3, 5, absent=("zeros",)),
        _shape("more than a round of a warp", (1, 1100), 2, 11),
        _shape("no rows", (0, 8), 3, 1),
        _shape("rows of one tile, groups of 32", (11, 96), 37, 3),
        _shape("rows of two tiles, bytes, more than a round of units", (65, 320), 66, 5, 8, absent=("bias",)),
        _shape("whole tiles, groups that end within a chunk", (2, 32, 192), 64, 2, absent=("zeros",)),
        _shape("more than a thousand products in a sum", (9, 1152), 3, 1, 8),
        _shape("a token of a 7B model", (1, 4096), 11008, 32, gpu_only=True),
        _shape("16 tokens of a 7B model, bytes", (16, 4096), 11008, 32, 8, gpu_only=True),
    ),
    dtypes=tuple(
        {"codes": "uint8", "zeros": "uint8", "scales": scales, "*": name}
        for name, scales in (
            *((name, name) for name in ("float32", "float16", "bfloat16")),
            *((name, "float32") for name in ("float16", "bfloat16")),
        )
    ),
    # A sum of products may cancel; in 16 bits half a unit in the last place comes at the end.
    tolerances={
        "float64": Tolerance(1e-11, 1e-12),
        "float32": Tolerance(1e-4, 1e-5),
        "float16": Tolerance(1e-4, 1e-3),
        "bfloat16": Tolerance(1e-4, 8e-3),
    },
    draw=_draw,
)
