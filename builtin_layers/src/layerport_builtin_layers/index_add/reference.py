"""The layer `layerport_builtin::index_add`: what it computes, and how its kernels are launched."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import layerport as lp

_THREADS = 256
_BYTES = 16  # of a pack, of which each thread has one


@lp.layer("layerport_builtin::index_add", version=1, find=True, purpose="not expressible")
def index_add(base: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """Sums over equal indices: base plus each row of source at its index, as `torch.index_add` along the first axis.

    base: (rows, ...), floating point.  index: (count,), int64 or int32: the row of base that each row of source is
    added to; one below 0 counts from the end.  source: (count, ...), of base's dtype and with its other sizes.
    Sums in float32 (float64 for float64), rounded once, at the end.  A kernel adds in no fixed order.
    Returns a tensor like base.  Raises ValueError for shapes and dtypes that do not fit; an index that is no row is
    an error on the CPU, and NaN in the first row (below) or the last one (above) of a kernel, which cannot raise.
    """
    _refuse(base, index, source)
    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    # What torch.export makes of index_add, which has no form for an index below 0.
    return base.to(wide).index_put((index.to(torch.int64),), source.to(wide), accumulate=True).to(base.dtype)


@index_add.spelling
def scattered(base: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """As message passing is often written, with an index for each number."""
    _refuse(base, index, source)
    return base.scatter_add(0, _as_wide_as(source, index), source)


@index_add.spelling
def reduced(base: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """The same by Torch's function for any reduction."""
    _refuse(base, index, source)
    return base.scatter_reduce(0, _as_wide_as(source, index), source, "sum")


def _as_wide_as(source: Tensor, index: Tensor) -> Tensor:
    return index.to(torch.int64).view(-1, *[1] * (source.ndim - 1)).expand_as(source)


def _refuse(base: Tensor, index: Tensor, source: Tensor) -> None:
    faults = []
    if (
        base.ndim < 1
        or index.ndim != 1
        or source.ndim != base.ndim
        or source.shape[0] != index.shape[0]
        or source.shape[1:] != base.shape[1:]
    ):
        faults.append(
            f"shapes do not fit: base {list(base.shape)}, index {list(index.shape)}, source {list(source.shape)}; "
            "give base: (rows, ...), index: (count,), source: (count, ...) with base's other sizes"
        )
    if not base.is_floating_point() or source.dtype != base.dtype or index.dtype not in (torch.int32, torch.int64):
        faults.append(
            f"dtypes do not fit: base {base.dtype}, index {index.dtype}, source {source.dtype}; "
            "give base and source in one floating-point dtype, index in int64 or int32"
        )
    if faults:
        raise ValueError("index_add: " + "; ".join(faults))


@index_add.backward
def backward(base: Tensor, index: Tensor, source: Tensor, grad_output: Tensor) -> tuple[Tensor, None, Tensor]:
    """The gradient for base, and a row of it for each row of source."""
    return grad_output.clone(), None, grad_output[index]


def _dtypes(*names: str) -> tuple[dict[str, str], ...]:
    return tuple({"index": index, "*": name} for index in ("int64", "int32") for name in names)


def _over(tensor: lp.TensorType, *args: Any) -> lp.Launch:
    """One thread for each pack of a tensor."""
    items = math.prod(tensor.shape)
    grid = lp.cdiv(items, _THREADS * (_BYTES // tensor.itemsize))
    return lp.Launch(grid=grid, block=_THREADS, args=(*args, items))


@index_add.kernel(
    lp.cuda("kernel.cu", "index_add_begin<{base}>"),
    lp.cuda("kernel.cu", "index_add_rows<{source}, {index}>"),
    dtypes=_dtypes("float32"),
    name="index_add",
)
def launch(base: lp.TensorType, index: lp.TensorType, source: lp.TensorType, y: lp.TensorType) -> tuple[lp.Launch, ...]:
    rows, channels = base.shape[0], math.prod(base.shape[1:])
    return (_over(base, base, y), _over(source, source, index, y, rows, channels))


@index_add.kernel(
    lp.cuda("kernel.cu", "index_add_begin<{base}>"),
    lp.cuda("kernel.cu", "index_add_rows<{source}, {index}>"),
    lp.cuda("kernel.cu", "index_add_end<{base}>"),
    dtypes=_dtypes("float16", "bfloat16"),
    name="index_add_16",
)
def launch_16(
    base: lp.TensorType, index: lp.TensorType, source: lp.TensorType, y: lp.TensorType
) -> tuple[lp.Launch, ...]:
    rows, channels = base.shape[0], math.prod(base.shape[1:])
    sums = lp.scratch(math.prod(base.shape), "float32")
    return (_over(base, base, sums), _over(source, source, index, sums, rows, channels), _over(y, sums, y))
