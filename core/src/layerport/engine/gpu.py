"""One GPU as a session uses it: its primary context, memory, copies, streams and graphs, through the CUDA driver.

Only the engine half imports it.  The primary context is the one that Torch and CuPy use as well, so addresses of theirs
are valid here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from layerport.errors import BuildError, UsageError
from layerport.kernels.launcher import require_driver as require_driver

_FREE_STREAM = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING


class Gpu:
    """The GPU of a number.  driver: the module `cuda.bindings.driver`, or a double of it in tests.

    Raises LayerportError where there is no driver or no such GPU.  `close` gives the context back once no memory
    of it is left.
    """

    def __init__(self, driver: Any = None, number: int = 0) -> None:
        self.driver = require_driver() if driver is None else driver
        self.number = number
        status, self._device = self.driver.cuDeviceGet(number)
        if status != self.driver.CUresult.CUDA_SUCCESS:
            count = int(self.call("cuDeviceGetCount"))
            raise UsageError(f"there is no GPU {number}", f"this machine has {count}, numbered from 0")
        self._context: Any = None
        self._blocks = 0
        self._closed = False
        # Reentrant, because memory may be freed by a finaliser at any moment.
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """What the GPU is called."""
        return bytes(self.call("cuDeviceGetName", 256, self._device)).split(b"\0")[0].decode()

    @property
    def architecture(self) -> str:
        """The architecture as `sm_NN`."""
        kinds = self.driver.CUdevice_attribute
        major = self.call("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, self._device)
        minor = self.call("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, self._device)
        return f"sm_{major}{minor}"

    @property
    def driver_version(self) -> int:
        """The version of CUDA that the driver is for, as 1000 * major + 10 * minor."""
        return int(self.call("cuDriverGetVersion"))

    def call(self, name: str, *arguments: Any) -> Any:
        """Call the driver.  Raises BuildError with the name of the status."""
        status, *results = getattr(self.driver, name)(*arguments)
        if status != self.driver.CUresult.CUDA_SUCCESS:
            raise BuildError(
                f"{name} failed on GPU {self.number}: {status.name}",
                "free GPU memory, or use fewer contexts"
                if status.name == "CUDA_ERROR_OUT_OF_MEMORY"
                else "see whether earlier work on this GPU failed; a new process starts afresh",
            )
        return results[0] if results else None

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU's primary context the current one of this thread."""
        with self._lock:
            if self._context is None:
                self._context = self.call("cuDevicePrimaryCtxRetain", self._device)
            context = self._context
        self.call("cuCtxPushCurrent", context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent")

    def allocate(self, nbytes: int) -> int:
        """Device memory, aligned to 256 bytes; its address.  The context must be current."""
        address = int(self.call("cuMemAlloc", max(1, nbytes)))
        with self._lock:
            self._blocks += 1
        return address

    def free(self, address: int) -> None:
        """Free what `allocate` gave, from any thread."""
        with self.current():
            self.call("cuMemFree", address)
        with self._lock:
            self._blocks -= 1
        self._release()

    def copy_in(self, device: int, host: int, nbytes: int, stream: Any) -> None:
        """Copy from host memory, which must live until the stream is synchronised."""
        if nbytes:
            self.call("cuMemcpyHtoDAsync", device, host, nbytes, stream)

    def copy_out(self, host: int, device: int, nbytes: int, stream: Any) -> None:
        """Copy to host memory, which must live until the stream is synchronised."""
        if nbytes:
            self.call("cuMemcpyDtoHAsync", host, device, nbytes, stream)

    def copy_across(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        """Copy within the GPU."""
        if nbytes:
            self.call("cuMemcpyDtoDAsync", target, source, nbytes, stream)

    def stream(self) -> int:
        """A new stream of its own; its handle."""
        return int(self.call("cuStreamCreate", _FREE_STREAM))

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        self.call("cuStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""
        self.call("cuStreamDestroy", stream)

    def wait(self, stream: int, producer: int) -> None:
        """Let a stream wait for what is on another one by now."""
        event = self.call("cuEventCreate", _NO_TIMING)
        try:
            self.call("cuEventRecord", event, producer)
            self.call("cuStreamWaitEvent", stream, event, 0)
        finally:
            self.call("cuEventDestroy", event)  # the driver keeps it until the wait is over

    def owner(self, address: int) -> int | None:
        """The number of the GPU that an address belongs to; None where it is not memory that CUDA knows."""
        kind = self.driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        status, number = self.driver.cuPointerGetAttribute(kind, address)
        return int(number) if status == self.driver.CUresult.CUDA_SUCCESS else None

    @contextmanager
    def capturing(self, stream: int, graphs: list[Any]) -> Iterator[None]:
        """Capture what the block puts on the stream; its executable graph is appended to `graphs`."""
        # Only what this thread does counts: other threads may allocate meanwhile.
        self.call("cuStreamBeginCapture", stream, self.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            yield
        except BaseException:
            status, graph = self.driver.cuStreamEndCapture(stream)
            if status == self.driver.CUresult.CUDA_SUCCESS:
                self.call("cuGraphDestroy", graph)
            raise
        graph = self.call("cuStreamEndCapture", stream)
        try:
            graphs.append(self.call("cuGraphInstantiate", graph, 0))
        finally:
            self.call("cuGraphDestroy", graph)

    def close(self) -> None:
        """Give the context back, now or when the last memory is freed; closing twice is fine."""
        self._closed = True
        self._release()

    def _release(self) -> None:
        with self._lock:
            if not self._closed or self._blocks or self._context is None:
                return
            self._context = None
        self.call("cuDevicePrimaryCtxRelease", self._device)
