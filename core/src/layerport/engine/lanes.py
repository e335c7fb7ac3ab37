"""Execution contexts of one engine: a lane is a context with stream, buffers and graph, a pool hands lanes out.

Only `engine_session` imports it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerport.adapters.cuda_arrays import DeviceArray, DeviceTensor
from layerport.engine.gpu import Gpu
from layerport.errors import BuildError, UsageError

Key = tuple[int, tuple[tuple[int, ...], ...]]
"""A profile's number, and the shape of each input."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine.  on_host: TensorRT reads it from host memory, because it holds a shape."""

    name: str
    dtype: np.dtype[Any]
    on_host: bool = False


@dataclass(frozen=True)
class Parts:
    """What all lanes of an engine share.

    failure: makes an error of what TensorRT said since the mark that `said` gives.
    stable: inputs and outputs keep their addresses, as a captured graph needs.  captures: the lane captures graphs.
    """

    trt: Any
    gpu: Gpu
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    make_context: Callable[[], Any]
    said: Callable[[], int]
    failure: Callable[[str, int], BuildError]
    stable: bool = False
    captures: bool = False


class Result:
    """An output on its way: where it will be, and what the caller gets."""

    def __init__(self, value: Any, device: int | None, host: int | None, stream: int | None = None) -> None:
        self.value, self.device, self.host, self.stream = value, device, host, stream


