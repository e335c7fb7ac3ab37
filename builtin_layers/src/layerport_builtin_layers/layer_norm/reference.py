"""The layer `layerport_builtin::layer_norm`: what it computes, and how its kernels are launched."""

from __future__ import annotations

import torch
from torch import Tensor

import layerport as lp
from layerport_builtin_layers.refused import refuse_eps, refuse_other_than_floats
from layerport_builtin_layers.row_launches import CENTRED_DTYPES, is_narrow, launch_blocks, launch_lanes, rows_of
from layerport_builtin_layers.row_references import refuse_params


@lp.layer("layerport_builtin::layer_norm", version=1, find=False)
def layer_norm(x: Tensor, weight: lp.Param | None = None, bias: lp.Param | None = None, eps: float = 1e-5) -> Tensor:
    """(x - mean(x)) * rsqrt(var(x) + eps) * weight + bias over the last axis, as in Ba, Kiros and Hinton (2016).

    x: (..., C), floating point; var is the mean squared distance from the mean.  weight, bias: (C,), of x's dtype or
    float32; ones and zeros if absent.
    Computed in float32 (float64 for float64) and rounded once, at the end.  Returns a tensor like x.
    Raises ValueError for shapes and dtypes that do not fit.
    """
    refuse_other_than_floats("layer_norm", x=x, weight=weight, bias=bias)
    refuse_eps("layer_norm", eps)
    refuse_params("layer_norm", x, weight, bias)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    values = x.to(wide)
    weights, biases = (None if one is None else one.to(wide) for one in (weight, bias))
    return torch.nn.functional.layer_norm(values, x.shape[-1:], weights, biases, eps).to(x.dtype)


@layer_norm.kernel(
    lp.cuda("kernel.cu", "layer_norm_narrow<{x}, {weight}>"),
    dtypes=CENTRED_DTYPES,
    when=is_narrow,
    name="layer_norm_narrow",
)
def launch_narrow(
    x: lp.TensorType, weight: lp.TensorType | None, bias: lp.TensorType | None, y: lp.TensorType, eps: float
) -> lp.Launch:
    return launch_lanes(x, (x, weight, bias, y, rows_of(x), x.shape[-1], eps))


@layer_norm.kernel(
    lp.cuda("kernel.cu", "layer_norm_wide<{x}, {weight}>"), dtypes=CENTRED_DTYPES, name="layer_norm_wide"
)
def launch_wide(
    x: lp.TensorType, weight: lp.TensorType | None, bias: lp.TensorType | None, y: lp.TensorType, eps: float
) -> lp.Launch:
    return launch_blocks(x, (x, weight, bias, y, rows_of(x), x.shape[-1], eps), packs_of_thread=4, most_threads=1024)
