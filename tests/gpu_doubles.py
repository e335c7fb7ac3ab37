"""Doubles of a GPU for tests of sessions: a CUDA driver whose device memory is host memory, and TensorRT's run time.

`HostDriver` stands in for `cuda.bindings.driver`.  What is put on a stream happens when somebody waits for it and not
before, device memory begins poisoned, and everything handed out is counted, so that a missing wait or a leak shows.
`tensorrt_double` is the real TensorRT module with its `Runtime` replaced by one whose engine computes with a Python
function.  They show what a session asks of both and in which order; that a real GPU does the same only a GPU can show.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

POISON = 0xCD
Work = Callable[[], None]


class Status(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100


class HostDriver:
    """A double of `cuda.bindings.driver` for one GPU of an architecture."""

    CUresult = Status
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
    )
    CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL="ordinal")
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")

    def __init__(self, architecture: str = "sm_89", *, memory: int = 1 << 30) -> None:
        self.architecture = architecture
        self.free_memory = memory
        self.blocks: dict[int, Any] = {}
        self.foreign: dict[int, tuple[int, int]] = {}
        self.streams: dict[int, list[Work]] = {}
        self.events: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.captured: dict[int, list[Work]] = {}
        self.contexts = 0
        self.gpus = 1
        self.version = 13000
        self.faults: list[str] = []  # what was done to a GPU that was not the current one
        self._thread = threading.local()
        self.depth = 0
        self.calls: list[str] = []
        self._next = 1000

    def live(self) -> dict[str, int]:
        """How much of each kind was handed out and not given back."""
        return {
            "memory": len(self.blocks),
            "streams": len(self.streams),
            "events": len(self.events),
            "graphs": len(self.graphs),
            "contexts": self.contexts,
            "pushed": self.depth,
        }

    def current(self) -> int | None:
        """The GPU whose context is current in this thread."""
        stack = self._stack()
        return stack[-1] if stack else None

    def _stack(self) -> list[int]:
        stack: list[int] = self._thread.__dict__.setdefault("stack", [])
        return stack

    def needs(self, device: int, what: str) -> None:
        """Note where something of a GPU is used or given back while another one, or none, is current."""
        if self.current() != device:
            self.faults.append(f"{what} of GPU {device} with {self.current()} current")

    def adopt(self, array: Any, owner: int = 0) -> None:
        """Take host memory for memory of a GPU: an address, size pair or a NumPy array."""
        address, nbytes = array if isinstance(array, tuple) else (array.ctypes.data, array.nbytes)
        self.foreign[address] = (nbytes, owner)

    def submit(self, stream: int, work: Work) -> None:
        """Put work on a stream, or into the graph that is being captured from it."""
        stream = int(stream)
        if stream in self.captured:
            self.captured[stream].append(work)
        else:
            self.streams.setdefault(stream, []).append(work)

    def _handle(self) -> int:
        self._next += 1
        return self._next

    def _drain(self, work: list[Work]) -> None:
        while work:
            work.pop(0)()

    # The driver's own functions, as far as a session calls them.

    def cuDeviceGet(self, number: int) -> Any:
        return (Status.CUDA_SUCCESS, number) if number < self.gpus else (Status.CUDA_ERROR_INVALID_VALUE, None)

    def cuDeviceGetCount(self) -> Any:
        return Status.CUDA_SUCCESS, self.gpus

    def cuDeviceGetName(self, size: int, device: int) -> Any:
        return Status.CUDA_SUCCESS, b"Double GPU\0\0\0"

    def cuDeviceGetAttribute(self, kind: str, device: int) -> Any:
        number = int(self.architecture[3:])
        return Status.CUDA_SUCCESS, number // 10 if kind == "major" else number % 10

    def cuDriverGetVersion(self) -> Any:
        return Status.CUDA_SUCCESS, self.version

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        self.contexts += 1
        return Status.CUDA_SUCCESS, 7 + device

    def cuDevicePrimaryCtxRelease(self, device: int) -> Any:
        self.contexts -= 1
        return (Status.CUDA_SUCCESS,)

    def cuCtxPushCurrent(self, context: int) -> Any:
        assert 7 <= context < 7 + self.gpus
        self._stack().append(context - 7)
        self.depth += 1
        return (Status.CUDA_SUCCESS,)

    def cuCtxPopCurrent(self) -> Any:
        self.depth -= 1
        return Status.CUDA_SUCCESS, 7 + self._stack().pop()

    def cuMemAlloc(self, size: int) -> Any:
        assert self.depth, "memory is asked for without a current context"
        if size > self.free_memory:
            return Status.CUDA_ERROR_OUT_OF_MEMORY, None
        block = (ctypes.c_uint8 * (size + 256))()
        ctypes.memset(block, POISON, size + 256)
        address = -(-ctypes.addressof(block) // 256) * 256
        self.blocks[address] = block
        return Status.CUDA_SUCCESS, address

    def cuMemFree(self, address: int) -> Any:
        del self.blocks[int(address)]
        return (Status.CUDA_SUCCESS,)

    def _copy(self, target: int, source: int, size: int, stream: int) -> Any:
        self.submit(stream, lambda: ctypes.memmove(target, source, size))
        return (Status.CUDA_SUCCESS,)

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> Any:
        self.calls.append("in")
        return self._copy(target, source, size, stream)

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> Any:
        self.calls.append("out")
        return self._copy(target, source, size, stream)

    def cuMemcpyDtoDAsync(self, target: int, source: int, size: int, stream: int) -> Any:
        self.calls.append("across")
        return self._copy(target, source, size, stream)

    def cuStreamCreate(self, flags: int) -> Any:
        assert flags == 1
        handle = self._handle()
        self.streams[handle] = []
        return Status.CUDA_SUCCESS, handle

    def cuStreamSynchronize(self, stream: int) -> Any:
        assert int(stream) not in self.captured, "a stream that is captured cannot be waited for"
        self._drain(self.streams.get(int(stream), []))
        return (Status.CUDA_SUCCESS,)

    def cuStreamDestroy(self, stream: int) -> Any:
        assert not self.streams.pop(int(stream)), "a stream is given back with work on it"
        return (Status.CUDA_SUCCESS,)

    def cuEventCreate(self, flags: int) -> Any:
        handle = self._handle()
        self.events[handle] = []
        return Status.CUDA_SUCCESS, handle

    def cuEventRecord(self, event: int, stream: int) -> Any:
        self.events[event] = self.streams.setdefault(int(stream), [])
        self.calls.append(f"event on {int(stream)}")
        return (Status.CUDA_SUCCESS,)

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> Any:
        before = self.events[event]
        self.submit(stream, lambda: self._drain(before))
        return (Status.CUDA_SUCCESS,)

    def cuEventDestroy(self, event: int) -> Any:
        del self.events[event]
        return (Status.CUDA_SUCCESS,)

    def cuPointerGetAttribute(self, kind: str, address: int) -> Any:
        for start, block in self.blocks.items():
            if start <= address < start + len(block) - 256:
                return Status.CUDA_SUCCESS, 0
        for start, (size, owner) in self.foreign.items():
            if start <= address < start + size:
                return Status.CUDA_SUCCESS, owner
        return Status.CUDA_ERROR_INVALID_VALUE, None

    def cuStreamBeginCapture(self, stream: int, mode: str) -> Any:
        self.captured[int(stream)] = []
        return (Status.CUDA_SUCCESS,)

    def cuStreamEndCapture(self, stream: int) -> Any:
        handle = self._handle()
        self.graphs[handle] = self.captured.pop(int(stream))
        return Status.CUDA_SUCCESS, handle

    def cuGraphInstantiate(self, graph: int, flags: int) -> Any:
        handle = self._handle()
        self.graphs[handle] = list(self.graphs[graph])
        return Status.CUDA_SUCCESS, handle

    def cuGraphDestroy(self, graph: int) -> Any:
        del self.graphs[graph]
        return (Status.CUDA_SUCCESS,)

    cuGraphExecDestroy = cuGraphDestroy

    def cuGraphLaunch(self, graph: int, stream: int) -> Any:
        self.calls.append("graph")
        for work in self.graphs[graph]:
            self.submit(stream, work)
        return (Status.CUDA_SUCCESS,)


class CudaArray:
    """Memory of the double's GPU under the CUDA array interface, filled from a NumPy array."""

    def __init__(self, driver: HostDriver, array: np.ndarray[Any, Any], *, offset: int = 0, **changes: Any) -> None:
        self.memory = np.zeros(array.nbytes + 512, np.uint8)
        start = -self.memory.ctypes.data % 256 + offset
        place = self.memory[start : start + array.nbytes]
        place[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        driver.adopt((self.memory.ctypes.data, self.memory.nbytes), changes.pop("owner", 0))
        self.address = place.ctypes.data
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.address, False),
            "strides": None,
            **changes,
        }


