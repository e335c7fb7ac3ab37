"""What `layerport_builtin::local_correlation` is tested and measured with."""

from __future__ import annotations

import torch

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.local_correlation.reference import local_correlation


def _shape(
    reason: str, left: tuple[int, int, int, int], right: tuple[int, int], radius: int, *, gpu_only: bool = False
) -> CaseShape:
    shapes = {"left": left, "right": (*left[:2], *right), "places": (left[0], 2, *left[2:])}
    return CaseShape(reason, shapes, attributes={"radius": radius}, gpu_only=gpu_only)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal values; places from well before a map to well behind it, as maps of ten pixels have them."""
    wide = torch.float64 if generator.device.type == "cpu" else torch.float32
    values = torch.randn(shape, generator=generator, dtype=wide, device=generator.device)
    return 4 + 6 * values if name == "places" else values


CASE = LayerCase(
    layer=local_correlation,
    shapes=(
        _shape("one pixel", (1, 1, 1, 1), (1, 1), 1),
        _shape("a window, two samples", (2, 3, 3, 2), (5, 6), 1),
        _shape("RAFT's window, more pixels than a block", (1, 7, 5, 9), (8, 10), 4),
        _shape("a lower level of a pyramid", (2, 4, 6, 6), (3, 3), 4),
        _shape("a window larger than the map", (1, 2, 4, 3), (2, 1), 4),
        _shape("no samples", (0, 3, 3, 2), (5, 6), 1),
        _shape("RAFT at 440 x 1024", (1, 256, 55, 128), (55, 128), 4, gpu_only=True),
    ),
    dtypes=("float32", "float16", "bfloat16"),
    # A sum of normal products may cancel, and a place between pixels is rounded.
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(2e-5, 1e-5),
        "float16": Tolerance(1e-4, 1e-3),
        "bfloat16": Tolerance(1e-3, 8e-3),
    },
    draw=_draw,
)
