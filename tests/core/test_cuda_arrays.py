"""Tensors in GPU memory as sessions read them: real DLPack capsules of NumPy and Torch, and the array handed out."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from gpu_doubles import HostDriver
from layerport.adapters.cuda_arrays import DeviceArray, read_capsule
from layerport.engine.gpu import Gpu
from layerport.errors import UsageError


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_, np.uint8])
def test_capsules_of_numpy(dtype: Any) -> None:
    array = np.zeros((2, 3, 4), dtype)
    for value in (array, array[:, 1:], array.transpose(2, 0, 1), array[:0]):
        read = read_capsule(value.__dlpack__(), "x")
        assert (read.dtype, read.shape) == (value.dtype, value.shape)
        assert read.contiguous == value.flags.c_contiguous
        assert read.address == value.ctypes.data or value.size == 0
        assert read.nbytes == value.nbytes and read.ndim == 3


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.bfloat16, "bfloat16"),
        (torch.float8_e4m3fn, "float8_e4m3fn"),
        (torch.float8_e5m2, "float8_e5m2"),
        (torch.bool, "bool"),
    ],
)
def test_capsules_of_torch(dtype: torch.dtype, name: str) -> None:
    value = torch.zeros(4, 2, dtype=dtype)[1:]
    read = read_capsule(value.__dlpack__(), "x")
    assert (read.dtype.name, read.shape, read.address) == (name, (3, 2), value.data_ptr())


def test_a_capsule_of_complex_numbers() -> None:
    with pytest.raises(UsageError) as caught:
        read_capsule(np.zeros(2, np.complex64).__dlpack__(), "x")
    assert caught.value.fault == "x: DLPack type 5 of 64 bits x 1 has no standard form"


def test_bfloat16_goes_round() -> None:
    gpu = Gpu(HostDriver())
    with gpu.current():
        made = DeviceArray(gpu, np.dtype(ml_dtypes.bfloat16), (2, 2))
    assert made.__cuda_array_interface__["typestr"] == "<V2" and made.nbytes == 8
    assert made.numpy().dtype == ml_dtypes.bfloat16