def at(address: int, dtype: np.dtype[Any], shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """The array at an address."""
    count = int(np.prod(tuple(shape), dtype=np.int64))
    raw = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address)
    return np.frombuffer(raw, dtype=dtype).reshape(tuple(shape))


class FakeEngine:
    """What a double runtime deserialises: ports, profiles and a function from arrays to arrays.

    inputs, outputs: name -> NumPy dtype.  shapes: the outputs' shapes (-1: known afterwards) for the inputs' shapes.
    """

    def __init__(
        self,
        driver: HostDriver,
        trt: Any,
        *,
        inputs: Mapping[str, np.dtype[Any]],
        outputs: Mapping[str, np.dtype[Any]],
        profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]],
        compute: Callable[[dict[str, Any]], Mapping[str, Any]],
        shapes: Callable[[dict[str, tuple[int, ...]]], Mapping[str, Sequence[int]]],
        host: Sequence[str] = (),
        greatest: int = -1,
    ) -> None:
        self.driver, self.trt = driver, trt
        self.inputs, self.outputs = dict(inputs), dict(outputs)
        self.profiles, self.compute, self.shapes, self.host = profiles, compute, shapes, host
        self.greatest = greatest
        self.contexts: list[FakeContext] = []
        self.fails: dict[str, Any] = {}
        self.num_optimization_profiles = len(profiles)
        self.device_memory_size_v2 = 4096
        self.device = driver.current()
        self.compiled = 0

    def __del__(self) -> None:
        if self.device is not None:
            self.driver.needs(self.device, "the engine")

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, place: int) -> str:
        return [*self.inputs, *self.outputs][place]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if name in self.inputs else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        from layerport.dtypes import DType
        from layerport.parameters.frameworks.tensorrt_dtypes import from_dtype

        return from_dtype(DType({**self.inputs, **self.outputs}[name].name), self.trt)

    def get_tensor_format(self, name: str) -> Any:
        return self.fails.get("format", self.trt.TensorFormat.LINEAR)

    def get_tensor_location(self, name: str) -> Any:
        return self.trt.TensorLocation.HOST if name in self.host else self.trt.TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, number: int) -> Any:
        return [self.trt.Dims(list(dims)) for dims in self.profiles[number][name]]

    def create_runtime_config(self) -> Any:
        return FakeRuntimeConfig(self)

    def create_execution_context(self, config: Any = None) -> Any:
        if "context" in self.fails:
            return None
        made = FakeContext(self, config)
        cache = config.cache if isinstance(config, FakeRuntimeConfig) else None
        if cache is not None and b"compiled" not in cache.content:
            cache.content += b"compiled"
            self.compiled += 1
        self.contexts.append(made)
        return made


