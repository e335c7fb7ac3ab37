"""The layer `layerport_builtin::nms`: what it computes, and how its kernels are launched."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import layerport as lp

_TILE = 64  # boxes of a mask; with the three below as in kernel.cu
_OWN = 4  # boxes whose rank a warp counts
_WARPS = 8
_WALKERS = 1024


@lp.layer("layerport_builtin::nms", version=1, find=False, purpose="not expressible")
def nms(boxes: Tensor, scores: Tensor, classes: Tensor | None = None, iou_threshold: float = 0.5) -> Tensor:
    """Greedy non-maximum suppression: the boxes that overlap no kept box of a higher score, as torchvision's `nms`.

    boxes: (boxes, 4), floating point: left, top, right and bottom.  scores: (boxes,), of boxes' dtype.
    classes: (boxes,), int64: only boxes of one class suppress each other; None: all do.
    iou_threshold: a box goes whose intersection with a kept one is more than so much of their union, both taken in
    float32 (float64 for float64).
    Returns the indices of the kept boxes, int64, best first; of equal scores the first box comes first, and NaN is
    above all numbers.  At most as many as there are boxes.  Raises ValueError for shapes and dtypes that do not fit.
    """
    _refuse(boxes, scores, classes, iou_threshold)
    wide = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    place = torch.arange(boxes.shape[0], device=boxes.device)
    order = torch.zeros_like(place).scatter(0, _ranks(scores.to(wide), place), place)
    left, top, right, bottom = boxes.to(wide)[order].unbind(1)
    areas = (right - left) * (bottom - top)
    width = (torch.minimum(right, right.unsqueeze(1)) - torch.maximum(left, left.unsqueeze(1))).clamp(min=0)
    height = (torch.minimum(bottom, bottom.unsqueeze(1)) - torch.maximum(top, top.unsqueeze(1))).clamp(min=0)
    shared = width * height
    hides = shared / (areas.unsqueeze(1) + areas - shared) > torch.tensor(iou_threshold, dtype=wide)
    if classes is not None:
        of = classes[order]
        hides = hides & (of == of.unsqueeze(1))

    def step(kept: Tensor, number: Tensor, hidden: Tensor, place: Tensor) -> tuple[Tensor, ...]:
        is_kept = (kept & (place == number)).any()
        return (kept & ~(hidden & is_kept & (place > number)),)

    (kept,) = lp.scan(step, [torch.ones_like(place, dtype=torch.bool)], [place, hides], (place,))
    return order[torch.nonzero(kept)[:, 0]]


def _ranks(scores: Tensor, place: Tensor) -> Tensor:
    """Where each score stands, the highest first; counted, because ONNX has no stable sort."""
    unknown = scores.isnan()
    above = (scores > scores.unsqueeze(1)) | (unknown & ~unknown.unsqueeze(1))
    level = (scores == scores.unsqueeze(1)) | (unknown & unknown.unsqueeze(1))
    return (above | (level & (place < place.unsqueeze(1)))).sum(1)


def _refuse(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float) -> None:
    given = {"boxes": boxes, "scores": scores} | ({} if classes is None else {"classes": classes})
    if boxes.ndim != 2 or boxes.shape[1] != 4 or any(one.shape != boxes.shape[:1] for one in (*given.values(),)[1:]):
        shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in given.items())
        raise ValueError(
            f"nms: shapes do not fit: {shapes}; "
            "give boxes: (boxes, 4), left, top, right, bottom, scores: (boxes,), classes: (boxes,) or None"
        )
    if math.isnan(iou_threshold):
        raise ValueError(f"nms: iou_threshold is {iou_threshold}; give a number")
    if (
        not boxes.is_floating_point()
        or scores.dtype != boxes.dtype
        or (classes is not None and classes.dtype != torch.int64)
    ):
        dtypes = ", ".join(f"{name} {one.dtype}" for name, one in given.items())
        raise ValueError(
            f"nms: dtypes do not fit: {dtypes}; give boxes and scores in one floating-point dtype, classes in int64"
        )


@nms.shape_rule
def rule(boxes: Any) -> Any:
    return "int64", (lp.SizeSymbol("kept", boxes.shape[0]),)


@nms.kernel(
    lp.cuda("kernel.cu", "nms_order<{boxes}>"),
    lp.cuda("kernel.cu", "nms_masks<{boxes}>"),
    lp.cuda("kernel.cu", "nms_walk"),
    dtypes=tuple({"classes": "int64", "output": "int64", "*": one} for one in ("float32", "float16", "bfloat16")),
    name="nms",
)
def launch(
    boxes: lp.TensorType,
    scores: lp.TensorType,
    classes: lp.TensorType | None,
    output: lp.TensorType,
    kept: lp.TensorType,
    iou_threshold: float,
) -> tuple[lp.Launch, ...]:
    count = boxes.shape[0]
    tiles = lp.cdiv(count, _TILE)
    order, hides = lp.scratch(count, "int32"), lp.scratch((count, tiles), "int64")
    return (
        lp.Launch(grid=lp.cdiv(count, _WARPS * _OWN), block=32 * _WARPS, args=(scores, order, count)),
        lp.Launch(
            grid=(tiles, tiles),
            block=32 * _WARPS,
            args=(boxes, classes, order, hides, count, tiles, iou_threshold),
        ),
        lp.Launch(grid=1, block=_WALKERS, shared=tiles * 8, args=(hides, order, output, kept, count, tiles)),
    )
