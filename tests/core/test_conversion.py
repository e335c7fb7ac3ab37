"""Every framework type to the standard form and back: no byte lost, and none copied where the memory fits."""

from __future__ import annotations

import array as python_array
import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from onnx import TensorProto, numpy_helper
from torch._subclasses.fake_tensor import FakeTensorMode

from layerport import conversion
from layerport.adapters.torch_dtypes import from_dtype
from layerport.conversion import ArrayType, ConversionTable, Hop, Step, from_standard, to_standard
from layerport.dtypes import DType
from layerport.errors import PackError, UsageError
from layerport.parameters import Array, standard_fault
from layerport.signature import Argument, Kind, Param, Signature

trt = pytest.importorskip("tensorrt_rtx")

TORCH = [dtype for dtype in DType if dtype.bits != 4]
WEIGHTS = ["float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "int32", "int8", "int4", "uint8", "bool"]
FIELDS = ["float64", "float32", "int64", "int32", "int16", "int8"]


def same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()


def pointer(value: Any) -> int:
    return int(value.data_ptr() if isinstance(value, torch.Tensor) else value.ctypes.data)


@st.composite
def standard(draw: st.DrawFn, dtypes: Any = tuple(DType)) -> Array:
    dtype = DType(draw(st.sampled_from(dtypes)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    values = draw(hnp.arrays(np.int8, shape, elements=st.integers(-8, 7)))
    return (values if dtype.is_signed else np.asarray(np.abs(values))).astype(dtype.to_numpy())


@st.composite
def laid_out(draw: st.DrawFn, array: Array) -> Array:
    """The same numbers in some other layout."""
    choice = draw(st.sampled_from(["plain", "fortran", "stepped", "reversed", "read-only"]))
    if choice == "fortran":
        return np.asarray(array, order="F")
    if choice == "stepped" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if choice == "reversed" and array.ndim:
        return np.flip(np.flip(array, 0).copy(), 0)
    if choice == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array


@given(st.data())
def test_numpy_in_any_layout(data: st.DataObject) -> None:
    array = data.draw(standard())
    given_ = data.draw(laid_out(array))
    if given_.dtype.kind in "fiu" and data.draw(st.booleans()):
        given_ = given_.astype(given_.dtype.newbyteorder(">"))
    converted = to_standard(given_)
    assert standard_fault(converted.array) is None and same(converted.array, array)
    (step,) = converted.steps
    assert (step.action == "view") is (standard_fault(given_) is None)
    if step.action == "view" and array.size:
        assert pointer(converted.array) == pointer(given_)
    assert (step.source_type, step.dtype, step.shape, step.nbytes, step.by) == (
        "numpy.ndarray", array.dtype.name, array.shape, array.nbytes, "layerport",
    )  # fmt: skip


@given(standard(TORCH))
def test_torch_there_and_back_shares_memory(array: Array) -> None:
    tensor = from_standard(array, "torch")
    assert tensor.dtype is from_dtype(DType.from_numpy(array.dtype)) and tensor.shape == array.shape
    converted = to_standard(tensor)
    assert same(converted.array, array) and standard_fault(converted.array) is None
    assert [step.action for step in converted.steps] == ["view"]
    if array.size:
        assert pointer(array) == pointer(tensor) == pointer(converted.array)


@given(st.data())
def test_torch_in_any_layout(data: st.DataObject) -> None:
    array = data.draw(standard(TORCH))
    plain = from_standard(array, "torch")
    tensor = plain
    if tensor.dim() and data.draw(st.booleans()):
        tensor = tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if tensor.dim() and data.draw(st.booleans()):
        tensor = torch.stack([tensor, tensor], -1)[..., 1]
    if tensor.is_floating_point() and tensor.dtype.itemsize > 1 and data.draw(st.booleans()):
        tensor = torch.nn.Parameter(tensor)
    converted = to_standard(tensor)
    assert same(converted.array, array) and standard_fault(converted.array) is None
    if tensor.numel() and tensor.is_contiguous():
        assert converted.steps[0].action == "view" and pointer(converted.array) == pointer(tensor)
    elif tensor.numel():
        assert converted.steps[0].action == "copy" and pointer(converted.array) != pointer(tensor)


def test_bfloat16_and_fp8_are_bit_for_bit() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    tensor = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16)
    assert to_standard(tensor).array.tobytes() == bits.tobytes()
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        eight = torch.arange(256, dtype=torch.uint8).view(dtype)
        array = to_standard(eight).array
        assert array.view(np.uint8).tolist() == list(range(256))
        np.testing.assert_array_equal(array.astype(np.float32), eight.float().numpy())


def test_what_torch_hides() -> None:
    complex_ = torch.complex(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    assert to_standard(complex_.conj().imag).array.tolist() == [-3, -4]
    assert to_standard(torch.ones(3).expand(2, 3)).array.tolist() == [[1, 1, 1]] * 2
    assert to_standard(torch.tensor(3.0, requires_grad=True) * 2).array == 6
    eye = torch.eye(3)
    for layout in (torch.sparse_coo, torch.sparse_csr):
        with pytest.warns(UserWarning) if layout is torch.sparse_csr else _nothing():
            sparse = eye.to_sparse(layout=layout)
        converted = to_standard(sparse)
        assert converted.array.tolist() == eye.tolist() and converted.steps[0].action == "densify"
    with torch.inference_mode():
        assert to_standard(torch.ones(2)).array.tolist() == [1, 1]
    with torch.device("meta"):
        assert to_standard(eye).array.shape == (3, 3)


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


class Tagged(torch.Tensor):
    """A subclass with a mind of its own about every function."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"asked about {func}")


class Wrapped(torch.Tensor):
    """A subclass that keeps its numbers elsewhere, as quantised weights and DTensor do."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapped:
        wrapper: Wrapped = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)  # type: ignore[attr-defined]
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(str(func))


class Quantised(Wrapped):
    def dequantize(self) -> torch.Tensor:
        return self.inner.float() * 0.5


def test_torch_subclasses() -> None:
    plain = torch.arange(3.0)
    tagged = to_standard(plain.as_subclass(Tagged))
    assert tagged.steps[0].action == "view" and pointer(tagged.array) == pointer(plain)
    quantised = to_standard(Quantised(torch.tensor([2, 4], dtype=torch.int8)))
    assert quantised.array.tolist() == [1, 2] and quantised.steps[0].action == "dequantize"
    parameter = torch.nn.Parameter(Quantised(torch.tensor([2], dtype=torch.int8)), requires_grad=False)
    assert to_standard(parameter).array.tolist() == [1]
    with pytest.raises(UsageError, match=r"w: test_conversion.Wrapped cannot be made a plain tensor\n.*register"):
        to_standard(Wrapped(plain), path="w")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_torch_quantised_tensors() -> None:
    quantised = torch.quantize_per_tensor(torch.tensor([0.0, 0.5, 1.0]), 0.5, 0, torch.qint8)
    converted = to_standard(quantised)
    assert converted.array.tolist() == [0, 0.5, 1] and converted.steps[0].action == "dequantize"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_torch_tensors_without_data_or_form() -> None:
    with FakeTensorMode():
        fake = torch.ones(3)
    cases = [
        (fake, "w: a fake tensor, which has no data"),
        (torch.nn.Parameter(torch.ones(2, 3, device="meta")), r"w: a tensor on the meta device.*shape \[2, 3\]"),
        (torch.nn.parameter.UninitializedParameter(), "w: a lazy parameter that has no shape yet"),
        (torch.ones(2, dtype=torch.complex64), "w: numpy dtype 'complex64' has no standard form"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "w: a nested tensor, which has no one shape"),
        (torch.ones(2, dtype=torch.uint8).view(torch.float8_e8m0fnu), "w: torch.float8_e8m0fnu has no standard form"),
    ]
    for tensor, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            to_standard(tensor, path="w")
        assert caught.value.repair

    def inside(x: torch.Tensor) -> torch.Tensor:
        with pytest.raises(UsageError, match="a tensor inside vmap or grad"):
            to_standard(x)
        return x

    torch.func.vmap(inside)(torch.ones(2, 3))


def test_back_to_torch() -> None:
    array = np.arange(3, dtype=np.float32)
    parameter = from_standard(array, torch.nn.Parameter)
    assert type(parameter) is torch.nn.Parameter and parameter.requires_grad and pointer(parameter) == pointer(array)
    assert not from_standard(np.arange(3), "torch.nn.Parameter").requires_grad
    array.flags.writeable = False
    tensor = from_standard(array, torch.Tensor)
    tensor.zero_()
    assert array.tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match="torch has no tensors of int4"):
        from_standard(np.zeros(2, ml_dtypes.int4), "torch")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_is_only_made_when_asked_for(dtype: torch.dtype) -> None:
    tensor = torch.randn(70_000)
    assert to_standard(tensor).array.dtype == np.float32
    converted = to_standard(tensor, dtype=DType(str(dtype).removeprefix("torch.")), path="w")
    assert converted.array.tobytes() == to_standard(tensor.to(dtype)).array.tobytes()
    assert [(s.action, s.dtype, s.nbytes, s.path) for s in converted.steps] == [
        ("view", "float32", 280_000, "w"), ("cast", str(dtype)[6:], 140_000, "w"),
    ]  # fmt: skip
    assert to_standard(tensor, dtype=DType.FLOAT32).steps == to_standard(tensor).steps
    with pytest.raises(UsageError, match="w: 1 of 1 values are beyond float16 "):
        to_standard(torch.tensor([1e9]), dtype=DType.FLOAT16, path="w")


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (True, "bool", True),
        (3, "int64", 3),
        (2.5, "float32", 2.5),
        ([], "float32", []),
        ([[]], "float32", [[]]),
        (range(3), "int64", [0, 1, 2]),
        ([1, 2.5], "float32", [1, 2.5]),
        (((1, 2), [3, 4]), "int64", [[1, 2], [3, 4]]),
        ([True, False], "bool", [True, False]),
        ([np.float16(1), np.float16(2)], "float16", [1, 2]),
        ([torch.tensor([1, 2]), np.array([3, 4])], "int64", [[1, 2], [3, 4]]),
        ([[torch.tensor(1.0)], [torch.tensor(2.0)]], "float32", [[1], [2]]),
        (np.float16(3), "float16", 3),
        (ml_dtypes.bfloat16(3), "bfloat16", 3),
    ],
)
def test_python_numbers_and_sequences(value: Any, dtype: str, expected: Any) -> None:
    array = to_standard(value).array
    assert standard_fault(array) is None and array.dtype.name == dtype
    assert array.tolist() == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "w: no array can be made of a str\n  to repair: give a tensor"),
        (None, "w: no array can be made of a NoneType"),
        ({"a": 1}, "w: no array can be made of a dict"),
        ([[1], [2, 3]], r"w: a nested sequence of uneven lengths: list \[\[1\], \[2, 3\]\]"),
        ([10**30], "w: list .* does not fit 64 bits"),
        ([1e300], "w: 1 of 1 values are beyond float32"),
        ([1, "a"], r"w: \[1\]: no array can be made of a str"),
        ([1, None], r"w: \[1\]: no array can be made of a NoneType"),
        ([torch.ones(2), torch.ones(3)], r"w: a sequence of unlike arrays: float32\[2\], float32\[3\]"),
        (np.ma.masked_array([1, 2], [0, 1]), "w: a masked array with 1 values masked"),
        (np.array(["a"]), "w: numpy dtype 'str32' has no standard form"),
        (np.array([object()]), "w: numpy dtype 'object' has no standard form"),
        (np.datetime64("2020"), "w: numpy dtype 'datetime64"),
        (python_array.array("f", [1.0]), "w: no conversion rule for array.array\n.*conversion.register"),
    ],
)
def test_values_without_a_form(value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        to_standard(value, path="w")
    assert caught.value.repair


def test_a_list_in_itself_ends() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(UsageError, match="nested more than 32 deep"):
        to_standard(endless)


def test_numpy_subclasses() -> None:
    assert to_standard(np.ma.masked_array([1, 2], [0, 0])).array.tolist() == [1, 2]
    assert type(to_standard(np.arange(3).view(np.recarray)).array) is np.ndarray


class Speaker:
    """Speaks DLPack and nothing else."""

    def __init__(self, tensor: torch.Tensor, device: tuple[int, int] | None = None) -> None:
        self.tensor, self.device = tensor, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.device or self.tensor.__dlpack_device__()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.bool, torch.bfloat16])
