"""Arrays as Torch tensors, and what Torch does with arrays faster than NumPy.

For `transforms`, once Torch is loaded, and the rules for Torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from layerport.dtypes import DType
from layerport.parameters.arrays import Array
from layerport.parameters.frameworks.torch_dtypes import from_dtype

# NumPy takes no memory of these types from Torch, but does of a type of the same width.
CARRIERS = {
    DType.BFLOAT16: (torch.int16, np.int16),
    DType.FLOAT8_E4M3FN: (torch.uint8, np.uint8),
    DType.FLOAT8_E5M2: (torch.uint8, np.uint8),
}
_CARRIERS_OF_NUMPY = {dtype.to_numpy(): (numpy, from_dtype(dtype)) for dtype, (_, numpy) in CARRIERS.items()}


def to_tensor(array: Array, name: str, target: type | None) -> torch.Tensor:
    """A tensor on the array's memory, or on a copy where that is read-only: a tensor is always writable."""
    if not array.flags.writeable:
        array = array.copy()
    carrier = _CARRIERS_OF_NUMPY.get(array.dtype)
    if carrier is not None:
        return torch.from_numpy(array.view(carrier[0])).view(carrier[1])
    try:
        return torch.from_numpy(array)
    except TypeError:
        from_dtype(DType.from_numpy(array.dtype))  # says what Torch lacks
        raise


# Pairs that Torch casts to the same bits as NumPy and ml_dtypes.  Not from float64 to less than float32: Torch rounds
# twice on that way.
_SMALL = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)
_FAST = frozenset(
    {
        *((source, target) for source in _SMALL for target in (*_SMALL, DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2)),
        *((source, DType.FLOAT64) for source in _SMALL),
        (DType.FLOAT64, DType.FLOAT32),
    }
)


def fast_cast(array: Array, dtype: DType) -> Array | None:
    """The array in `dtype`; None for a pair of types that Torch does not cast faster and to the same bits."""
    if (DType.from_numpy(array.dtype), dtype) not in _FAST:
        return None
    # NumPy's memory comes in huge pages where Torch's does not: half the time of tensor.to() for a large array.
    result = np.empty(array.shape, dtype.to_numpy())
    to_tensor(result, "", None).copy_(_readable(array))
    return result


def fast_permute(array: Array, axes: Sequence[int]) -> Array:
    """The axes in another order, in memory too."""
    carrier = f"i{array.dtype.itemsize}"
    source = _readable(array.view(carrier)).permute(*axes)
    result = np.empty(tuple(source.shape), carrier)
    torch.from_numpy(result).copy_(source)
    return result.view(array.dtype)


def fast_magnitude(array: Array) -> float | None:
    """The largest magnitude, NaN where there is one, in one pass; None for types that Torch does not compare."""
    if DType.from_numpy(array.dtype) not in (*_SMALL, DType.FLOAT64):
        return None
    low, high = _readable(array).aminmax()
    return max(-float(low), float(high))


class _Alias:
    """The memory of an array, said to be writable: Torch has no tensors that are not, and warns of those that are."""

    def __init__(self, array: Array) -> None:
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _readable(array: Array) -> torch.Tensor:
    """A tensor on the array's memory that is only read, so that a read-only array needs no copy."""
    if array.flags.writeable:
        return to_tensor(array, "", None)
    carrier = _CARRIERS_OF_NUMPY.get(array.dtype)
    alias = torch.from_numpy(np.asarray(_Alias(array if carrier is None else array.view(carrier[0]))))
    return alias if carrier is None else alias.view(carrier[1])
