"""Values of any framework as plain Python, for attributes.  Needs NumPy, so it is loaded once such a value shows up."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import numpy as np

import layerport.parameters.frameworks
from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.parameters.arguments import Attribute, show_value
from layerport.parameters.arrays import describe
from layerport.parameters.conversion import to_standard


def to_plain(value: Any, type_name: str = "") -> Attribute:
    """A value for an attribute as plain Python: numbers of NumPy and Torch, sequences, enums, plugin fields.

    type_name: the attribute's type, which tells a list of one from a scalar where the value itself cannot.
    Raises UsageError whose fault describes the value.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum) and not isinstance(value, (int, float, str)):
        raise UsageError(f"{type(value).__qualname__} member {value.name}", "give its value")
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # drops the subclass: numpy.float64 is a float, IntEnum an int
    if type(value).__qualname__ == "PluginField" and type(value).__module__.startswith("tensorrt"):
        return layerport.parameters.frameworks.tensorrt.field_to_plain(value, type_name)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return tuple(value)
    try:
        array = to_standard(value).array
    except UsageError:
        raise UsageError(show_value(value)) from None
    if array.ndim > 1:
        raise UsageError(describe(array), "an attribute is a scalar or a list of scalars")
    plain = (array.astype(np.float64) if DType.from_numpy(array.dtype).is_floating else array).tolist()
    return tuple(plain) if array.ndim else plain
