"""The layer `layerport_builtin::weight_only_linear`: what it computes, and how its kernels are launched."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

import layerport as lp

_WARPS = 8  # of a block, one for each column
_ROWS = 8  # that a warp takes at once, as in the entry below
_UNIT = 32  # codes of one group that tensor.cu takes together
# Rows and columns of a block of tensor.cu by the tiles of its warps.
_BLOCKS = {1: (16, 32), 4: (64, 64)}


@lp.layer("layerport_builtin::weight_only_linear", version=1, find=False, purpose="other precision or layout")
def weight_only_linear(
    x: Tensor,
    codes: lp.Param,
    scales: lp.Param,
    zeros: lp.Param | None = None,
    bias: lp.Param | None = None,
    bits: Literal[4, 8] = 4,
) -> Tensor:
    """x @ ((codes - zeros) * scales).T + bias: as GPTQ (Frantar et al., 2022) and AWQ (Lin et al., 2023) do.

    x: (..., K), floating point.  codes: (N, K), uint8, from 0 to 2**bits - 1.
    scales: (N, G), of x's dtype or float32; zeros: (N, G), uint8, half of 2**bits if absent: of each of the G groups of
    K / G neighbouring codes.  bias: (N,), of x's dtype, or None.
    Returns (..., N) of x's dtype, computed in float32 (float64 for float64) and rounded once, at the end.
    Raises ValueError for shapes and dtypes that do not fit.
    """
    _refuse(x, codes, scales, zeros, bias)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    middle = 2 ** (bits - 1) if zeros is None else zeros.to(wide).unsqueeze(-1)
    groups = codes.to(wide).unflatten(1, (scales.shape[1], -1)) - middle
    result: Tensor = x.to(wide) @ (groups * scales.to(wide).unsqueeze(-1)).flatten(1).T
    if bias is not None:
        result = result + bias.to(wide)
    return result.to(x.dtype)


def _refuse(x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None) -> None:
    named = {"x": x, "codes": codes, "scales": scales, "zeros": zeros, "bias": bias}
    given = {name: one for name, one in named.items() if one is not None}
    if (
        (codes.ndim, scales.ndim) != (2, 2)
        or x.ndim == 0
        or x.shape[-1] != codes.shape[1]
        or scales.shape[0] != codes.shape[0]
        or scales.shape[1] == 0
        or codes.shape[1] == 0
        or codes.shape[1] % scales.shape[1] != 0
        or (zeros is not None and zeros.shape != scales.shape)
        or (bias is not None and bias.shape != codes.shape[:1])
    ):
        shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in given.items())
        raise ValueError(
            f"weight_only_linear: shapes do not fit: {shapes}; give x: (..., K), codes: (N, K), scales and zeros: "
            "(N, G) with K a multiple of G, bias: (N,) or None"
        )
    if (
        not x.is_floating_point()
        or any(one is not None and one.dtype != torch.uint8 for one in (codes, zeros))
        or scales.dtype not in (x.dtype, torch.float32)
        or (bias is not None and bias.dtype != x.dtype)
    ):
        dtypes = ", ".join(f"{name} {one.dtype}" for name, one in given.items())
        raise ValueError(
            f"weight_only_linear: dtypes do not fit: {dtypes}; give codes and zeros in uint8, "
            "scales in x's dtype or float32, bias in x's dtype"
        )


_DTYPES = tuple(
    {"codes": "uint8", "zeros": "uint8", "scales": scales, "*": name}
    for name, scales in (
        *((name, name) for name in ("float32", "float16", "bfloat16")),
        *((name, "float32") for name in ("float16", "bfloat16")),
    )
)


def _kernel(
    file: str, entry: str, name: str, dtypes: Any, when: Any, tile: tuple[int, int], block: Any, *, rows_first: bool
) -> None:
    """tile: rows and columns of y that a block has; rows_first: whether the block after it has the next rows."""

    @weight_only_linear.kernel(lp.cuda(file, entry), dtypes=dtypes, when=when, name=f"weight_only_{name}")
    def launch(
        x: lp.TensorType,
        codes: lp.TensorType,
        scales: lp.TensorType,
        zeros: lp.TensorType | None,
        bias: lp.TensorType | None,
        y: lp.TensorType,
    ) -> lp.Launch:
        width, groups = scales.shape
        k, rows = x.shape[-1], _rows(x)
        blocks, others = lp.cdiv(rows, tile[0]), lp.cdiv(width, tile[1])
        if not rows_first:
            blocks, others = others, blocks
        return lp.Launch(
            grid=blocks * others,
            block=block,
            args=(x, codes, scales, zeros, bias, y, blocks, rows, width, k, codes.shape[1], groups, k // groups),
        )


def _tensor_kernel(tiles: int) -> None:
    """Above the rows of the plain kernel, which is an estimate: where they cross was not measured."""
    tile = _BLOCKS[tiles]
    _kernel(
        "tensor.cu",
        f"weight_only_tensor<{{x}}, {{scales}}, {{bits}}, {tiles}>",
        f"tensor_{tile[0]}",
        _DTYPES[1:],
        (lambda x, scales: _fits(x, scales) & (_rows(x) <= tile[0])) if tiles == 1 else _fits,
        tile,
        256,
        rows_first=True,
    )


def _fits(x: lp.TensorType, scales: lp.TensorType) -> bool | lp.Expr:
    return (_rows(x) > _ROWS) & (x.shape[-1] // scales.shape[1] % _UNIT == 0)


def _plain_kernel(rows_of_warp: int) -> None:
    _kernel(
        "kernel.cu",
        f"weight_only_linear<{{x}}, {{scales}}, {{bits}}, {rows_of_warp}>",
        f"linear_{'row' if rows_of_warp == 1 else 'rows'}",
        _DTYPES,
        (lambda x: _rows(x) <= 1) if rows_of_warp == 1 else None,
        (rows_of_warp, _WARPS),
        (32, _WARPS),
        rows_first=False,
    )


def _rows(x: lp.TensorType) -> int | lp.Expr:
    return math.prod(x.shape[:-1])


_tensor_kernel(1)
_tensor_kernel(4)
_plain_kernel(1)
_plain_kernel(_ROWS)
