"""Conversion rules for TensorRT's `Weights` and `PluginField`, of whichever flavour the value comes from."""

from __future__ import annotations

import sys
import weakref
from typing import Any

import numpy as np

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.parameters import transforms
from layerport.parameters.arguments import Attribute
from layerport.parameters.arrays import Array
from layerport.parameters.frameworks.tensorrt_dtypes import field_from_dtype, field_to_dtype, from_dtype, to_dtype
from layerport.parameters.steps import Hop

# Weights made from an address do not keep the array alive, and cannot be read back in every dtype.
_held: weakref.WeakKeyDictionary[Any, Array] = weakref.WeakKeyDictionary()


def from_weights(weights: Any) -> Hop:
    """The memory that the weights point to, flat (they have no shape); it lives as long as they do."""
    dtype = to_dtype(weights.dtype)
    if weights in _held:
        return Hop(_held[weights].reshape(-1), "view")
    if weights.size == 0:
        return Hop(np.empty(0, dtype.to_numpy()), "view")
    array = weights.numpy()
    if not isinstance(array, np.ndarray):  # TensorRT hands the weights themselves back where NumPy has no such type
        raise UsageError(
            f"TensorRT weights of {dtype} cannot be read from Python", "take them from where they were made"
        )
    return Hop(array, "view")


def to_weights(array: Array, name: str, target: type | None) -> Any:
    """Weights on the array's memory (int4: on a packed copy).

    The array lives as long as the weights do, and TensorRT reads it until the engine is built: keep them
    till then.
    """
    trt = _module(target, "Weights")
    dtype = DType.from_numpy(array.dtype)
    foreign = from_dtype(dtype, trt)
    memory = array
    if dtype.bits == 4:
        flat = array.reshape(-1)
        memory = transforms.pack_int4(np.concatenate([flat, np.zeros(flat.size % 2, flat.dtype)]))
    weights = trt.Weights(foreign, memory.ctypes.data, array.size)
    _held[weights] = array
    if memory is not array:
        weakref.finalize(weights, lambda kept: None, memory).atexit = False
    return weights


def from_field(field: Any) -> Hop:
    """A copy of the field's data, flat: a field has no shape."""
    if field.type.name == "CHAR":
        raise UsageError(f"plugin field {field.name!r} holds text", "use it as a str attribute")
    dtype = field_to_dtype(field.type)
    if field.size == 0:
        return Hop(np.empty(0, dtype.to_numpy()), "copy")
    return Hop(_data(field, dtype), "copy")


def to_field(array: Array, name: str, target: type | None) -> Any:
    """A field on the array's memory, which the field keeps alive; a field has no shape."""
    trt = _module(target, "PluginField")
    dtype = DType.from_numpy(array.dtype)
    if dtype.bits == 4:
        raise UsageError(f"plugin fields of {dtype} cannot be made", "pack the array to uint8, or view it as int8")
    return trt.PluginField(name, array.reshape(-1).view(_carrier(dtype)), field_from_dtype(dtype, trt))


def field_to_plain(field: Any, type_name: str) -> Attribute:
    """A field as an attribute: text, a scalar, or a list where one is wanted or there are several values."""
    if field.type.name == "CHAR":
        text = bytes(field.data.view(np.uint8)) if field.size else b""
        try:
            return text.removesuffix(b"\0").decode()
        except UnicodeDecodeError:
            raise UsageError(
                f"plugin field {field.name!r} whose text is not UTF-8", "write the field's text as UTF-8"
            ) from None
    values = from_field(field).value.tolist()
    if len(values) == 1 and not type_name.endswith("[]"):
        return values[0]  # type: ignore[no-any-return]
    return tuple(values)


def _carrier(dtype: DType) -> Any:
    return np.uint8 if dtype in (DType.BFLOAT16, DType.FLOAT8_E4M3FN) else dtype.to_numpy()


def _data(field: Any, dtype: DType) -> Array:
    try:
        data: Array = field.data
    except AttributeError:
        raise UsageError(
            f"plugin field {field.name!r}: data of type {field.type.name} cannot be read from Python",
            "pass it as a constant input of the layer, or as FLOAT32",
        ) from None
    return data.astype(dtype.to_numpy(), copy=False)


def _module(target: type | None, name: str) -> Any:
    """The flavour that a type belongs to, or else the one that is loaded."""
    if target is not None:
        return sys.modules[target.__module__]
    loaded = {
        id(getattr(module, name)): module
        for path, module in list(sys.modules.items())
        if path.partition(".")[0].startswith("tensorrt") and isinstance(getattr(module, name, None), type)
    }
    if len(loaded) != 1:
        raise UsageError(
            f"{'no' if not loaded else 'more than one'} flavour of TensorRT is loaded",
            f"give the type itself as the target, such as trt.{name}",
        )
    return next(iter(loaded.values()))
