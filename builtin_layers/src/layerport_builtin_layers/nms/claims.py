"""Which modules suppress boxes: those whose forward calls torchvision's functions for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from layerport_builtin_layers.module_looks import replace_calls
from layerport_builtin_layers.nms.reference import nms


def claim_nms(module: torch.nn.Module) -> Any:
    """The rewritten forward of a module that calls non-maximum suppression; None for any other."""
    return replace_calls(module, FUNCTIONS, nms)


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return _batched_nms(boxes, scores, None, iou_threshold)


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    result: Tensor = nms(boxes, scores, None if idxs is None else idxs.to(torch.int64), float(iou_threshold))
    return result


FUNCTIONS: dict[str, Callable[..., Tensor]] = {"nms": _nms, "batched_nms": _batched_nms}
