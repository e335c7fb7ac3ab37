"""The layer `layerport_builtin::rms_norm`: what it computes, and how its kernels are launched."""

from __future__ import annotations

import torch
from torch import Tensor

import layerport as lp
from layerport_builtin_layers.refused import refuse_eps, refuse_other_than_floats
from layerport_builtin_layers.row_launches import RMS_DTYPES, is_narrow, is_wide, launch_blocks, launch_lanes, rows_of


@lp.layer("layerport_builtin::rms_norm", version=1)
def rms_norm(x: Tensor, weight: lp.Param | None = None, eps: float = 1e-6) -> Tensor:
    """x * rsqrt(mean(x * x) + eps) * weight over the last axis, as in Zhang and Sennrich (2019).

    x: (..., C), floating point.  weight: (C,), of x's dtype or float32; ones if absent.
    Computed in float32 (float64 for float64) and rounded once, at the end.  Returns a tensor like x.
    Raises ValueError for shapes and dtypes that do not fit.
    """
    refuse_other_than_floats("rms_norm", x=x, weight=weight)
    refuse_eps("rms_norm", eps)
    if x.ndim == 0 or (weight is not None and weight.shape != x.shape[-1:]):
        wrong = f"x {list(x.shape)}" + ("" if weight is None else f" and weight {list(weight.shape)}")
        raise ValueError(f"rms_norm: shapes do not fit: {wrong}; give x: (..., C) and weight: (C,)")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    values = x.to(wide)
    result = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        result = result * weight.to(wide)
    return result.to(x.dtype)


@rms_norm.backward
def backward(x: Tensor, weight: Tensor | None, eps: float, grad_output: Tensor) -> tuple[Tensor, Tensor | None]:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    values, gradient = x.to(wide), grad_output.to(wide)
    columns = x.shape[-1]
    squares = torch.linalg.vector_norm(values, dim=-1, keepdim=True).square()
    scale = torch.rsqrt(squares / columns + eps)
    normal = values * scale
    product = gradient * normal
    if weight is None:
        by_weight, by_normal, mean = None, gradient, product.mean(-1, keepdim=True)
    else:
        by_weight = product.sum_to_size(columns).to(weight.dtype)
        weights = weight.to(wide)
        by_normal, mean = gradient * weights, (product @ weights).unsqueeze(-1) / columns
    return (torch.addcmul(by_normal, normal, mean, value=-1) * scale).to(x.dtype), by_weight


@rms_norm.kernel(
    lp.cuda("kernel.cu", "rms_norm_narrow<{x}, {weight}>"), dtypes=RMS_DTYPES, when=is_narrow, name="rms_norm_narrow"
)
def launch_narrow(x: lp.TensorType, weight: lp.TensorType | None, y: lp.TensorType, eps: float) -> lp.Launch:
    return launch_lanes(x, (x, weight, y, rows_of(x), x.shape[-1], eps))


@rms_norm.kernel(
    lp.cuda("kernel.cu", "rms_norm_wide<{x}, {weight}, 4>"), dtypes=RMS_DTYPES, when=is_wide, name="rms_norm_wide"
)
def launch_wide(x: lp.TensorType, weight: lp.TensorType | None, y: lp.TensorType, eps: float) -> lp.Launch:
    return launch_blocks(x, (x, weight, y, rows_of(x), x.shape[-1], eps), packs_of_thread=4, most_threads=512)


@rms_norm.kernel(lp.cuda("kernel.cu", "rms_norm_wide<{x}, {weight}, 8>"), dtypes=RMS_DTYPES, name="rms_norm_widest")
def launch_widest(x: lp.TensorType, weight: lp.TensorType | None, y: lp.TensorType, eps: float) -> lp.Launch:
    return launch_blocks(x, (x, weight, y, rows_of(x), x.shape[-1], eps), packs_of_thread=8, most_threads=1024)
