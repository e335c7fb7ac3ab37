"""The layer `layerport_builtin::rms_norm`: what it computes, and how its kernels are launched."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import layerport as lp

_PACK_BYTES = 16  # of one load
_NARROW_BYTES = 32 * 4 * _PACK_BYTES  # what the lanes of one warp hold, 4 packs each
_WIDE_BYTES = 512 * 4 * _PACK_BYTES  # what the largest block of rms_norm_wide<..., 4> holds
_NARROW_THREADS = 256
_MOST_BLOCKS = 2**31 - 1

_DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    {"weight": "float32", "*": "float16"},
    {"weight": "float32", "*": "bfloat16"},
)


@lp.layer("layerport_builtin::rms_norm", version=1)
def rms_norm(x: Tensor, weight: lp.Param | None = None, eps: float = 1e-6) -> Tensor:
    """x * rsqrt(mean(x * x) + eps) * weight over the last axis, as in Zhang and Sennrich (2019).

    x: (..., C), floating point.  weight: (C,), of x's dtype or float32; ones if absent.
    Computed in float32 (float64 for float64) and rounded once, at the end.  Returns a tensor like x.
    Raises ValueError for shapes that do not fit.
    """
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


def _row_bytes(x: lp.TensorType) -> int | lp.Expr:
    return x.shape[-1] * x.itemsize


@rms_norm.kernel(
    lp.cuda("kernel.cu", "rms_norm_narrow<{x}, {weight}>"),
    dtypes=_DTYPES,
    when=lambda x: _row_bytes(x) <= _NARROW_BYTES,
    name="rms_norm_narrow",
)
def launch_narrow(x: lp.TensorType, weight: lp.TensorType | None, y: lp.TensorType, eps: float) -> lp.Launch:
    packs = lp.cdiv(_row_bytes(x), _PACK_BYTES)
    # 4 packs for each lane, but 8 neighbouring lanes read whole lines of 128 bytes first.
    lanes = lp.where(packs <= 32, 8, lp.where(packs <= 64, 16, 32))
    lanes = lp.where(packs <= 1, 1, lp.where(packs <= 2, 2, lp.where(packs <= 4, 4, lanes)))
    rows = math.prod(x.shape[:-1])
    rows_of_block = _NARROW_THREADS // lanes
    return lp.Launch(
        grid=lp.minimum(lp.cdiv(rows, rows_of_block), _MOST_BLOCKS),
        block=(lanes, rows_of_block),
        args=(x, weight, y, rows, x.shape[-1], eps),
    )


@rms_norm.kernel(
    lp.cuda("kernel.cu", "rms_norm_wide<{x}, {weight}, 4>"),
    dtypes=_DTYPES,
    when=lambda x: _row_bytes(x) <= _WIDE_BYTES,
    name="rms_norm_wide",
)
def launch_wide(x: lp.TensorType, weight: lp.TensorType | None, y: lp.TensorType, eps: float) -> lp.Launch:
    return _launch_blocks(x, weight, y, eps, packs_of_thread=4, most_threads=512)


@rms_norm.kernel(lp.cuda("kernel.cu", "rms_norm_wide<{x}, {weight}, 8>"), dtypes=_DTYPES, name="rms_norm_widest")
def launch_widest(x: lp.TensorType, weight: lp.TensorType | None, y: lp.TensorType, eps: float) -> lp.Launch:
    return _launch_blocks(x, weight, y, eps, packs_of_thread=8, most_threads=1024)


def _launch_blocks(
    x: lp.TensorType,
    weight: lp.TensorType | None,
    y: lp.TensorType,
    eps: float,
    *,
    packs_of_thread: int,
    most_threads: int,
) -> lp.Launch:
    warps = lp.cdiv(_row_bytes(x), 32 * packs_of_thread * _PACK_BYTES)
    rows = math.prod(x.shape[:-1])
    return lp.Launch(
        grid=lp.minimum(rows, _MOST_BLOCKS),
        block=lp.minimum(lp.maximum(warps, 1) * 32, most_threads),
        args=(x, weight, y, rows, x.shape[-1], eps),
    )
