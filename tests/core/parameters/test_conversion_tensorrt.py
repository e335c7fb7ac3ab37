"""TensorRT's weights and plugin fields to the standard form and back, and whose memory they use."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from layerport.conversion import from_standard, to_standard
from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.parameters.arrays import Array
from layerport.parameters.frameworks.tensorrt_dtypes import in_plugins
from layerport.parameters.signature import Argument, Kind, Signature
from standard_arrays import pointer, same, standard

trt = pytest.importorskip("tensorrt_rtx")
WEIGHTS = ["float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "int32", "int8", "int4", "uint8", "bool"]
FIELDS = ["float64", "float32", "int64", "int32", "int16", "int8"]


def test_which_types_a_plugin_takes() -> None:
    taken = {"float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "int32", "int8", "int4", "bool"}
    assert {dtype.value for dtype in DType if in_plugins(dtype)} == taken


@given(standard(WEIGHTS))
def test_tensorrt_weights_there_and_back(array: Array) -> None:
    weights = from_standard(array, trt.Weights)
    assert weights.size == array.size
    converted = to_standard(weights)
    assert same(converted.array, array.reshape(-1)) and converted.steps[0].action == "view"
    if array.size:
        assert pointer(converted.array) == pointer(array)
    assert from_standard(array, "tensorrt").dtype == weights.dtype


def test_tensorrt_weights_made_elsewhere() -> None:
    array = np.arange(4, dtype=np.float16)
    converted = to_standard(trt.Weights(array))
    assert converted.array.tolist() == [0, 1, 2, 3] and pointer(converted.array) == pointer(array)
    assert to_standard(trt.Weights()).array.shape == (0,)
    with pytest.raises(UsageError, match="TensorRT weights of bfloat16 cannot be read from Python"):
        to_standard(trt.Weights(trt.DataType.BF16, array.ctypes.data, 4))
    with pytest.raises(UsageError, match="TensorRT has no tensors of float64"):
        from_standard(np.ones(2), trt.Weights)


def test_tensorrt_weights_keep_their_memory_and_let_it_go() -> None:
    for dtype in (ml_dtypes.bfloat16, ml_dtypes.int4):
        array = np.ones(1024, dtype)
        alive = weakref.ref(array)
        weights = from_standard(array, trt.Weights)
        del array
        gc.collect()
        assert alive() is not None
        del weights
        gc.collect()
        assert alive() is None


@given(standard(FIELDS))
def test_tensorrt_fields_there_and_back(array: Array) -> None:
    field = from_standard(array, trt.PluginField, name="w")
    assert (field.name, field.size) == ("w", array.size)
    assert same(to_standard(field).array, array.reshape(-1))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn"])
def test_tensorrt_fields_that_python_cannot_read(dtype: str) -> None:
    field = from_standard(np.ones(3, DType(dtype).to_numpy()), "tensorrt.PluginField", name="w")
    with pytest.raises(UsageError, match="plugin field 'w': data of type .* cannot be read from Python\n.*constant"):
        to_standard(field)


def test_tensorrt_fields_that_hold_no_array() -> None:
    text = trt.PluginField("mode", b"fast\0", trt.PluginFieldType.CHAR)
    with pytest.raises(UsageError, match="plugin field 'mode' holds text"):
        to_standard(text)
    with pytest.raises(UsageError, match="TensorRT type DIMS has no standard form"):
        to_standard(trt.PluginField("d", np.zeros(8, np.int8), trt.PluginFieldType.DIMS))
    with pytest.raises(UsageError, match="plugin fields of int4 cannot be made"):
        from_standard(np.zeros(2, ml_dtypes.int4), trt.PluginField)


def test_tensorrt_fields_as_attributes() -> None:
    def field(data: Any, kind: str) -> Any:
        return trt.PluginField("f", data, getattr(trt.PluginFieldType, kind))

    arguments = [("mode", "str"), ("eps", "float"), ("axis", "int"), ("axes", "int[]"), ("one", "int[]")]
    signature = Signature(
        (
            Argument("x", Kind.INPUT, "tensor"),
            *(Argument(name, Kind.ATTRIBUTE, type_name) for name, type_name in arguments),
        )
    )
    values = {
        "mode": field("fäst\0".encode(), "CHAR"),
        "eps": field(np.array([0.5], np.float32), "FLOAT32"),
        "axis": field(np.array([3], np.int32), "INT32"),
        "axes": field(np.array([3, 4], np.int32), "INT32"),
        "one": field(np.array([3], np.int32), "INT32"),
    }
    expected = {"mode": "fäst", "eps": 0.5, "axis": 3, "axes": (3, 4), "one": (3,)}
    assert signature.bind_attributes(values) == expected
    with pytest.raises(UsageError, match="f.mode: expected str, got plugin field 'f' whose text is not UTF-8"):
        signature.bind_attributes({**values, "mode": field(b"\xff\0", "CHAR")}, path="f")


def test_a_flavour_must_be_loaded_or_given() -> None:
    code = (
        "import numpy as np; from layerport.conversion import from_standard\n"
        "try: from_standard(np.ones(2), 'tensorrt')\n"
        "except Exception as error: print(error)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.startswith("no flavour of TensorRT is loaded\n  to repair: give the type itself")