class FakeRuntimeCache:
    """What RTX compiled.  It takes what it wrote itself, on the same GPU."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.content = engine, b""

    def serialize(self) -> Any:
        return memoryview(b"cache " + self.content)

    def deserialize(self, blob: Any) -> bool:
        assert self.engine.driver.depth, "a cache is read without a current context"
        fits = bytes(blob).startswith(b"cache ") and "cache" not in self.engine.fails
        if fits:
            self.content = bytes(blob)[6:]
        return fits


class FakeRuntimeConfig:
    """How contexts of an engine of RTX are made."""

    def __init__(self, engine: FakeEngine) -> None:
        self.cuda_graph_strategy: Any = None
        self.cache: FakeRuntimeCache | None = None
        self._engine = engine

    def create_runtime_cache(self) -> Any:
        return FakeRuntimeCache(self._engine)

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class FakeContext:
    """An execution context: it keeps shapes and addresses, and computes when its stream is waited for."""

    def __init__(self, engine: FakeEngine, config: Any) -> None:
        self.engine, self.config = engine, config
        self.active_optimization_profile = 0
        self.set: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}
        self.memory: tuple[int, int] | None = None
        self.runs = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0 and size >= self.engine.device_memory_size_v2
        self.memory = (memory, size)

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self.active_optimization_profile = number
        self.set.clear()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, greatest = self.engine.profiles[self.active_optimization_profile][name]
        fits = all(low <= size <= high for low, size, high in zip(least, shape, greatest, strict=True))
        if fits:
            self.set[name] = tuple(shape)
        return fits and "shape" not in self.engine.fails

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.set]

    def get_tensor_shape(self, name: str) -> Any:
        return self.engine.trt.Dims(list(self.engine.shapes(self.set)[name]))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 16 == 0 or name in self.engine.host

    def get_max_output_size(self, name: str) -> int:
        return self.engine.greatest

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self.allocators[name] = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine, driver = self.engine, self.engine.driver
        if "execute" in engine.fails:
            return False
        if self.config is not None and self.config == engine.trt.ExecutionContextAllocationStrategy.USER_MANAGED:
            assert self.memory is not None, "a context that was given no memory runs"
        self.runs += 1
        shapes, addresses = dict(self.set), dict(self.addresses)
        # TensorRT reads these now; a graph that is captured now has what it read.
        hosted = {name: at(addresses[name], engine.inputs[name], shapes[name]).copy() for name in engine.host}

        def work() -> None:
            arrays = {
                name: hosted[name] if name in hosted else at(addresses[name], dtype, shapes[name]).copy()
                for name, dtype in engine.inputs.items()
            }
            for name, value in engine.compute(arrays).items():
                allocator = self.allocators.get(name)
                address = addresses.get(name)
                if allocator is not None:
                    address = allocator.reallocate_output_async(name, 0, value.nbytes, 256, stream)
                    allocator.notify_shape(name, value.shape)
                assert address
                at(address, engine.outputs[name], value.shape)[...] = value

        driver.submit(stream, work)
        if self.allocators and int(stream) not in driver.captured:
            driver.cuStreamSynchronize(stream)  # TensorRT waits too before it tells a size
        return True


class _Double:
    """The real module of TensorRT, but for its runtime."""

    def __init__(self, real: Any, own_graphs: bool) -> None:
        self._real, self._own_graphs = real, own_graphs

    def __getattr__(self, name: str) -> Any:
        if name in ("CudaGraphStrategy", "IRuntimeCache") and not self._own_graphs:
            raise AttributeError(name)
        return getattr(self._real, name)


def tensorrt_double(make: Callable[[Any], FakeEngine | None], *, own_graphs: bool = True) -> Any:
    """TensorRT's module whose runtime deserialises everything to the engine that `make(module)` gives.

    own_graphs: whether it captures CUDA graphs by itself and compiles when it runs, as rtx does.  `engine` is the last
    engine, `plan` its bytes.
    """
    from layerport.engine import flavours

    double = _Double(flavours.load("rtx"), own_graphs)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger
            self.engine_host_code_allowed = True

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            assert self.engine_host_code_allowed is False
            double.plan = data
            double.engine = make(double)
            if double.engine is None:
                self.logger.log(double.ILogger.ERROR, "the double takes no plan")
            return double.engine

    double.Runtime = Runtime
    return double
