"""Torch tensors to the standard form and back: no byte lost, and none copied where the memory fits."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from torch._subclasses.fake_tensor import FakeTensorMode

from layerport.conversion import from_standard, to_standard
from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.parameters.arrays import Array, standard_fault
from layerport.parameters.frameworks.torch_dtypes import from_dtype
from standard_arrays import TORCH, pointer, same, standard


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
        with pytest.warns(UserWarning) if layout is torch.sparse_csr else contextlib.nullcontext():
            sparse = eye.to_sparse(layout=layout)
        converted = to_standard(sparse)
        assert converted.array.tolist() == eye.tolist() and converted.steps[0].action == "densify"
    with torch.inference_mode():
        assert to_standard(torch.ones(2)).array.tolist() == [1, 1]
    with torch.device("meta"):
        assert to_standard(eye).array.shape == (3, 3)


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
        if func is torch.ops.aten.detach.default:
            return args[0]
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
    with pytest.raises(UsageError, match=rf"w: {__name__}.Wrapped cannot be made a plain tensor\n.*register"):
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
        (
            torch.nn.Parameter(torch.ones(2, 3, device="meta")),
            r"w: a tensor on the meta device.*shape \[2, 3\]",
        ),
        (torch.nn.parameter.UninitializedParameter(), "w: a lazy parameter that has no shape yet"),
        (torch.ones(2, dtype=torch.complex64), "w: numpy dtype 'complex64' has no standard form"),
        (
            torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "w: a nested tensor, which has no one shape",
        ),
        (
            torch.ones(2, dtype=torch.uint8).view(torch.float8_e8m0fnu),
            "w: torch.float8_e8m0fnu has no standard form",
        ),
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
    assert to_standard(tensor.to(dtype), dtype=DType.FLOAT32).array.dtype == np.float32
    with pytest.raises(UsageError, match="w: 1 of 1 values are beyond float16 "):
        to_standard(torch.tensor([1e9]), dtype=DType.FLOAT16, path="w")


def test_converting_takes_no_longer_for_a_larger_tensor() -> None:
    """Pages that nobody touched take no memory: whoever reads or copies the tensor makes them resident."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    tensor = torch.empty(1 << 28)
    assert to_standard(tensor).array.nbytes == 1 << 30
    assert resident() - before < 1 << 26