class Lane:
    """One context.  One thread at a time may run it."""

    def __init__(self, parts: Parts) -> None:
        self.key: Key | None = None
        self._parts, self._gpu = parts, parts.gpu
        with self._gpu.current():
            self._context = parts.make_context()
            self._stream = self._gpu.stream()
        self._buffers: dict[str, DeviceArray] = {}
        self._graph: Any = None
        self._allocators: dict[str, Any] = {}

    def run(
        self, key: Key, inputs: Mapping[str, Any], make: Callable[[Tensor, tuple[int, ...]], Result]
    ) -> dict[str, Any]:
        """The outputs by name.  inputs: DeviceTensor or NumPy array by name.  make: a place for an output.

        Everything has happened when it returns, also where it raises.
        """
        gpu, context = self._gpu, self._context
        mark = self._parts.said()
        with gpu.current():
            try:
                self._set_shapes(key, mark)
                hosted = self._bind_host_inputs(inputs)
                self._infer(mark)
                shapes = {one.name: tuple(context.get_tensor_shape(one.name)) for one in self._parts.outputs}
                open_ended = [one for one in self._parts.outputs if -1 in shapes[one.name]]
                if open_ended and self._parts.captures:
                    raise BuildError(
                        f"the size of output {open_ended[0].name} depends on the data, which no CUDA graph can hold",
                        "open the bundle with cuda_graph=False",
                    )
                results = {
                    one.name: make(one, shapes[one.name]) for one in self._parts.outputs if one not in open_ended
                }
                self._wait([tensor.stream for tensor in inputs.values() if isinstance(tensor, DeviceTensor)])
                self._wait([result.stream for result in results.values()])
                for one in self._parts.inputs:
                    if not one.on_host:
                        self._bind(one.name, self._input(one.name, inputs[one.name]), mark)
                places = {name: self._output(name, result) for name, result in results.items()}
                for name, address in places.items():
                    self._bind(name, address, mark)
                for one in open_ended:
                    self._bind_open(one.name, mark)
                self._execute(key, mark)
                for one in open_ended:
                    results[one.name], places[one.name] = self._open_result(one, make)
                self._collect(results, places)
            finally:
                gpu.synchronize(self._stream)
        del hosted
        return {name: result.value for name, result in results.items()}

    def _set_shapes(self, key: Key, mark: int) -> None:
        if key == self.key:
            return
        profile, shapes = key
        self.key = None
        context = self._context
        if context.active_optimization_profile != profile:
            if not context.set_optimization_profile_async(profile, self._stream):
                raise self._parts.failure(f"TensorRT does not take profile {profile}", mark)
            self._gpu.synchronize(self._stream)
        for one, shape in zip(self._parts.inputs, shapes, strict=True):
            if not context.set_input_shape(one.name, shape):
                raise self._parts.failure(f"TensorRT does not take shape {list(shape)} for {one.name}", mark)
        self.key = key

    def _bind_host_inputs(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Bind the inputs that TensorRT reads from host memory; the arrays must live until the run is over."""
        arrays = []
        for one in self._parts.inputs:
            if one.on_host:
                value = inputs[one.name]
                array = self._download(value) if isinstance(value, DeviceTensor) else value
                self._context.set_tensor_address(one.name, array.ctypes.data)
                arrays.append(array)
        return arrays

    def _download(self, tensor: DeviceTensor) -> np.ndarray[Any, Any]:
        array = np.empty(tensor.shape, tensor.dtype)
        self._wait([tensor.stream])
        self._gpu.copy_out(array.ctypes.data, tensor.address, tensor.nbytes, self._stream)
        self._gpu.synchronize(self._stream)
        return array

    def _infer(self, mark: int) -> None:
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            raise self._parts.failure(f"TensorRT cannot infer the shapes of the outputs: {error}", mark) from error
        if missing:
            raise self._parts.failure(f"TensorRT lacks the shapes of {', '.join(missing)}", mark)

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
            self._drop_graph()
            self._buffers.pop(name, None)
            held = self._buffers[name] = DeviceArray(self._gpu, np.dtype(np.uint8), (max(1, nbytes),))
        return held.address

    def _bind(self, name: str, address: int, mark: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise self._parts.failure(f"TensorRT does not take the address of {name}, {address:#x}", mark)

    def _bind_open(self, name: str, mark: int) -> None:
        """An output whose size is known only afterwards goes to a buffer of its greatest size."""
        greatest = self._context.get_max_output_size(name)
        if greatest < 0:
            raise self._parts.failure(f"TensorRT knows no greatest size of output {name}", mark)
        buffer = self._buffer(name, greatest)
        if name not in self._allocators:
            self._allocators[name] = _allocator(self._parts.trt)
            self._context.set_output_allocator(name, self._allocators[name])
        self._allocators[name].offer(buffer, greatest)

    def _open_result(self, one: Tensor, make: Callable[[Tensor, tuple[int, ...]], Result]) -> tuple[Result, int]:
        result = make(one, self._allocators[one.name].shape)
        self._wait([result.stream])
        return result, self._buffers[one.name].address

    def _execute(self, key: Key, mark: int) -> None:
        if self._graph is not None and self._graph[0] == key:
            self._gpu.call("cuGraphLaunch", self._graph[1], self._stream)
            return
        self._enqueue(mark)
        if self._parts.captures:
            # This run is done already.  What a change of shapes postponed in TensorRT happened in it, so that the
            # capture holds nothing but the work itself.
            self._drop_graph()
            graphs: list[Any] = []
            try:
                with self._gpu.capturing(self._stream, graphs):
                    self._enqueue(mark)
            except BuildError as error:
                raise BuildError(
                    f"this engine cannot be captured into a CUDA graph: {error.fault}",
                    "open the bundle with cuda_graph=False",
                    faults=error.faults,
                ) from error
            self._graph = (key, graphs[0])

    def _enqueue(self, mark: int) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise self._parts.failure("TensorRT cannot run the engine", mark)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            graph, self._graph = self._graph, None
            self._gpu.call("cuGraphExecDestroy", graph[1])

    def close(self) -> None:
        """Give context, buffers, graph and stream back."""
        with self._gpu.current():
            self._drop_graph()
            self._context = None
            self._allocators.clear()
            self._buffers.clear()
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
        self._idle: list[Lane] = []
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
                self._changed.notify()

    def _take(self, key: Key) -> Lane:
        with self._changed:
            while not self._closed:
                fitting = [lane for lane in self._idle if lane.key == key]
                if not fitting and self._count < self._limit:
                    lane = self._make()
                    self._count += 1
                    return lane
                if self._idle:
                    lane = fitting[0] if fitting else self._idle[0]
                    self._idle.remove(lane)
                    return lane
                self._changed.wait()
        raise UsageError("the session is closed", "open it again with layerport.load")

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
