"""The one neutral list of element types.  Imports nothing foreign at module level; anyone may import it.

Each foreign library has one short file with `to_dtype` and `from_dtype` (parameters/frameworks/torch_dtypes.py, ...);
NumPy is the standard form's own library, so its two directions live here.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any

from layerport.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


class DType(StrEnum):
    """An element type; the value is its name in NumPy, ml_dtypes and Torch."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT8_E4M3FN = "float8_e4m3fn"
    FLOAT8_E5M2 = "float8_e5m2"
    INT64 = "int64"
    INT32 = "int32"
    INT16 = "int16"
    INT8 = "int8"
    INT4 = "int4"
    UINT64 = "uint64"
    UINT32 = "uint32"
    UINT16 = "uint16"
    UINT8 = "uint8"
    UINT4 = "uint4"
    BOOL = "bool"

    @classmethod
    def of(cls, name: str) -> DType:
        """The dtype of this name; UsageError lists the known names."""
        try:
            return cls(name)
        except ValueError:
            raise UsageError(f"unknown dtype {name!r}", f"use one of {', '.join(cls)}") from None

    @classmethod
    def from_numpy(cls, dtype: np.dtype[Any]) -> DType:
        """The dtype of a NumPy dtype, in any byte order; UsageError where there is none."""
        return _from_numpy(dtype)

    @property
    def bits(self) -> int:
        """Bits of one element that carry information: 4 for int4, 8 for bool."""
        return _BITS[self]

    @property
    def itemsize(self) -> int:
        """Bytes of one element in the standard form, where int4 takes a whole byte until it is packed."""
        return max(1, _BITS[self] // 8)

    @property
    def is_floating(self) -> bool:
        """Whether it holds fractions: float, bfloat16 or fp8."""
        return self.value.startswith(("float", "bfloat"))

    @property
    def is_signed(self) -> bool:
        """Whether it holds negative numbers."""
        return not self.value.startswith(("uint", "bool"))

    @property
    def cxx(self) -> str:
        """The C++ type of one element in a kernel; UsageError for the 4-bit types, which have none."""
        try:
            return _CXX[self]
        except KeyError:
            raise UsageError(
                f"{self.value} has no C++ type of its own",
                "pack two per byte with layerport.transforms.pack_int4 and let the kernel take uint8",
            ) from None

    def to_numpy(self) -> np.dtype[Any]:
        """The NumPy dtype (from ml_dtypes for bfloat16, fp8 and the 4-bit types)."""
        return _numpy_dtype(self)


_BITS = {
    dtype: 8 if dtype is DType.BOOL else int("".join(c for c in dtype.value.split("_")[0] if c.isdigit()))
    for dtype in DType
}

_CXX = {
    DType.FLOAT64: "double",
    DType.FLOAT32: "float",
    DType.FLOAT16: "__half",
    DType.BFLOAT16: "__nv_bfloat16",
    DType.FLOAT8_E4M3FN: "__nv_fp8_e4m3",
    DType.FLOAT8_E5M2: "__nv_fp8_e5m2",
    DType.INT64: "long long",
    DType.INT32: "int",
    DType.INT16: "short",
    DType.INT8: "signed char",
    DType.UINT64: "unsigned long long",
    DType.UINT32: "unsigned int",
    DType.UINT16: "unsigned short",
    DType.UINT8: "unsigned char",
    DType.BOOL: "bool",
}

_IN_ML_DTYPES = frozenset({DType.BFLOAT16, DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2, DType.INT4, DType.UINT4})


@cache  # the name of a NumPy dtype is made anew, slowly, at each look
def _from_numpy(dtype: np.dtype[Any]) -> DType:
    try:
        return DType(dtype.name)
    except ValueError:
        raise UsageError(
            f"numpy dtype {dtype.name!r} has no standard form", f"cast to one of {', '.join(DType)} first"
        ) from None


@cache
def _numpy_dtype(dtype: DType) -> np.dtype[Any]:
    import numpy as np

    if dtype in _IN_ML_DTYPES:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, dtype.value))
        return found
    return np.dtype(dtype.value)
