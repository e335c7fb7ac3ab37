"""DType against what the foreign libraries themselves say."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.parameters.frameworks import onnx_dtypes, tensorrt_dtypes, torch_dtypes

trt = pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize("dtype", DType)
def test_agrees_with_numpy_and_back(dtype: DType) -> None:
    numpy = dtype.to_numpy()
    assert numpy.name == dtype.value
    assert numpy.itemsize == dtype.itemsize
    assert DType.from_numpy(numpy) is dtype
    if dtype is not DType.BOOL:
        info = (ml_dtypes.finfo if dtype.is_floating else ml_dtypes.iinfo)(numpy)
        assert info.bits == dtype.bits
        assert bool(info.min < 0) is dtype.is_signed


def test_byte_order_does_not_count() -> None:
    assert DType.from_numpy(np.dtype(">f4")) is DType.FLOAT32


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype.bits != 4])
def test_torch_there_and_back(dtype: DType) -> None:
    foreign = torch_dtypes.from_dtype(dtype)
    assert str(foreign) == f"torch.{dtype}"
    assert foreign.itemsize == dtype.itemsize
    assert torch_dtypes.to_dtype(foreign) is dtype


def test_torch_has_no_int4_and_numpy_no_quantised() -> None:
    with pytest.raises(UsageError, match="torch has no tensors of int4\n.*pack_int4"):
        torch_dtypes.from_dtype(DType.INT4)
    with pytest.raises(UsageError, match="torch.complex64 has no standard form"):
        torch_dtypes.to_dtype(torch.complex64)


@pytest.mark.parametrize("dtype", DType)
def test_onnx_there_and_back(dtype: DType) -> None:
    foreign = onnx_dtypes.from_dtype(dtype)
    assert onnx.helper.tensor_dtype_to_np_dtype(foreign) == dtype.to_numpy()
    assert onnx_dtypes.to_dtype(foreign) is dtype


def test_onnx_types_without_a_form() -> None:
    with pytest.raises(UsageError, match="ONNX type STRING has no standard form"):
        onnx_dtypes.to_dtype(onnx.TensorProto.STRING)
    with pytest.raises(UsageError, match="ONNX type number 999"):
        onnx_dtypes.to_dtype(999)


def test_tensorrt_there_and_back() -> None:
    there = {}
    for dtype in DType:
        try:
            there[dtype] = tensorrt_dtypes.from_dtype(dtype, trt)
        except UsageError as error:
            assert f"TensorRT has no tensors of {dtype}" in str(error)
    assert len(there) == 10 and len(set(map(str, there.values()))) == 10
    for dtype, foreign in there.items():
        assert tensorrt_dtypes.to_dtype(foreign) is dtype
        if foreign.itemsize and dtype.bits >= 8:
            assert foreign.itemsize == dtype.itemsize
    with pytest.raises(UsageError, match="TensorRT type E8M0 has no standard form"):
        tensorrt_dtypes.to_dtype(trt.DataType.E8M0)


def test_tensorrt_fields_there_and_back() -> None:
    for dtype in (DType.FLOAT64, DType.FLOAT32, DType.BFLOAT16, DType.INT16, DType.INT4):
        assert tensorrt_dtypes.field_to_dtype(tensorrt_dtypes.field_from_dtype(dtype, trt)) is dtype
    with pytest.raises(UsageError, match="no plugin fields of uint8"):
        tensorrt_dtypes.field_from_dtype(DType.UINT8, trt)
    with pytest.raises(UsageError, match="TensorRT type DIMS"):
        tensorrt_dtypes.field_to_dtype(trt.PluginFieldType.DIMS)


def test_cxx_names_and_the_ones_without() -> None:
    assert (DType.FLOAT16.cxx, DType.BFLOAT16.cxx, DType.INT64.cxx) == (
        "__half",
        "__nv_bfloat16",
        "long long",
    )
    assert len({dtype.cxx for dtype in DType if dtype.bits != 4}) == len(DType) - 2
    with pytest.raises(UsageError, match="uint4 has no C\\+\\+ type of its own\n.*pack_int4"):
        _ = DType.UINT4.cxx


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="unknown dtype 'half'\n  to repair: use one of float64, float32"):
        DType.of("half")
    with pytest.raises(UsageError, match="numpy dtype 'complex128' has no standard form"):
        DType.from_numpy(np.dtype(complex))


def test_no_framework_is_imported() -> None:
    code = (
        "import sys, layerport.dtypes, layerport.parameters.signature, layerport.parameters.annotations;"
        "heavy = {'torch', 'numpy', 'onnx', 'onnx_ir', 'tensorrt_rtx', 'ml_dtypes'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
