"""ONNX tensors to the standard form and back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from hypothesis import given
from onnx import TensorProto, numpy_helper

from layerport.conversion import from_standard, to_standard
from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.parameters.arrays import Array
from standard_arrays import pointer, same, standard


@given(standard())
def test_onnx_there_and_back(array: Array) -> None:
    proto = from_standard(array, "onnx", name="w")
    assert proto.name == "w" and same(numpy_helper.to_array(proto), array)
    onnx.checker.check_tensor(proto)
    converted = to_standard(proto)
    assert same(converted.array, array) and converted.steps[0].action == "copy"
    tensor = from_standard(array, onnx_ir.Tensor, name="w")
    assert tensor.name == "w" and pointer(to_standard(tensor).array) == pointer(array)
    assert same(to_standard(onnx_ir.from_proto(proto)).array, array)
    assert same(numpy_helper.to_array(onnx_ir.to_proto(tensor)), array)


@given(standard(("float32", "float16", "bfloat16", "int64", "int8", "bool", "float64", "uint64", "int4")))
def test_onnx_typed_fields(array: Array) -> None:
    values = array.astype(np.float32 if array.dtype.name == "bfloat16" else array.dtype).reshape(-1).tolist()
    proto = onnx.helper.make_tensor("w", conversion_dtype(array), array.shape, values)
    assert not proto.HasField("raw_data") and same(to_standard(proto).array, array)


def conversion_dtype(array: Array) -> int:
    from layerport.parameters.frameworks.onnx_dtypes import from_dtype

    return from_dtype(DType.from_numpy(array.dtype))


def test_onnx_ir_of_the_exporter_is_a_view() -> None:
    from torch.onnx._internal.exporter._core import TorchTensor

    tensor = torch.arange(3, dtype=torch.bfloat16)
    converted = to_standard(TorchTensor(tensor))
    assert same(converted.array, to_standard(tensor).array) and pointer(converted.array) == pointer(tensor)


def test_onnx_external_data_is_refused_until_loaded(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    graph = onnx.helper.make_graph([], "g", [], [], [weight])
    path = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(graph), path, save_as_external_data=True, location="m.data", size_threshold=0)
    unloaded = onnx.load(path, load_external_data=False).graph.initializer[0]
    with pytest.raises(UsageError, match="p: tensor 'w' keeps its data in 'm.data', which is not loaded\n.*onnx.load"):
        to_standard(unloaded, path="p")
    assert to_standard(onnx.load(path).graph.initializer[0]).array.tolist() == [0, 1, 2, 3]
    model = onnx_ir.load(path)
    external = model.graph.initializers["w"].const_value
    with pytest.raises(UsageError, match="tensor 'w' keeps its data in 'm.data'.*\n.*load_to_model"):
        to_standard(external)
    onnx_ir.external_data.load_to_model(model)
    assert to_standard(model.graph.initializers["w"].const_value).array.tolist() == [0, 1, 2, 3]


def test_onnx_tensors_that_are_not_sound() -> None:
    short = TensorProto(name="w", dims=[4], data_type=TensorProto.FLOAT, raw_data=b"1234")
    odd = TensorProto(name="w", dims=[3], data_type=TensorProto.INT4, raw_data=b"1")
    negative = TensorProto(name="w", dims=[-1], data_type=TensorProto.FLOAT, raw_data=b"1234")
    few = TensorProto(name="w", dims=[4], data_type=TensorProto.FLOAT, float_data=[1])
    text = onnx.helper.make_tensor("w", TensorProto.STRING, [1], [b"a"])
    part = TensorProto(name="w", dims=[1], data_type=TensorProto.FLOAT, raw_data=b"1234")
    part.segment.begin = 1
    for proto, message in [
        (short, r"tensor 'w': 4 bytes for float32\[4\], which takes 16"),
        (odd, r"tensor 'w': 1 bytes for int4\[3\], which takes 2"),
        (negative, r"tensor 'w' has dims \[-1\]"),
        (few, "tensor 'w' is not sound"),
        (text, "ONNX type STRING has no standard form"),
        (part, "tensor 'w' is one segment"),
        (onnx_ir.StringTensor(np.array([b"a"]), name="w"), "ONNX type STRING has no standard form"),
    ]:
        with pytest.raises(UsageError, match=message) as caught:
            to_standard(proto)
        assert caught.value.repair


def test_onnx_ir_says_whether_it_was_a_view() -> None:
    array = np.arange(4, dtype=np.float32)
    converted = to_standard(onnx_ir.Tensor(array))
    assert converted.steps[0].action == "view" and pointer(converted.array) == pointer(array)
    packed = onnx_ir.PackedTensor(np.array([0x21], np.uint8), dtype=onnx_ir.DataType.UINT4, shape=onnx_ir.Shape([2]))
    converted = to_standard(packed)
    assert converted.steps[0].action == "convert" and converted.array.astype(int).tolist() == [1, 2]
