"""What `layerport_builtin::grid_sample` is tested and measured with."""

from __future__ import annotations

from typing import Any

import torch

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.grid_sample.reference import grid_sample

_PADDINGS = ("zeros", "border", "reflection")
# In turn with the edges and with the middles of the outer pixels.
_FORMS = [
    *(
        (2, mode, padding, bool((row + column) % 2))
        for row, mode in enumerate(("bilinear", "nearest", "bicubic"))
        for column, padding in enumerate(_PADDINGS)
    ),
    (3, "bilinear", "zeros", False),
    (3, "bilinear", "reflection", True),
    (3, "nearest", "border", False),
]


def _shape(
    reason: str, x: tuple[int, ...], output: tuple[int, ...], *, gpu_only: bool = False, **attributes: Any
) -> CaseShape:
    shapes = {"x": x, "grid": (x[0], *output, len(x) - 2)}
    return CaseShape(reason, shapes, gpu_only=gpu_only, attributes=attributes)


def _form(dims: int, mode: str, padding_mode: str, align_corners: bool) -> CaseShape:
    reason = f"{dims} axes, {mode}, {padding_mode}" + (", middles" if align_corners else "")
    x, output = ((2, 5, 6, 7), (5, 3)) if dims == 2 else ((2, 3, 4, 6, 5), (2, 5, 3))
    return _shape(reason, x, output, mode=mode, padding_mode=padding_mode, align_corners=align_corners)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal values; places in a map and around it, a few of them far."""
    wide = torch.float64 if generator.device.type == "cpu" else torch.float32
    values = torch.randn(shape, generator=generator, dtype=wide, device=generator.device)
    return 0.8 * values if name == "grid" else values


CASE = LayerCase(
    layer=grid_sample,
    shapes=(
        _shape("one of everything", (1, 1, 1, 1), (1, 1)),
        *(_form(*form) for form in _FORMS),
        _shape("rows of one pixel", (2, 2, 1, 5), (4, 3), padding_mode="border", align_corners=True),
        _shape(
            "columns of one pixel, bicubic",
            (2, 2, 5, 1),
            (4, 3),
            mode="bicubic",
            padding_mode="border",
            align_corners=True,
        ),
        _shape("two pixels, bicubic", (1, 4, 2, 2), (5, 4), mode="bicubic", padding_mode="reflection"),
        _shape("more than a block, more than two groups of channels", (3, 9, 11, 13), (23, 17)),
        _shape("a volume of more than a block", (1, 1, 7, 9, 8), (5, 11, 7)),
        _shape("no places", (2, 3, 4, 4), (0, 5)),
        _shape("no channels", (2, 0, 4, 4), (2, 5)),
        _shape("no images", (0, 3, 4, 4), (2, 5)),
        _shape("a map of features, warped", (1, 64, 272, 480), (272, 480), gpu_only=True, padding_mode="border"),
        _shape("the same, bicubic", (1, 64, 272, 480), (272, 480), gpu_only=True, mode="bicubic"),
        _shape("a volume of the brain", (1, 1, 160, 192, 224), (160, 192, 224), gpu_only=True),
    ),
    dtypes=(
        "float32",
        "float16",
        "bfloat16",
        {"grid": "float32", "*": "float16"},
        {"grid": "float32", "*": "bfloat16"},
    ),
    # Torch's own place, which the reference takes, is rounded relative to the size of the map.
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(1e-5, 1e-5),
        "float16": Tolerance(1e-4, 1e-3),
        "bfloat16": Tolerance(1e-3, 8e-3),
    },
    draw=_draw,
)
