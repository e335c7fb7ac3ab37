"""What `layerport_builtin::nms` is tested and measured with."""

from __future__ import annotations

from typing import Any

import torch

from layerport.testing import CaseShape, LayerCase
from layerport_builtin_layers.nms.reference import nms


def _shape(reason: str, boxes: int, *, classes: int = 0, gpu_only: bool = False, **attributes: Any) -> CaseShape:
    """classes: how many the boxes are counted through; 0: none."""
    shapes = {"boxes": (boxes, 4), "scores": (boxes,), "classes": (boxes,) if classes else None}
    values = {"classes": [number % classes for number in range(boxes)]} if classes else {}
    return CaseShape(reason, shapes, attributes=attributes, gpu_only=gpu_only, values=values)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Boxes of 4 to 12 in a field of 30, which overlap a great deal; scores in eighths, many of which are equal."""
    values = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
    if name == "scores":
        return (values * 8).floor() / 8
    if shape[1:] != (4,):  # no boxes, as a check of other shapes has them
        return values
    corner, extent = values[:, :2] * 20, 4 + values[:, 2:] * 8
    return torch.cat((corner, corner + extent), 1)


CASE = LayerCase(
    layer=nms,
    shapes=(
        _shape("one box", 1),
        _shape("a part of a tile, classes", 60, classes=3, iou_threshold=0.3),
        _shape("a prime of boxes", 131, iou_threshold=0.4),
        _shape("three tiles, classes", 150, classes=4, iou_threshold=0.1),
        _shape("six tiles", 330, iou_threshold=0.8),
        _shape("no box is too near", 70, iou_threshold=1.0),
        _shape("no boxes", 0, classes=1),
        _shape("the proposals of a detector", 1000, gpu_only=True, iou_threshold=0.7),
    ),
    dtypes=tuple({"classes": "int64", "*": one} for one in ("float32", "float16", "bfloat16")),
    tolerances={},
    draw=_draw,
)
