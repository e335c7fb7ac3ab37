"""The layer `layerport_builtin::add_layer_norm`: what it computes, and how its kernels are launched."""

from __future__ import annotations

import torch
from torch import Tensor

import layerport as lp
from layerport_builtin_layers.refused import refuse_eps, refuse_other_than_floats
from layerport_builtin_layers.row_launches import CENTRED_DTYPES, is_narrow, launch_blocks, launch_lanes, rows_of
from layerport_builtin_layers.row_references import AddedAndNormalised, refuse_params, refuse_unlike


@lp.layer("layerport_builtin::add_layer_norm", version=1, find=False)
def add_layer_norm(
    x: Tensor, residual: Tensor, weight: lp.Param | None = None, bias: lp.Param | None = None, eps: float = 1e-5
) -> AddedAndNormalised:
    """total = x + residual, and (total - mean) * rsqrt(var + eps) * weight + bias of it over the last axis.

    The normalisation is that of Ba, Kiros and Hinton (2016); var is the mean squared distance from the mean.
    x, residual: (..., C), floating point, of one shape and dtype.  weight, bias: (C,), of their dtype or float32; ones
    and zeros if absent.  The sum is rounded to x's dtype, as models do; what is normalised is that rounded sum, in
    float32 (float64 for float64), rounded once at the end.  Returns two tensors like x.
    Raises ValueError for shapes or dtypes that do not fit.
    """
    refuse_other_than_floats("add_layer_norm", x=x, residual=residual, weight=weight, bias=bias)
    refuse_eps("add_layer_norm", eps)
    refuse_unlike("add_layer_norm", x, residual)
    refuse_params("add_layer_norm", x, weight, bias)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = x + residual
    weights, biases = (None if one is None else one.to(wide) for one in (weight, bias))
    result = torch.nn.functional.layer_norm(total.to(wide), x.shape[-1:], weights, biases, eps)
    return AddedAndNormalised(total, result.to(x.dtype))


@add_layer_norm.kernel(
    lp.cuda("kernel.cu", "add_layer_norm_narrow<{x}, {weight}>"),
    dtypes=CENTRED_DTYPES,
    when=is_narrow,
    name="add_layer_norm_narrow",
)
def launch_narrow(
    x: lp.TensorType,
    residual: lp.TensorType,
    weight: lp.TensorType | None,
    bias: lp.TensorType | None,
    total: lp.TensorType,
    normalised: lp.TensorType,
    eps: float,
) -> lp.Launch:
    return launch_lanes(x, (x, residual, weight, bias, total, normalised, rows_of(x), x.shape[-1], eps))


@add_layer_norm.kernel(
    lp.cuda("kernel.cu", "add_layer_norm_wide<{x}, {weight}>"), dtypes=CENTRED_DTYPES, name="add_layer_norm_wide"
)
def launch_wide(
    x: lp.TensorType,
    residual: lp.TensorType,
    weight: lp.TensorType | None,
    bias: lp.TensorType | None,
    total: lp.TensorType,
    normalised: lp.TensorType,
    eps: float,
) -> lp.Launch:
    args = (x, residual, weight, bias, total, normalised, rows_of(x), x.shape[-1], eps)
    return launch_blocks(x, args, packs_of_thread=4, most_threads=512)
