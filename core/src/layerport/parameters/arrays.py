"""Arrays in the standard form: NumPy's, of a dtype that layerport knows, C-contiguous and aligned.  Needs NumPy."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from layerport.dtypes import DType
from layerport.errors import UsageError

Array: TypeAlias = NDArray[Any]


def describe(array: Array) -> str:
    """Dtype and shape as error messages show them: "float32[1, 768]"."""
    return f"{array.dtype.name}[{', '.join(map(str, array.shape))}]"


_C_CONTIGUOUS_AND_ALIGNED = 0x101
_standard_names: dict[np.dtype[Any], str] = {}


def standard_dtype_name(array: Any) -> str | None:
    """The dtype of an array in the standard form, by name; None for anything else, of which `standard_fault` speaks."""
    if type(array) is not np.ndarray or array.flags.num & _C_CONTIGUOUS_AND_ALIGNED != _C_CONTIGUOUS_AND_ALIGNED:
        return None
    name = _standard_names.get(array.dtype)
    if name is None and standard_fault(array) is None:
        name = _standard_names[array.dtype] = DType.from_numpy(array.dtype).value
    return name


def standard_fault(array: Any) -> str | None:
    """What keeps an array from being in the standard form, or None."""
    if type(array) is not np.ndarray:
        return f"expected a numpy.ndarray, got {type(array).__module__}.{type(array).__qualname__}"
    try:
        DType.from_numpy(array.dtype)
    except UsageError as error:
        return error.fault
    if not array.dtype.isnative:
        return f"byte order of {array.dtype} is not the machine's"
    if not array.flags.c_contiguous or not array.flags.aligned:
        return f"{describe(array)} with strides {array.strides} is not C-contiguous and aligned"
    return None


def canonical_bytes(array: Array) -> memoryview:
    """The bytes that stand for an array: its memory, but for 4-bit types, whose upper halves mean nothing."""
    if DType.from_numpy(array.dtype).bits == 4:
        array = array.astype(np.int8)
    return array.reshape(-1).view(np.uint8).data
