"""Arrays in GPU memory: those of Torch, of the CUDA array interface and of DLPack read, and one of our own to give.

Sessions use it.  It imports none of these libraries: a Torch tensor is known by the Torch that made it.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from layerport.dtypes import DType
from layerport.errors import UsageError

if TYPE_CHECKING:
    from layerport.engine.gpu import Gpu

ALIGNMENT = 16
_CUDA, _CUDA_MANAGED = 2, 13  # device types of DLPack
LEGACY_STREAM = 1


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor in GPU memory: where it lies, and the stream that may still be writing it (None: it is complete).

    strides: in elements, None for C-contiguous.  keep: what must live as long as the address is used.
    """

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    stream: int | None = None
    keep: Any = field(default=None, repr=False)

    @property
    def ndim(self) -> int:
        """The number of dims."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie one after another, the last axis fastest."""
        if self.strides is None or 0 in self.shape:
            return True
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


def read_device_tensor(value: Any, *, path: str) -> DeviceTensor | None:
    """The tensor in GPU memory that a value is; None for anything else.  Nothing is copied.

    Raises UsageError for a tensor of a kind that has no plain memory.
    """
    if isinstance(value, DeviceArray):
        return DeviceTensor(value.address, value.dtype, value.shape, keep=value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _from_torch(torch, value, path) if value.is_cuda else None
    interface = getattr(value, "__cuda_array_interface__", None)
    # The interface has no name for bfloat16 and fp8 and says raw bytes; DLPack has.
    typestr = None if interface is None else interface["typestr"]
    if typestr is not None and _named(typestr):
        return _from_interface(interface, value, path)
    if hasattr(type(value), "__dlpack_device__") and int(value.__dlpack_device__()[0]) in (_CUDA, _CUDA_MANAGED):
        # The producer orders its work before the stream that it is told; whoever reads then waits for that one.
        return read_capsule(value.__dlpack__(stream=LEGACY_STREAM), path, LEGACY_STREAM)
    if typestr is not None:
        raise UsageError(
            f"{path}: its CUDA array interface says {typestr}, raw bytes, and it does not speak DLPack",
            "pass it as a Torch tensor, or as an array with DLPack: the interface has no name for bfloat16 and fp8",
        )
    return None


def placement_faults(name: str, tensor: DeviceTensor, gpu: Gpu) -> list[str]:
    """Why an engine on a GPU cannot read a tensor where it lies."""
    if tensor.nbytes == 0:
        return []
    faults = []
    owner = gpu.owner(tensor.address)
    if owner != gpu.number:
        where = "memory that CUDA does not know" if owner is None else f"GPU {owner}"
        faults.append(f"{name}: lies in {where} (at {tensor.address:#x}), the engine runs on GPU {gpu.number}")
    if not tensor.contiguous:
        faults.append(
            f"{name}: is not contiguous, shape {list(tensor.shape)} has strides {list(tensor.strides or ())}; "
            "pass a contiguous copy"
        )
    if tensor.address % ALIGNMENT:
        faults.append(
            f"{name}: lies at {tensor.address:#x}, which is no multiple of {ALIGNMENT} bytes "
            "(a view into a larger tensor?); pass a copy"
        )
    return faults


def _from_torch(torch: Any, value: Any, path: str) -> DeviceTensor:
    if value.layout != torch.strided or value.is_quantized or value.is_conj() or value.is_neg():
        raise UsageError(
            f"{path}: a tensor on {value.device} that is not plain and dense ({value.layout}, {value.dtype})",
            "pass a plain dense tensor",
        )
    name = str(value.dtype).removeprefix("torch.")
    if name not in DType.__members__.values():
        raise UsageError(f"{path}: {value.dtype} has no standard form", f"cast to one of {', '.join(DType)} first")
    return DeviceTensor(
        int(value.data_ptr()),
        DType(name).to_numpy(),
        tuple(int(size) for size in value.shape),
        tuple(int(stride) for stride in value.stride()),
        int(torch.cuda.current_stream(value.device).cuda_stream),
        value,
    )


def _from_interface(interface: Any, value: Any, path: str) -> DeviceTensor:
    if interface.get("mask") is not None:
        raise UsageError(f"{path}: a masked array", "fill its gaps first")
    dtype = np.dtype(interface["typestr"])
    strides = interface.get("strides")
    steps = None if strides is None else tuple(int(step) // dtype.itemsize for step in strides)
    if strides is not None and any(int(step) % dtype.itemsize for step in strides):
        raise UsageError(f"{path}: strides {tuple(strides)} cut through elements of {dtype}", "pass a copy")
    stream = interface.get("stream")
    shape = tuple(int(size) for size in interface["shape"])
    return DeviceTensor(int(interface["data"][0] or 0), dtype, shape, steps, stream, value)


def _named(typestr: str) -> bool:
    """Whether a type of the array interface is a dtype; those of ml_dtypes say raw bytes, or what nobody knows."""
    try:
        return np.dtype(typestr).kind != "V"
    except TypeError:
        return False


def _plain(dtype: np.dtype[Any]) -> bool:
    return dtype.isbuiltin == 1


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("number", ctypes.c_int32))


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}
_NAMED_KINDS = {(6, 8): "bool", (10, 8): "float8_e4m3fn", (12, 8): "float8_e5m2"}


