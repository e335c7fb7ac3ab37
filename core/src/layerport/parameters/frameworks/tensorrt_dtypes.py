"""Element types of TensorRT, of whichever flavour: its enums are told apart by name, never imported.

TensorRT has two lists: `DataType` for tensors and weights, `PluginFieldType` for the fields of a plugin.
"""

from __future__ import annotations

from typing import Any

from layerport.dtypes import DType
from layerport.errors import UsageError

_NAMES = {
    DType.FLOAT32: "FLOAT",
    DType.FLOAT16: "HALF",
    DType.BFLOAT16: "BF16",
    DType.FLOAT8_E4M3FN: "FP8",
    DType.INT64: "INT64",
    DType.INT32: "INT32",
    DType.INT8: "INT8",
    DType.INT4: "INT4",
    DType.UINT8: "UINT8",
    DType.BOOL: "BOOL",
}
_FIELDS = {
    DType.FLOAT64: "FLOAT64",
    DType.FLOAT32: "FLOAT32",
    DType.FLOAT16: "FLOAT16",
    DType.BFLOAT16: "BF16",
    DType.FLOAT8_E4M3FN: "FP8",
    DType.INT64: "INT64",
    DType.INT32: "INT32",
    DType.INT16: "INT16",
    DType.INT8: "INT8",
    DType.INT4: "INT4",
}
# It knows the type, and takes it for no tensor of a plugin.
_NOT_IN_PLUGINS = {DType.UINT8}


def in_plugins(dtype: DType) -> bool:
    """Whether a plugin's input or output may have this dtype."""
    return dtype in _NAMES and dtype not in _NOT_IN_PLUGINS


def to_dtype(foreign: Any) -> DType:
    """The dtype of a `DataType`."""
    return _look_up(foreign, _NAMES)


def from_dtype(dtype: DType, trt: Any) -> Any:
    """The `DataType` of the flavour `trt` (its module)."""
    return getattr(trt.DataType, _name(dtype, _NAMES, "tensors"))


def field_to_dtype(foreign: Any) -> DType:
    """The dtype of a `PluginFieldType`."""
    return _look_up(foreign, _FIELDS)


def field_from_dtype(dtype: DType, trt: Any) -> Any:
    """The `PluginFieldType` of the flavour `trt` (its module)."""
    return getattr(trt.PluginFieldType, _name(dtype, _FIELDS, "plugin fields"))


def _look_up(foreign: Any, names: dict[DType, str]) -> DType:
    for dtype, name in names.items():
        if foreign.name == name:
            return dtype
    raise UsageError(f"TensorRT type {foreign.name} has no standard form", f"use one of {', '.join(names)}")


def _name(dtype: DType, names: dict[DType, str], what: str) -> str:
    try:
        return names[dtype]
    except KeyError:
        raise UsageError(f"TensorRT has no {what} of {dtype}", f"cast to one of {', '.join(names)} first") from None
