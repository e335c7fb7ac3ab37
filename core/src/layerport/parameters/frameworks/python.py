"""Conversion rules for Python's own numbers and sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.parameters import conversion, transforms
from layerport.parameters.arguments import show_value
from layerport.parameters.arrays import Array, describe
from layerport.parameters.steps import Hop

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
