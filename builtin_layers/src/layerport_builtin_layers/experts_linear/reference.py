"""The layer `layerport_builtin::experts_linear`: what it computes, and how its kernel is launched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import layerport as lp

_WARPS = 8
_COLUMNS = 2  # of a warp, as in kernel.cu
_TILE = 64  # as in grouped.cu
_COLUMNS_OF_TENSOR = 128  # of a block, as in tensor.cu
# Pairs (token, expert) of each expert on average, from which on sorting is worth it.  On an H100, with the 128 experts
# of Qwen3-MoE in float16: a pair by itself takes 2 us, tiles on tensor cores 920 us for 128 pairs, 2,650 for 16,384.
_TOKENS_FOR_TENSOR = 4
_TOKENS_FOR_TILES = 8  # on the CUDA cores (4,560 us for the 16,384); where they cross was not measured


@lp.layer("layerport_builtin::experts_linear", version=1, find=False, purpose="not expressible")
def experts_linear(x: Tensor, index: Tensor, weight: lp.Param, bias: lp.Param | None = None) -> Tensor:
    """Each token's linear layers of the experts that a router chose for it (Shazeer et al., 2017, mixture of experts).

    x: (tokens, channels), the same for all experts of a token, or (tokens, chosen, channels); floating point.
    index: (tokens, chosen), int64: the expert of each; one that is not from 0 to experts - 1 gives zeros.
    weight: (experts, width, channels).  bias: (experts, width), or None.  Both of x's dtype.
    Returns weight[index[t, k]] @ (x[t] or x[t, k]) + bias[index[t, k]], (tokens, chosen, width), of x's dtype, computed
    in float32 (float64 for float64) and rounded once, at the end.
    Raises ValueError for shapes and dtypes that do not fit.
    """
    _refuse(x, index, weight, bias)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x.to(wide) if x.ndim == 3 else x.to(wide).unsqueeze(1)
    number = torch.arange(weight.shape[0], device=x.device)
    start = torch.zeros((*index.shape, weight.shape[1]), dtype=wide, device=x.device)

    def step(result: Tensor, expert: Tensor, matrix: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        *added, rows, index = rest
        product = rows @ matrix.to(rows.dtype).T
        for one in added:
            product = product + one.to(rows.dtype)
        return (torch.where((index == expert).unsqueeze(-1), product, result),)

    (result,) = lp.scan(step, [start], [number, weight, *([] if bias is None else [bias])], (rows, index))
    return result.to(x.dtype)


def _refuse(x: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if (
        x.ndim not in (2, 3)
        or (index.ndim, weight.ndim) != (2, 3)
        or x.shape[:-1] != index.shape[: x.ndim - 1]
        or x.shape[-1] != weight.shape[2]
        or (bias is not None and bias.shape != weight.shape[:2])
    ):
        raise ValueError(
            f"experts_linear: shapes do not fit: x {list(x.shape)}, index {list(index.shape)}, "
            f"weight {list(weight.shape)}, bias {None if bias is None else list(bias.shape)}; give x: (tokens, "
            "channels) or (tokens, chosen, channels), index: (tokens, chosen), weight: (experts, width, channels), "
            "bias: (experts, width) or None"
        )
    dtypes = {one.dtype for one in (x, weight, bias) if one is not None}
    if len(dtypes) != 1 or not x.is_floating_point() or index.dtype != torch.int64:
        raise ValueError(
            f"experts_linear: dtypes do not fit: x {x.dtype}, index {index.dtype}, weight {weight.dtype}"
            f"{'' if bias is None else f', bias {bias.dtype}'}; "
            "give index in int64, the others in one floating-point dtype"
        )


@experts_linear.backward
def backward(x: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None, grad_output: Tensor) -> tuple[Any, ...]:
    """One pass over the experts, where the recomputed reference would keep what each of them made of all tokens."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = (x if x.ndim == 3 else x.unsqueeze(1)).to(wide).expand(*index.shape, -1)
    start = torch.zeros(rows.shape, dtype=wide, device=x.device)

    def step(
        total: Tensor, expert: Tensor, matrix: Tensor, gradient: Tensor, rows: Tensor, index: Tensor
    ) -> tuple[Tensor, ...]:
        mine = torch.where((index == expert).unsqueeze(-1), gradient, 0.0)
        by_matrix = mine.flatten(0, 1).T @ rows.flatten(0, 1)
        return total + mine @ matrix.to(mine.dtype), by_matrix, mine.sum((0, 1))

    number = torch.arange(weight.shape[0], device=x.device)
    by_rows, by_weight, by_bias = lp.scan(step, [start], [number, weight], (grad_output.to(wide), rows, index))
    by_x = by_rows if x.ndim == 3 else by_rows.sum(1)
    return by_x.to(x.dtype), None, by_weight.to(weight.dtype), None if bias is None else by_bias.to(bias.dtype)


