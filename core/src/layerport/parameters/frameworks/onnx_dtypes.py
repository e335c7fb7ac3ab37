"""Element types of ONNX; onnx-ir counts them with the same numbers."""

from __future__ import annotations

from onnx import TensorProto

from layerport.dtypes import DType
from layerport.errors import UsageError

_NAMES = {DType.FLOAT64: "DOUBLE", DType.FLOAT32: "FLOAT"}
_FROM = {
    dtype: int(TensorProto.DataType.Value(_NAMES.get(dtype) or dtype.value.upper().replace("8_", "8")))
    for dtype in DType
}
_TO = {foreign: dtype for dtype, foreign in _FROM.items()}


def to_dtype(foreign: int) -> DType:
    try:
        return _TO[int(foreign)]
    except KeyError:
        known = foreign in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(foreign) if known else f"number {foreign}"
        raise UsageError(f"ONNX type {name} has no standard form", f"cast to one of {', '.join(DType)}") from None


def from_dtype(dtype: DType) -> int:
    return _FROM[dtype]
