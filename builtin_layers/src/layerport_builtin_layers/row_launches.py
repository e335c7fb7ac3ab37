"""How the kernels of `rows.h` are launched: which of them takes a row, and with how many threads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import layerport as lp

RMS_DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    {"weight": "float32", "*": "float16"},
    {"weight": "float32", "*": "bfloat16"},
)
"""What the kernels that normalise by RMS take: in 16 bits, the weight may be float32."""

CENTRED_DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    {"weight": "float32", "bias": "float32", "*": "float16"},
    {"weight": "float32", "bias": "float32", "*": "bfloat16"},
)
"""What the kernels of layer normalisation take: in 16 bits, weight and bias may both be float32."""

_PACK_BYTES = 16  # of one load
_NARROW_BYTES = 32 * 4 * _PACK_BYTES  # what the lanes of one warp hold, 4 packs each
_WIDE_BYTES = 512 * 4 * _PACK_BYTES  # what the largest block holds, 4 packs each thread
_NARROW_THREADS = 256
_MOST_BLOCKS = 2**31 - 1


def is_narrow(x: lp.TensorType) -> bool | lp.Expr:
    """Whether a row fits into the registers of one warp."""
    return _row_bytes(x) <= _NARROW_BYTES


def is_wide(x: lp.TensorType) -> bool | lp.Expr:
    """Whether a row fits into the registers of a block that keeps 4 packs in each thread."""
    return _row_bytes(x) <= _WIDE_BYTES


def rows_of(x: lp.TensorType) -> int | lp.Expr:
    """How many rows x has."""
    return math.prod(x.shape[:-1])


def launch_lanes(x: lp.TensorType, args: Sequence[Any]) -> lp.Launch:
    """For `normalise_narrow`: some lanes of a warp for each row."""
    packs = lp.cdiv(_row_bytes(x), _PACK_BYTES)
    # 4 packs for each lane, but 8 neighbouring lanes read whole lines of 128 bytes first.
    lanes = lp.where(packs <= 32, 8, lp.where(packs <= 64, 16, 32))
    lanes = lp.where(packs <= 1, 1, lp.where(packs <= 2, 2, lp.where(packs <= 4, 4, lanes)))
    rows_of_block = _NARROW_THREADS // lanes
    return lp.Launch(
        grid=lp.minimum(lp.cdiv(rows_of(x), rows_of_block), _MOST_BLOCKS), block=(lanes, rows_of_block), args=args
    )


def launch_blocks(x: lp.TensorType, args: Sequence[Any], *, packs_of_thread: int, most_threads: int) -> lp.Launch:
    """For `normalise_wide<packs_of_thread>`: a block for each row, with no more warps than the row needs."""
    warps = lp.cdiv(_row_bytes(x), 32 * packs_of_thread * _PACK_BYTES)
    return lp.Launch(
        grid=lp.minimum(rows_of(x), _MOST_BLOCKS),
        block=lp.minimum(lp.maximum(warps, 1) * 32, most_threads),
        args=args,
    )


def _row_bytes(x: lp.TensorType) -> int | lp.Expr:
    return x.shape[-1] * x.itemsize