def test_dlpack(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    converted = to_standard(Speaker(tensor))
    assert same(converted.array, to_standard(tensor).array)
    assert pointer(converted.array) == pointer(tensor)
    assert converted.steps[0].source_type == "test_conversion.Speaker"
    assert to_standard(Speaker(tensor.T)).array.tolist() == tensor.T.tolist()


def test_dlpack_from_a_device_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="w: test_conversion.Speaker cannot be converted"):
        to_standard(Speaker(torch.ones(2), (2, 0)), path="w")


@given(standard())
def test_onnx_there_and_back(array: Array) -> None:
    proto = from_standard(array, "onnx", name="w")
    assert proto.name == "w" and same(numpy_helper.to_array(proto), array)
    onnx.checker.check_tensor(proto)
    converted = to_standard(proto)
    assert same(converted.array, array) and converted.steps[0].action == "copy"
    tensor = from_standard(array, onnx_ir.Tensor, name="w")
    assert tensor.name == "w" and to_standard(tensor).array is array
    assert same(to_standard(onnx_ir.from_proto(proto)).array, array)
    assert same(numpy_helper.to_array(onnx_ir.to_proto(tensor)), array)


@given(standard(("float32", "float16", "bfloat16", "int64", "int8", "bool", "float64", "uint64", "int4")))
def test_onnx_typed_fields(array: Array) -> None:
    values = array.astype(np.float32 if array.dtype.name == "bfloat16" else array.dtype).reshape(-1).tolist()
    proto = onnx.helper.make_tensor("w", conversion_dtype(array), array.shape, values)
    assert not proto.HasField("raw_data") and same(to_standard(proto).array, array)