_DTYPES = (
    {"index": "int64", "*": "float32"},
    {"index": "int64", "*": "float16"},
    {"index": "int64", "*": "bfloat16"},
)


def _grouped(
    x: lp.TensorType,
    index: lp.TensorType,
    weight: lp.TensorType,
    bias: lp.TensorType | None,
    y: lp.TensorType,
    *,
    columns: int,
    threads: int,
) -> tuple[lp.Launch, ...]:
    """Count, sort, and multiply tiles of these columns."""
    experts, width, channels = weight.shape
    pairs, chosen = index.numel(), index.shape[1]
    tiles = pairs // _TILE + experts + 1  # each expert, and none of them, may have one that is not full
    counts, order = lp.scratch(experts + 1, "int32"), lp.scratch(pairs, "int32")
    cut, total = lp.scratch((tiles, 3), "int32"), lp.scratch((), "int32")
    return (
        lp.Launch(grid=experts + 1, block=256, args=(index, counts, pairs, experts)),
        lp.Launch(grid=experts + 1, block=256, args=(index, counts, order, cut, total, pairs, experts)),
        lp.Launch(
            grid=(tiles, lp.cdiv(width, columns)),
            block=threads,
            args=(x, order, cut, total, weight, bias, y, chosen, x.ndim == 2, width, channels),
        ),
    )


@experts_linear.kernel(
    lp.cuda("grouped.cu", "experts_count"),
    lp.cuda("grouped.cu", "experts_sort"),
    lp.cuda("tensor.cu", "experts_tensor<{x}>"),
    dtypes=_DTYPES[1:],
    when=lambda index, weight: index.numel() >= _TOKENS_FOR_TENSOR * weight.shape[0],
    name="experts_tensor",
)
def launch_tensor(
    x: lp.TensorType, index: lp.TensorType, weight: lp.TensorType, bias: lp.TensorType | None, y: lp.TensorType
) -> tuple[lp.Launch, ...]:
    return _grouped(x, index, weight, bias, y, columns=_COLUMNS_OF_TENSOR, threads=128)


@experts_linear.kernel(
    lp.cuda("grouped.cu", "experts_count"),
    lp.cuda("grouped.cu", "experts_sort"),
    lp.cuda("grouped.cu", "experts_grouped<{x}>"),
    dtypes=_DTYPES[:1],
    when=lambda index, weight: index.numel() >= _TOKENS_FOR_TILES * weight.shape[0],
    name="experts_grouped",
)
def launch_grouped(
    x: lp.TensorType, index: lp.TensorType, weight: lp.TensorType, bias: lp.TensorType | None, y: lp.TensorType
) -> tuple[lp.Launch, ...]:
    return _grouped(x, index, weight, bias, y, columns=_TILE, threads=256)


@experts_linear.kernel(lp.cuda("kernel.cu", "experts_linear<{x}>"), dtypes=_DTYPES, name="experts_linear")
def launch(
    x: lp.TensorType, index: lp.TensorType, weight: lp.TensorType, bias: lp.TensorType | None, y: lp.TensorType
) -> lp.Launch:
    experts, width, channels = weight.shape
    blocks = lp.cdiv(width, _WARPS * _COLUMNS)
    return lp.Launch(
        grid=index.numel() * blocks,
        block=(32, _WARPS),
        args=(x, index, weight, bias, y, blocks, index.shape[1], x.ndim == 2, experts, width, channels),
    )
