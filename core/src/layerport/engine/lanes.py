"""Execution contexts of one engine: a lane is contexts with a stream, buffers and graphs, a pool hands lanes out.

Only `engine_session` imports it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerport.engine.device_arrays import DeviceArray, DeviceTensor
from layerport.engine.gpu import Gpu
from layerport.errors import BuildError, UsageError
from layerport.sizes.tensors import TensorType

Key = tuple[int, tuple[tuple[int, ...], ...]]
"""A profile's number, and the shape of each input."""

MOST_GRAPHS = 4
"""Captured graphs of one lane; the one that was used longest ago makes room."""


@dataclass(frozen=True)
class Parts:
    """What all lanes of an engine share.

    failure: makes an error of what TensorRT said since the mark that `said` gives.
    on_host: the inputs that TensorRT reads from host memory, because they hold a shape.
    stable: inputs and outputs keep their addresses, as a captured graph needs.  captures: the lane captures graphs.
    scratch: bytes of device memory that a context without its own must be given; 0 where it has its own.
    """

    trt: Any
    gpu: Gpu
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    on_host: tuple[str, ...]
    make_context: Callable[[], Any]
    said: Callable[[], int]
    failure: Callable[[str, int], BuildError]
    stable: bool = False
    captures: bool = False
    scratch: int = 0


class Result:
    """An output on its way: where it will be, and what the caller gets."""

    def __init__(self, value: Any, device: int | None, host: int | None, stream: int | None = None) -> None:
        self.value, self.device, self.host, self.stream = value, device, host, stream


Make = Callable[[TensorType, tuple[int, ...]], Result]
"""Gives a place for an output of this shape."""


