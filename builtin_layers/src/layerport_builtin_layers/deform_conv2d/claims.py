"""Which modules are a deformable convolution: those that call torchvision's function for it, or mmcv's two.

torchvision's and mmcv's own modules (`DeformConv2d`, `ModulatedDeformConv2d`, ...) call these functions too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from layerport_builtin_layers.deform_conv2d.reference import deform_conv2d
from layerport_builtin_layers.module_looks import replace_calls


def claim_deform_conv2d(module: torch.nn.Module) -> Any:
    """The rewritten forward of a module that calls a deformable convolution; None for any other."""
    return replace_calls(module, FUNCTIONS, deform_conv2d)


def _deform_conv2d(input: Tensor, offset: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """torchvision's goes on with the bias, mmcv's, which has none, with the stride."""
    is_mmcv = bool(_MMCV & set(kwargs)) or isinstance(args[0] if args else None, (int, tuple, list))
    return (_mmcv if is_mmcv else _torchvision)(input, offset, weight, *args, **kwargs)


def _torchvision(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    result: Tensor = deform_conv2d(input, offset, weight, bias, mask, *map(_pair, (stride, padding, dilation)))
    return result


_MMCV = {"groups", "deform_groups", "im2col_step"}


def _mmcv(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    deform_groups: int = 1,
    *_: Any,
    **__: Any,
) -> Tensor:
    return _torchvision(input, offset, weight, None, stride, padding, dilation)


def _modulated(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    *_: Any,
    **__: Any,
) -> Tensor:
    return _torchvision(input, offset, weight, bias, stride, padding, dilation, mask)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {"deform_conv2d": _deform_conv2d, "modulated_deform_conv2d": _modulated}
