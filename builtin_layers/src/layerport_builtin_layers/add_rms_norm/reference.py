"""The layer `layerport_builtin::add_rms_norm`: what it computes, and how its kernels are launched."""

from __future__ import annotations

import torch
from torch import Tensor

import layerport as lp
from layerport_builtin_layers.refused import refuse_eps, refuse_other_than_floats
from layerport_builtin_layers.row_launches import RMS_DTYPES, is_narrow, launch_blocks, launch_lanes, rows_of
from layerport_builtin_layers.row_references import AddedAndNormalised, refuse_unlike


@lp.layer("layerport_builtin::add_rms_norm", version=1, find=False)
def add_rms_norm(x: Tensor, residual: Tensor, weight: lp.Param | None = None, eps: float = 1e-6) -> AddedAndNormalised:
    """total = x + residual, and total * rsqrt(mean(total * total) + eps) * weight over the last axis.

    The normalisation is that of Zhang and Sennrich (2019).
    x, residual: (..., C), floating point, of one shape and dtype.  weight: (C,), of their dtype or float32; ones if
    absent.  The sum is rounded to x's dtype, as models do; what is normalised is that rounded sum, in float32 (float64
    for float64), rounded once at the end.  Returns two tensors like x.
    Raises ValueError for shapes or dtypes that do not fit.
    """
    refuse_other_than_floats("add_rms_norm", x=x, residual=residual, weight=weight)
    refuse_eps("add_rms_norm", eps)
    refuse_unlike("add_rms_norm", x, residual)
    if x.ndim == 0 or (weight is not None and weight.shape != x.shape[-1:]):
        wrong = f"x {list(x.shape)}" + ("" if weight is None else f" and weight {list(weight.shape)}")
        raise ValueError(f"add_rms_norm: shapes do not fit: {wrong}; give x: (..., C) and weight: (C,)")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = x + residual
    values = total.to(wide)
    result = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        result = result * weight.to(wide)
    return AddedAndNormalised(total, result.to(x.dtype))


@add_rms_norm.kernel(
    lp.cuda("kernel.cu", "add_rms_norm_narrow<{x}, {weight}>"),
    dtypes=RMS_DTYPES,
    when=is_narrow,
    name="add_rms_norm_narrow",
)
def launch_narrow(
    x: lp.TensorType,
    residual: lp.TensorType,
    weight: lp.TensorType | None,
    total: lp.TensorType,
    normalised: lp.TensorType,
    eps: float,
) -> lp.Launch:
    return launch_lanes(x, (x, residual, weight, total, normalised, rows_of(x), x.shape[-1], eps))


@add_rms_norm.kernel(
    lp.cuda("kernel.cu", "add_rms_norm_wide<{x}, {weight}>"), dtypes=RMS_DTYPES, name="add_rms_norm_wide"
)
def launch_wide(
    x: lp.TensorType,
    residual: lp.TensorType,
    weight: lp.TensorType | None,
    total: lp.TensorType,
    normalised: lp.TensorType,
    eps: float,
) -> lp.Launch:
    args = (x, residual, weight, total, normalised, rows_of(x), x.shape[-1], eps)
    return launch_blocks(x, args, packs_of_thread=4, most_threads=1024)