class _Context:
    """An execution context: the shapes that it has, and the graph that was captured from it."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.key: Key | None = None
        self.graph: Any = None
        self.captured: Any = None  # what the graph is for: key and values of the inputs that hold shapes
        self.shapes: dict[str, tuple[int, ...]] = {}


class Lane:
    """Contexts that take turns.  One thread at a time may run it.

    A lane that captures has a context for each graph, because a graph is good only as long as nobody changes the
    context that it was captured from; they share the memory in which TensorRT computes.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts, self._gpu = parts, parts.gpu
        self._buffers: dict[str, DeviceArray] = {}
        self._allocators: dict[str, Any] = {}
        self._scratch: DeviceArray | None = None
        with self._gpu.current():
            self._contexts = [self._make_context()]  # the one that was used last is last
            self._stream = self._gpu.stream()

    def holds(self, key: Key) -> bool:
        """Whether these shapes are set already, or in a graph."""
        return any(one.key == key for one in self._contexts)

    def run(self, key: Key, inputs: Mapping[str, Any], make: Make) -> dict[str, Any]:
        """The outputs by name.  inputs: DeviceTensor or NumPy array by name.  make: a place for an output.

        Everything has happened when it returns, also where it raises.
        """
        gpu = self._gpu
        mark = self._parts.said()
        with gpu.current():
            try:
                # TensorRT reads these from host memory, so they must live until the run is over.
                hosted = {name: self._on_host(inputs[name]) for name in self._parts.on_host}
                # What they hold becomes part of a graph: sizes of launches, not something that a replay reads again.
                wanted = (key, tuple(array.tobytes() for array in hosted.values()))
                one = self._context_for(wanted)
                replayed = one.graph is not None
                if not replayed:
                    self._set_shapes(one, key, hosted, mark)
                shapes = one.shapes
                open_ended = [output for output in self._parts.outputs if -1 in shapes[output.name]]
                results = {
                    output.name: make(output, shapes[output.name])
                    for output in self._parts.outputs
                    if output not in open_ended
                }
                self._wait([tensor.stream for tensor in inputs.values() if isinstance(tensor, DeviceTensor)])
                self._wait([result.stream for result in results.values()])
                places = {name: self._input(name, value) for name, value in inputs.items() if name not in hosted} | {
                    name: self._output(name, result) for name, result in results.items()
                }
                if replayed:
                    gpu.call("cuGraphLaunch", one.graph, self._stream)
                else:
                    for name, address in places.items():
                        self._bind(one, name, address, mark)
                    for output in open_ended:
                        self._bind_open(one, output.name, mark)
                    self._enqueue(one, mark)
                    if self._parts.captures:
                        self._capture(one, wanted, mark)
                for output in open_ended:
                    results[output.name], places[output.name] = self._open_result(output, make)
                self._collect(results, places)
            finally:
                gpu.synchronize(self._stream)
        return {name: result.value for name, result in results.items()}

    def _make_context(self) -> _Context:
        context = self._parts.make_context()
        if self._parts.scratch:
            if self._scratch is None:
                self._scratch = DeviceArray(self._gpu, np.dtype(np.uint8), (self._parts.scratch,))
            context.set_device_memory(self._scratch.address, self._parts.scratch)
        return _Context(context)

    def _context_for(self, wanted: tuple[Key, tuple[bytes, ...]]) -> _Context:
        """The context with the graph of this, or else one whose shapes may be set; it is the last one then."""
        if not self._parts.captures:
            return self._contexts[0]
        free = [one for one in self._contexts if one.graph is None]
        one = next((one for one in self._contexts if one.graph is not None and one.captured == wanted), None)
        one = one or next((one for one in free if one.key == wanted[0]), None) or next(iter(free), None)
        if one is None and len(self._contexts) < MOST_GRAPHS:
            one = self._make_context()
            self._contexts.append(one)
        elif one is None:
            one = self._contexts[0]
            self._drop_graph(one)
        self._contexts.sort(key=lambda other: other is one)
        return one

    def _set_shapes(self, one: _Context, key: Key, hosted: Mapping[str, Any], mark: int) -> None:
        context, (profile, shapes) = one.context, key
        if key != one.key:
            one.key = None
            if context.active_optimization_profile != profile:
                if not context.set_optimization_profile_async(profile, self._stream):
                    raise self._parts.failure(f"TensorRT does not take profile {profile}", mark)
                self._gpu.synchronize(self._stream)
            for tensor, shape in zip(self._parts.inputs, shapes, strict=True):
                if not context.set_input_shape(tensor.name, shape):
                    raise self._parts.failure(f"TensorRT does not take shape {list(shape)} for {tensor.name}", mark)
            one.key = key
        for name, array in hosted.items():
            self._bind(one, name, array.ctypes.data, mark)
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise self._parts.failure(f"TensorRT cannot infer the shapes of the outputs: {error}", mark) from error
        if missing:
            raise self._parts.failure(f"TensorRT lacks the shapes of {', '.join(missing)}", mark)
        one.shapes = {output.name: tuple(context.get_tensor_shape(output.name)) for output in self._parts.outputs}
        open_ended = [name for name, shape in one.shapes.items() if -1 in shape]
        if open_ended and self._parts.captures:
            raise BuildError(
                f"the size of output {open_ended[0]} depends on the data, which no CUDA graph can hold",
                "open the bundle with cuda_graph=False",
            )

    def _on_host(self, value: Any) -> np.ndarray[Any, Any]:
        return self._download(value) if isinstance(value, DeviceTensor) else np.asarray(value)

    def _download(self, tensor: DeviceTensor) -> np.ndarray[Any, Any]:
        array = np.empty(tensor.shape, tensor.dtype)
        self._wait([tensor.stream])
        self._gpu.copy_out(array.ctypes.data, tensor.address, tensor.nbytes, self._stream)
        self._gpu.synchronize(self._stream)
        return array

    def _wait(self, producers: Sequence[int | None]) -> None:
        for producer in dict.fromkeys(producers):
            if producer is not None:
                self._gpu.wait(self._stream, producer)

    def _input(self, name: str, value: Any) -> int:
        if isinstance(value, DeviceTensor) and value.nbytes and not self._parts.stable:
            return value.address
        buffer = self._buffer(name, value.nbytes)
        if isinstance(value, DeviceTensor):
            self._gpu.copy_across(buffer, value.address, value.nbytes, self._stream)
        else:
            self._gpu.copy_in(buffer, value.ctypes.data, value.nbytes, self._stream)
        return buffer

    def _output(self, name: str, result: Result) -> int:
        if result.device is not None and result.value.nbytes and not self._parts.stable:
            return result.device
        return self._buffer(name, result.value.nbytes)

    def _collect(self, results: Mapping[str, Result], places: Mapping[str, int]) -> None:
        for name, result in results.items():
            if result.host is not None:
                self._gpu.copy_out(result.host, places[name], result.value.nbytes, self._stream)
            elif result.device is not None and result.device != places[name]:
                self._gpu.copy_across(result.device, places[name], result.value.nbytes, self._stream)

    def _buffer(self, name: str, nbytes: int) -> int:
        """The lane's own memory for an input or output; it grows, and then a graph that knows it is dropped."""
        held = self._buffers.get(name)
        if held is None or held.nbytes < nbytes:
            for one in self._contexts:
                self._drop_graph(one)
            self._buffers.pop(name, None)
            held = self._buffers[name] = DeviceArray(self._gpu, np.dtype(np.uint8), (max(1, nbytes),))
        return held.address

    def _bind(self, one: _Context, name: str, address: int, mark: int) -> None:
        if not one.context.set_tensor_address(name, address):
            raise self._parts.failure(f"TensorRT does not take the address of {name}, {address:#x}", mark)

    def _bind_open(self, one: _Context, name: str, mark: int) -> None:
        """An output whose size is known only afterwards goes to a buffer of its greatest size."""
        greatest = one.context.get_max_output_size(name)
        if greatest < 0:
            raise self._parts.failure(f"TensorRT knows no greatest size of output {name}", mark)
        buffer = self._buffer(name, greatest)
        if name not in self._allocators:
            self._allocators[name] = _allocator(self._parts.trt)
            one.context.set_output_allocator(name, self._allocators[name])
        self._allocators[name].offer(buffer, greatest)

    def _open_result(self, one: TensorType, make: Make) -> tuple[Result, int]:
        result = make(one, self._allocators[one.name].shape)
        self._wait([result.stream])
        return result, self._buffers[one.name].address

    def _enqueue(self, one: _Context, mark: int) -> None:
        if not one.context.execute_async_v3(self._stream):
            raise self._parts.failure("TensorRT cannot run the engine", mark)

    def _capture(self, one: _Context, wanted: Any, mark: int) -> None:
        """Capture what was enqueued already, so that nothing which a change of shapes postponed is in the graph."""
        graphs: list[Any] = []
        try:
            with self._gpu.capturing(self._stream, graphs):
                self._enqueue(one, mark)
        except BuildError as error:
            raise BuildError(
                f"this engine cannot be captured into a CUDA graph: {error.fault}",
                "open the bundle with cuda_graph=False",
                faults=error.faults,
            ) from error
        one.graph, one.captured = graphs[0], wanted

    def _drop_graph(self, one: _Context) -> None:
        if one.graph is not None:
            graph, one.graph, one.captured = one.graph, None, None
            self._gpu.call("cuGraphExecDestroy", graph)

    def close(self) -> None:
        """Give contexts, buffers, graphs and stream back."""
        with self._gpu.current():
            for one in self._contexts:
                self._drop_graph(one)
            self._contexts.clear()
            self._allocators.clear()
            self._buffers.clear()
            self._scratch = None
            self._gpu.destroy_stream(self._stream)


