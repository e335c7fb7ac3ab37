"""Element types of Torch."""

from __future__ import annotations

import torch

from layerport.dtypes import DType
from layerport.errors import UsageError

# Torch has names for 4-bit integers, but no tensors of them.
_FROM: dict[DType, torch.dtype] = {dtype: getattr(torch, dtype.value) for dtype in DType if dtype.bits != 4}
_TO = {foreign: dtype for dtype, foreign in _FROM.items()}


def to_dtype(foreign: torch.dtype) -> DType:
    try:
        return _TO[foreign]
    except KeyError:
        raise UsageError(f"{foreign} has no standard form", f"cast to one of {', '.join(_FROM)} first") from None


def from_dtype(dtype: DType) -> torch.dtype:
    try:
        return _FROM[dtype]
    except KeyError:
        raise UsageError(
            f"torch has no tensors of {dtype}", "unpack to int8, or pack with layerport.transforms.pack_int4"
        ) from None
