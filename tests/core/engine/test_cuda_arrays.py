"""Tensors in GPU memory as sessions read them: real DLPack capsules of NumPy and Torch, and the array handed out."""

from __future__ import annotations

import ctypes
import gc
import threading
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from gpu_doubles import HostDriver
from layerport.conversion import to_standard
from layerport.engine.device_arrays import DeviceArray, _tensor_in, read_capsule, read_device_tensor
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


DTYPES = ["float32", "float16", "int64", "int8", "bool", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


def filled(name: str, shape: tuple[int, ...]) -> tuple[DeviceArray, np.ndarray[Any, Any], HostDriver]:
    """An array in the double's memory, which is the host's, with what is in it."""
    driver = HostDriver()
    gpu = Gpu(driver)
    with gpu.current():
        made = DeviceArray(gpu, np.dtype(getattr(ml_dtypes, name, None) or name), shape)
    values = (np.arange(made.nbytes // made.dtype.itemsize) % 2).reshape(shape).astype(made.dtype)
    ctypes.memmove(made.address, values.tobytes(), made.nbytes)
    return made, values, driver


@pytest.mark.parametrize("shape", [(2, 3), (0, 4), (), (5,)])
@pytest.mark.parametrize("name", DTYPES)
def test_what_a_session_hands_out_can_be_fed_back(name: str, shape: tuple[int, ...]) -> None:
    made, values, _ = filled(name, shape)
    for value in (made, DlpackOnly(made)):
        read = read_device_tensor(value, path="x")
        assert read is not None
        assert (read.dtype.name, read.shape, read.contiguous) == (name, shape, True)
        assert read.address == made.address or not made.nbytes
    assert made.__dlpack_device__() == (2, 0)
    np.testing.assert_array_equal(made.numpy(), values)


class DlpackOnly:
    def __init__(self, array: DeviceArray) -> None:
        self.array = array

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)


@pytest.mark.parametrize("name", DTYPES)
def test_torch_takes_it_without_a_copy_and_keeps_it(name: str) -> None:
    """With the device changed to the CPU, because the double's memory is the host's and there is no GPU."""
    made, values, driver = filled(name, (2, 3))
    capsule = made.__dlpack__(stream=2, max_version=(1, 0))
    _tensor_in(capsule).device.type = 1
    tensor = torch.utils.dlpack.from_dlpack(capsule)
    assert tensor.dtype is getattr(torch, name) and tensor.data_ptr() == made.address
    assert tensor.float().tolist() == values.astype(np.float32).tolist()
    del made, capsule
    gc.collect()
    assert driver.live()["memory"] == 1
    worker = threading.Thread(target=tensor.set_, args=(torch.empty(0, dtype=tensor.dtype),))
    worker.start()
    worker.join()
    gc.collect()
    assert driver.live()["memory"] == 0


def test_a_capsule_that_nobody_takes_gives_the_memory_back() -> None:
    made, _, driver = filled("bfloat16", (2, 3))
    capsule = made.__dlpack__()
    del made
    gc.collect()
    assert driver.live()["memory"] == 1
    del capsule
    gc.collect()
    assert driver.live()["memory"] == 0


def test_what_dlpack_is_refused() -> None:
    made, _, _ = filled("float32", (2,))
    for options in ({"copy": True}, {"dl_device": (1, 0)}, {"dl_device": (2, 1)}):
        with pytest.raises(BufferError, match="gives no copy and stays on its GPU"):
            made.__dlpack__(**options)
    assert made.__dlpack__(dl_device=(2, 0), copy=False) is not None
    with pytest.raises(BufferError, match="no name for int4"):
        filled("int4", (2,))[0].__dlpack__()


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_the_array_interface_names_no_dtype_that_it_cannot(name: str) -> None:
    made, _, _ = filled(name, (2, 2))
    assert not hasattr(made, "__cuda_array_interface__")
    assert hasattr(filled("float16", (2, 2))[0], "__cuda_array_interface__")


@pytest.mark.parametrize("typestr", ["<V2", "<V1", "<f1"])
def test_raw_bytes_of_others(typestr: str) -> None:
    """DLPack is asked where the interface says raw bytes, as CuPy's does for bfloat16; without it, that is an error."""
    made, _, _ = filled("bfloat16", (2, 3))
    interface = {"version": 3, "shape": (2, 3), "typestr": typestr, "data": (made.address, False)}
    both = DlpackOnly(made)
    both.__cuda_array_interface__ = interface  # type: ignore[attr-defined]
    read = read_device_tensor(both, path="x")
    assert read is not None and read.dtype.name == "bfloat16" and read.stream == 1
    with pytest.raises(UsageError) as caught:
        read_device_tensor(SimpleNamespace(__cuda_array_interface__=interface), path="x")
    assert caught.value.fault == f"x: its CUDA array interface says {typestr}, raw bytes, and it does not speak DLPack"


@pytest.mark.parametrize("name", DTYPES)
def test_a_copy_on_the_host_is_made_where_one_is_needed(name: str) -> None:
    """A session without an engine takes what a session with one left on a GPU."""
    made, values, _ = filled(name, (2, 3))
    array = to_standard(made, path="x").array
    assert array.dtype == values.dtype
    np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize(("kind", "is_read"), [(1, False), (2, True), (3, False), (10, False), (13, True), (14, False)])
def test_the_devices_of_dlpack_that_are_memory_of_the_gpu(kind: int, is_read: bool) -> None:
    made, _, _ = filled("float32", (2, 3))

    class Other:
        """An array of another library, in memory of a kind."""

        def __dlpack_device__(self) -> tuple[int, int]:
            return kind, 0

        def __dlpack__(self, *, stream: int) -> Any:
            assert stream == 1
            return made.__dlpack__()

    found = read_device_tensor(Other(), path="x")
    assert (found is not None) == is_read
    if found is not None:
        assert (found.address, found.shape, found.dtype) == (made.address, (2, 3), np.float32)