def _tensor_in(capsule: Any) -> _Tensor:
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return _Tensor.from_address(address(capsule, b"dltensor"))


def read_capsule(capsule: Any, path: str, stream: int | None = None) -> DeviceTensor:
    """What a DLPack capsule describes; the capsule is kept, and with it the memory."""
    tensor = _tensor_in(capsule)
    name = _NAMED_KINDS.get((tensor.code, tensor.bits)) or f"{_KINDS.get(tensor.code, 'unknown')}{tensor.bits}"
    if tensor.lanes != 1 or name not in DType.__members__.values():
        raise UsageError(
            f"{path}: DLPack type {tensor.code} of {tensor.bits} bits x {tensor.lanes} has no standard form",
            f"cast to one of {', '.join(DType)} first",
        )
    places = range(tensor.ndim)
    return DeviceTensor(
        int(tensor.data or 0) + int(tensor.byte_offset),
        DType(name).to_numpy(),
        tuple(int(tensor.shape[place]) for place in places),
        tuple(int(tensor.strides[place]) for place in places) if tensor.strides else None,
        stream,
        capsule,
    )


_CODES = {"bfloat16": 4, "float8_e4m3fn": 10, "float8_e5m2": 12}  # those that NumPy's capsules lack


class DeviceArray:
    """An array in GPU memory that a session made: DLPack, the CUDA array interface, and `numpy()` for a host copy.

    Torch takes it with `torch.from_dlpack(array)`, CuPy with `cupy.from_dlpack(array)`, and a session as it is, all
    without a copy.  The CUDA array interface has no name for bfloat16 and fp8: an array of these has DLPack alone.
    """

    def __init__(self, gpu: Gpu, dtype: np.dtype[Any], shape: tuple[int, ...], capacity: int = 0) -> None:
        self.dtype, self.shape = dtype, shape
        self._gpu = gpu
        self.address = gpu.allocate(max(self.nbytes, capacity))
        weakref.finalize(self, gpu.free, self.address).atexit = False

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if not _plain(self.dtype):
            # Nobody could tell these bytes from those of another dtype of that size.
            raise AttributeError(f"the CUDA array interface has no name for {self.dtype.name}; use DLPack")
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address if self.nbytes else 0, False),
            "strides": None,
            "stream": None,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self._gpu.number

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule that keeps this array.  stream: of no effect, as what a session hands out is complete.

        Raises BufferError for another device, and where a copy is asked for.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError(f"{self!r} gives no copy and stays on its GPU; copy it with numpy()")
        code = _CODES.get(self.dtype.name)
        if code is None and not _plain(self.dtype):
            raise BufferError(
                f"{self!r}: DLPack has no name for {self.dtype.name} in whole bytes; copy it with numpy()"
            )
        # NumPy makes the capsule, because who owns it and when it ends must be right in every thread: it sees numbers
        # of that size at that address, and never reads them.
        memory: Any = (ctypes.c_uint8 * max(1, self.nbytes)).from_address(self.address)
        memory.owner = self
        kind = self.dtype if _plain(self.dtype) else np.dtype(f"u{self.dtype.itemsize}")
        shown = np.frombuffer(memory, np.uint8)[: self.nbytes].view(kind).reshape(self.shape)
        capsule = shown.__dlpack__()
        tensor = _tensor_in(capsule)
        tensor.device.type, tensor.device.number = self.__dlpack_device__()
        if code is not None:
            tensor.code = code
        return capsule

    def numpy(self) -> np.ndarray[Any, Any]:
        """A copy in host memory."""
        array = np.empty(self.shape, self.dtype)
        with self._gpu.current():
            self._gpu.copy_out(array.ctypes.data, self.address, self.nbytes, LEGACY_STREAM)
            self._gpu.synchronize(LEGACY_STREAM)
        return array

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype.name}{list(self.shape)} at {self.address:#x})"
