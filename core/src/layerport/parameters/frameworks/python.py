"""Conversion rules for Python's own numbers and sequences: to arrays, and to plain attribute values."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.parameters import conversion, transforms
from layerport.parameters.conversion import Hop
from layerport.parameters.frameworks.tensorrt import field_to_plain
from layerport.parameters.signature import Attribute, show_value
from layerport.parameters.standard_form import Array, describe

_NUMBERS = (bool, int, float)
_MOST_DIMS = 32


def from_python(value: Any) -> Hop:
    """A number or a (nested) sequence of numbers, arrays or tensors; bool, int64 or float32 as in Torch."""
    if isinstance(value, range):
        value = list(value)
    if isinstance(value, (list, tuple)) and not all(isinstance(leaf, _NUMBERS) for leaf in _leaves(value)):
        return Hop(_stack(value), "stack")
    try:
        array = np.array(value)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"a nested sequence of uneven lengths: {show_value(value)}", "pad it") from error
    if array.size == 0 or array.dtype == np.float64:
        array = transforms.cast(array, DType.FLOAT32)
    if array.dtype == object:
        raise UsageError(f"{show_value(value)} does not fit 64 bits", "give a float or a smaller number")
    return Hop(array, "parse")


def to_plain(value: Any, type_name: str = "") -> Attribute:
    """See `conversion.to_plain`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum) and not isinstance(value, (int, float, str)):
        raise UsageError(f"{type(value).__qualname__} member {value.name}", "give its value")
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # drops the subclass: numpy.float64 is a float, IntEnum an int
    if type(value).__qualname__ == "PluginField" and type(value).__module__.startswith("tensorrt"):
        return field_to_plain(value, type_name)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return tuple(value)
    try:
        array = conversion.to_standard(value).array
    except UsageError:
        raise UsageError(show_value(value)) from None
    if array.ndim > 1:
        raise UsageError(describe(array), "an attribute is a scalar or a list of scalars")
    dtype = DType.from_numpy(array.dtype)
    if dtype.bits == 4:
        array = array.astype(np.int8)
    plain = (array.astype(np.float64) if dtype.is_floating else array).tolist()
    return tuple(plain) if array.ndim else plain


def _leaves(value: Any, depth: int = 0) -> Iterator[Any]:
    if depth > _MOST_DIMS:
        raise UsageError(f"a sequence nested more than {_MOST_DIMS} deep", "give an array")
    for item in value:
        if isinstance(item, (list, tuple)):
            yield from _leaves(item, depth + 1)
        else:
            yield item


def _stack(value: Any) -> Array:
    """A sequence whose leaves are arrays of one dtype and shape."""
    arrays = [
        _stack(item) if isinstance(item, (list, tuple)) else conversion.to_standard(item, path=f"[{index}]").array
        for index, item in enumerate(value)
    ]
    if len(kinds := {describe(array) for array in arrays}) != 1:
        raise UsageError(
            f"a sequence of unlike arrays: {', '.join(sorted(kinds)) or 'none at all'}",
            "give all the same dtype and shape",
        )
    return np.stack(arrays)
