"""The layer `layerport_builtin::causal_conv1d`: what it computes, and how its kernels are launched."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

import layerport as lp
from layerport_builtin_layers.row_launches import CENTRED_DTYPES

_THREADS = 256
_PACK_BYTES = 16
_LANES = 64  # of a row, at most
_PACKS = 4  # that a lane goes through
_NARROW = 4  # columns of a weight


@lp.layer("layerport_builtin::causal_conv1d", version=1, find=True, purpose="fusion that TensorRT lacks")
def causal_conv1d(
    x: Tensor, weight: lp.Param, bias: lp.Param | None = None, activation: Literal["none", "silu"] = "none"
) -> Tensor:
    """The depthwise causal convolution of Gu and Dao (2023), "Mamba", as `causal_conv1d_fn` of Dao-AILab/causal-conv1d.

    x: (batch, channels, length), floating point.  weight: (channels, width), or (channels, 1, width) as torch.nn.Conv1d
    has it.  bias: (channels,).  Both are of x's dtype, or both float32.
    y[:, c, t] = activation(bias[c] + sum over k of weight[c, k] * x[:, c, t - width + 1 + k]), with zeros before x.
    Computed in float32 (float64 for float64) and rounded once, at the end.  Returns a tensor like x.
    Raises ValueError for shapes and dtypes that do not fit.
    """
    _refuse(x, weight, bias)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    length, width = x.shape[2], weight.shape[-1]
    factors = weight.reshape(weight.shape[0], width).to(wide)
    columns = functional.pad(x, (width - 1, 0)).to(wide)
    if width <= _NARROW:
        # Of these products TensorRT makes one kernel, and of a convolution four.
        total = columns[..., :length] * factors[:, :1]
        for place in range(1, width):
            total = total + columns[..., place : place + length] * factors[:, place : place + 1]
    else:
        total = functional.conv1d(columns, factors.unsqueeze(1), groups=x.shape[1])
    if bias is not None:
        total = total + bias.to(wide).unsqueeze(-1)
    return (functional.silu(total) if activation == "silu" else total).to(x.dtype)


def _refuse(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    given = {name: one for name, one in (("x", x), ("weight", weight), ("bias", bias)) if one is not None}
    if (
        x.ndim != 3
        or weight.shape[:-1] not in (x.shape[1:2], (x.shape[1], 1))
        or weight.shape[-1] == 0
        or (bias is not None and bias.shape != x.shape[1:2])
    ):
        shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in given.items())
        raise ValueError(
            f"causal_conv1d: shapes do not fit: {shapes}; give x: (batch, channels, length), weight: (channels, width "
            "of at least 1) or (channels, 1, width), bias: (channels,)"
        )
    if (
        not x.is_floating_point()
        or weight.dtype not in (x.dtype, torch.float32)
        or (bias is not None and bias.dtype != weight.dtype)
    ):
        dtypes = ", ".join(f"{name} {one.dtype}" for name, one in given.items())
        raise ValueError(
            f"causal_conv1d: dtypes do not fit: {dtypes}; give weight and bias both in x's dtype or both in float32"
        )


@causal_conv1d.spelling
def cut(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """By Torch's convolution with zeros at both ends, whose last columns are cut off; transformers writes it so."""
    if weight.ndim != 3:
        raise ValueError("the weight of Torch's convolution has three axes")
    # The search tries weights of any sizes; what it finds is proven by the reference.
    groups, width = x.shape[1] // weight.shape[1], weight.shape[2]
    result = functional.conv1d(x.to(weight.dtype), weight, bias, padding=width - 1, groups=groups)[..., : x.shape[2]]
    return (functional.silu(result) if activation == "silu" else result).to(x.dtype)


def _kernel(entry: str, name: str, fixed: int | None = None) -> None:
    """fixed: the width of the weight that the kernel is compiled for, and takes alone; None where it is told."""
    takes = None if fixed is None else lambda weight: weight.shape[-1] == fixed

    @causal_conv1d.kernel(lp.cuda("kernel.cu", entry), dtypes=CENTRED_DTYPES, when=takes, name=f"causal_conv1d_{name}")
    def launch(
        x: lp.TensorType, weight: lp.TensorType, bias: lp.TensorType | None, activation: str, y: lp.TensorType
    ) -> lp.Launch:
        batch, channels, length = x.shape
        items = _PACK_BYTES // x.itemsize if fixed is not None else 1
        lanes = _lanes(lp.cdiv(length, items))
        chunk = lanes * _PACKS
        # A pack that hangs over the start of a row may make one more than the row has items for.
        chunks = lp.maximum(lp.cdiv(length + items - 1, chunk * items), 1)
        rows, of_block = batch * channels, _THREADS // lanes
        told = () if fixed is not None else (weight.shape[-1],)
        return lp.Launch(
            grid=lp.cdiv(rows, of_block) * chunks,
            block=(lanes, of_block),
            args=(x, weight, bias, y, rows, channels, length, chunks, chunk, activation == "silu", *told),
        )


def _lanes(packs: Any) -> Any:
    """As many as there are packs, up to 8, which read a line of 128 bytes; more where each had more than 4 packs."""
    wide = lp.where(packs <= 32, 8, lp.where(packs <= 64, 16, lp.where(packs <= 128, 32, _LANES)))
    return lp.where(packs <= 1, 1, lp.where(packs <= 2, 2, lp.where(packs <= 4, 4, wide)))


for _width in (2, 3, 4):
    _kernel(f"causal_conv1d<{{x}}, {{weight}}, {_width}>", str(_width), _width)
_kernel("causal_conv1d_any<{x}, {weight}>", "any")