def _allocator(trt: Any) -> Any:
    class OneBuffer(trt.IOutputAllocator):  # type: ignore[misc]
        """Gives TensorRT a buffer that is there, and keeps the shape that it tells."""

        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: tuple[int, ...] = ()
            self._address = self._size = 0

        def offer(self, address: int, size: int) -> None:
            self._address, self._size = address, size

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
            return self._address if size <= self._size else 0

        def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return OneBuffer()


class Pool:
    """Lanes for several threads: as many as are needed at once, up to a limit; more threads wait for one."""

    def __init__(self, make: Callable[[], Lane], limit: int) -> None:
        self._make, self._limit = make, limit
        self._idle: list[Lane] = []  # the one that was given back last is last
        self._count = 0
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def lane(self, key: Key) -> Iterator[Lane]:
        """A lane for this thread alone, one with these shapes set where there is one."""
        lane = self._take(key)
        try:
            yield lane
        finally:
            with self._changed:
                self._idle.append(lane)
                self._changed.notify_all()

    def _take(self, key: Key) -> Lane:
        with self._changed:
            while not self._closed and not self._idle and self._count >= self._limit:
                self._changed.wait()
            if self._closed:
                raise UsageError("the session is closed", "open it again with layerport.load")
            if self._idle:
                lane = next((lane for lane in self._idle if lane.holds(key)), self._idle[-1])
                self._idle.remove(lane)
                return lane
            self._count += 1
        try:
            # Outside the lock: TensorRT may compile for seconds here, and other threads have lanes to give back.
            return self._make()
        except BaseException:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()
            raise

    def close(self) -> None:
        """Wait until no lane is at work, then close all; closing twice is fine."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while len(self._idle) < self._count:
                self._changed.wait()
            lanes, self._idle, self._count = self._idle, [], 0
        for lane in lanes:
            lane.close()
