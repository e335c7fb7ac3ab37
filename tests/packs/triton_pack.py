"""A one-file pack whose layer has a Triton kernel; importing it needs no Triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import layerport as lp
from layerport.sizes.tensors import TensorType


@lp.layer("triton_tests::rms_norm")
def rms_norm(x: Tensor, weight: lp.Param, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x**2) + eps) * weight over the last axis.  x: (..., C); weight: (C,)."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (scaled * weight.float()).to(x.dtype)


@rms_norm.kernel(
    lp.triton(
        "triton_functions.py:rms_norm",
        num_warps=lambda BLOCK: max(1, min(8, BLOCK // 256)),
        num_stages=2,
        constexprs={"BLOCK": lambda weight: lp.next_power_of_2(weight.shape[0])},
    ),
    dtypes=("float32", "float16", "bfloat16"),
    name="rows",
)
def launch(x: TensorType, weight: TensorType, y: TensorType, eps: float) -> lp.Launch:
    columns = weight.shape[0]
    return lp.Launch(grid=x.numel() // columns, args=(x, weight, y, columns, eps))


@lp.hookimpl
def layerport_layers() -> tuple[lp.Layer, ...]:
    return (rms_norm,)


@lp.hookimpl
def layerport_export_parameters(module: Any, name: str) -> lp.BoundLayer | None:
    if type(module).__name__ != "Rows":
        return None
    return rms_norm.bind(weight=module.weight, eps=module.eps)