def conversion_dtype(array: Array) -> int:
    from layerport.adapters.onnx_dtypes import from_dtype

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
    negative = TensorProto(name="w", dims=[-1], data_type=TensorProto.FLOAT, raw_data=b"1234")
    few = TensorProto(name="w", dims=[4], data_type=TensorProto.FLOAT, float_data=[1])
    text = onnx.helper.make_tensor("w", TensorProto.STRING, [1], [b"a"])
    part = TensorProto(name="w", dims=[1], data_type=TensorProto.FLOAT, raw_data=b"1234")
    part.segment.begin = 1
    for proto, message in [
        (short, r"tensor 'w': 4 bytes for float32\[4\], which takes 16"),
        (negative, r"tensor 'w' has dims \[-1\]"),
        (few, "tensor 'w' is not sound"),
        (text, "ONNX type STRING has no standard form"),
        (part, "tensor 'w' is one segment"),
        (onnx_ir.StringTensor(np.array([b"a"]), name="w"), "ONNX type STRING has no standard form"),
    ]:
        with pytest.raises(UsageError, match=message) as caught:
            to_standard(proto)
        assert caught.value.repair


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


@pytest.mark.parametrize("framework", ["np", "pt"])
@given(array=standard(TORCH))
def test_safetensors_slices(framework: str, array: Array, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("slices") / "w.safetensors"
    safetensors.torch.save_file({"w": from_standard(array, "torch")}, path)
    with safetensors.safe_open(path, framework) as file:
        converted = to_standard(file.get_slice("w"))
    assert same(converted.array, array)
    assert converted.steps[0].source_type == "PySafeSlice"


def test_looking_imports_nothing() -> None:
    code = (
        "import sys, numpy as np; from layerport.conversion import *; from layerport.errors import UsageError\n"
        "to_standard(np.ones(3)); to_standard([1, 2])\n"
        "try: to_standard(object())\n"
        "except UsageError: pass\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'tensorrt_rtx', 'safetensors'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> tuple[ConversionTable, ConversionTable]:
    """Fresh tables for one test, in place of the module's own."""
    fresh = conversion.core_tables()
    monkeypatch.setattr(conversion, "_forward", fresh[0])
    monkeypatch.setattr(conversion, "_back", fresh[1])
    return fresh


class Box:
    def __init__(self, content: Any) -> None:
        self.content = content


class SmallBox(Box): ...


@pytest.mark.usefixtures("tables")
def test_a_pack_adds_a_rule_for_its_type() -> None:
    with pytest.raises(UsageError) as caught:
        to_standard(Box(1), path="m.w")
    assert str(caught.value) == (
        "m.w: no conversion rule for test_conversion.Box\n  to repair: register one with "
        "layerport.conversion.register('test_conversion.Box', rule, by='your pack')"
    )
    conversion.register(Box, lambda box: box.content, by="boxes")
    tensor = torch.arange(6.0).reshape(2, 3)
    converted = to_standard(SmallBox(tensor), path="m.w")
    assert pointer(converted.array) == pointer(tensor)
    assert converted.steps == (
        Step("test_conversion.SmallBox", "", (), 0, "convert", "boxes", "m.w"),
        Step("torch.Tensor", "float32", (2, 3), 24, "view", "layerport", "m.w"),
    )
    conversion.register(SmallBox, lambda box: Hop(np.zeros((3, 2)).T, "unpack"), by="boxes")
    assert [s.action for s in to_standard(SmallBox(1)).steps] == ["unpack", "copy"]
    assert [s.action for s in to_standard(Box(np.ones(1))).steps] == ["convert"]


@pytest.mark.usefixtures("tables")
def test_rules_by_name_and_predicate() -> None:
    conversion.register("test_conversion.SmallBox", lambda box: [1, 2], by="names")
    conversion.register(lambda value: isinstance(value, Box), lambda box: [3], by="predicates")
    assert to_standard(SmallBox(0)).array.tolist() == [1, 2]
    assert to_standard(Box(0)).array.tolist() == [3]
    conversion.register(lambda value: hasattr(value, "content"), lambda box: [4], by="others")
    with pytest.raises(UsageError, match="Box is claimed by the conversion rules of predicates, others\n.*DISABLE_PACKS"):
        to_standard(Box(0))


@pytest.mark.usefixtures("tables")
def test_two_rules_for_one_type_are_an_error() -> None:
    conversion.register(Box, list, by="one")
    for key in (Box, "test_conversion.Box"):
        with pytest.raises(UsageError, match="two conversion rules for test_conversion.Box: one by one, one by two"):
            conversion.register(key, list, by="two")
    with pytest.raises(UsageError, match="for torch.Tensor: one by layerport, one by two"):
        conversion.register(torch.Tensor, list, by="two")


@pytest.mark.usefixtures("tables")
def test_a_packs_rule_at_fault_is_named() -> None:
    def raises(value: Any) -> Any:
        raise KeyError("oops")

    conversion.register(Box, raises, by="boxes")
    with pytest.raises(PackError, match="m.w: the conversion rule for test_conversion.Box by boxes raised KeyError: 'oops'") as caught:
        to_standard(Box(0), path="m.w")
    assert isinstance(caught.value.__cause__.__cause__, KeyError)  # type: ignore[union-attr]
    conversion.register(SmallBox, lambda box: box, by="boxes")
    with pytest.raises(PackError, match="SmallBox is still no array after 8 conversion rules"):
        to_standard(SmallBox(0))
    conversion.register(raises, list, by="guess")
    with pytest.raises(PackError, match="the predicate of a conversion rule by guess raised KeyError: 'oops'"):
        to_standard(object())


@pytest.mark.usefixtures("tables")
def test_a_rule_back() -> None:
    conversion.register_back(Box, lambda array, name, target: (target or Box)(array), by="boxes")
    array = np.ones(2)
    assert type(from_standard(array, SmallBox)) is SmallBox
    assert from_standard(array, "test_conversion.Box").content is array
    assert from_standard(array, "numpy") is array
    with pytest.raises(UsageError, match="no conversion rule for jax.Array\n.*register_back"):
        from_standard(array, "jax.Array")
    with pytest.raises(UsageError, match="w: .* is not C-contiguous"):
        from_standard(np.ones((2, 3)).T, "torch", name="w")


def norm(
    x: torch.Tensor, weight: Param, bias: Param | None = None, eps: float = 1e-5, axes: list[int] | None = None
) -> torch.Tensor:
    raise NotImplementedError


def test_convert_arguments() -> None:
    weight = torch.ones(4)
    parameters, steps = conversion.convert_arguments(
        Signature.of(norm), {"weight": weight, "bias": None, "axes": np.array([1])}, path="m.norm",
        expected={"weight": ArrayType(DType.FLOAT32, (None,))},
    )  # fmt: skip
    assert list(parameters) == ["weight"] and pointer(parameters["weight"]) == pointer(weight)
    assert dict(parameters.attributes) == {"eps": 1e-5, "axes": (1,)}
    assert [step.path for step in steps] == ["m.norm.weight"]


def test_convert_arguments_reports_all_faults_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        conversion.convert_arguments(
            Signature.of(norm),
            {
                "x": torch.ones(1),
                "weight": torch.ones(1, 768),
                "bias": torch.ones(2, device="meta"),
                "eps": "small",
                "wieght": 1,
            },
            path="model.layers.3.norm",
            expected={"weight": ArrayType(DType.FLOAT16, (768,))},
        )
    assert str(caught.value) == (
        "model.layers.3.norm: 5 arguments at fault\n"
        "  - model.layers.3.norm.weight: expected float16[768], got float32[1, 768]\n"
        "  - model.layers.3.norm.bias: a tensor on the meta device, which has no data: shape [2] "
        "(load the model's weights first)\n"
        "  - model.layers.3.norm.eps: expected float, got str 'small'\n"
        "  - model.layers.3.norm.wieght: no such attribute, known: eps, axes\n"
        "  - model.layers.3.norm.x: a run-time input, not a parameter (give it when the layer is called)\n"
        "  to repair: it takes Tensor weight, Tensor? bias=None, float eps=1e-05, int[]? axes=None"
    )


def test_convert_arguments_that_are_missing() -> None:
    for values, got in [({}, "nothing"), ({"weight": None}, "None")]:
        with pytest.raises(UsageError) as caught:
            conversion.convert_arguments(Signature.of(norm), values, path="n")
        assert caught.value.faults == (f"n.weight: expected any[...], got {got}",)


def test_array_types() -> None:
    array = np.ones((2, 3), np.float32)
    assert str(ArrayType(DType.FLOAT16, (None, 3))) == "float16[*, 3]" and str(ArrayType()) == "any[...]"
    assert ArrayType(shape=(None, 3)).admits(array) and ArrayType(DType.FLOAT32).admits(array)
    assert not ArrayType(shape=(2,)).admits(array) and not ArrayType(DType.INT8).admits(array)


def test_converting_takes_no_longer_for_a_larger_tensor() -> None:
    """Pages that nobody touched stay unmapped: a read of 64 GiB would show at once."""
    tensor = torch.empty(1 << 34)
    assert to_standard(tensor).array.nbytes == 1 << 36
