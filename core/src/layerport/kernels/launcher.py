"""Launching a compiled kernel: the one code path of the TensorRT plugin and the Torch operator.

Everything that depends on sizes is done in `resolve`; `launch` patches addresses into memory that is there
already and calls the driver, so it suits an `enqueue` and CUDA graphs.  cuda.bindings is imported when a
launcher is made.
"""

from __future__ import annotations

import ctypes
import struct
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from layerport.errors import BuildError, LayerportError, UsageError
from layerport.kernels.cubin import Cubin
from layerport.kernels.launch_rules import (
    UNASKED_SHARED,
    Geometry,
    LaunchRule,
    PointerArg,
    check_fit,
    fits,
    resource_faults,
)

_SLOT = 8  # every argument has 8 bytes of its own


def require_driver() -> Any:
    """The module `cuda.bindings.driver`, ready for use.  Raises LayerportError where there is no driver or
    GPU.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise LayerportError(f"cuda.bindings cannot be imported: {error}", "pip install cuda-bindings") from error
    repair = "run on a machine with an NVIDIA GPU and driver; building, checking and verifying need neither"
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError as error:  # what cuda.pathfinder raises has this base
        raise LayerportError("no NVIDIA driver on this machine", repair) from error
    if status != driver.CUresult.CUDA_SUCCESS:
        raise LayerportError(f"the NVIDIA driver cannot be used: {status.name}", repair)
    return driver


_loading = threading.Lock()
_loaded: weakref.WeakValueDictionary[tuple[int, str], LoadedImage] = weakref.WeakValueDictionary()


class LoadedImage:
    """A cubin that the driver has loaded, once in a process however many launchers use it; `load_image` gives it.

    Loaded independently of CUDA contexts: its kernels run in the one that is current.  It is unloaded when its last
    user is gone.
    """

    def __init__(self, driver: Any, cubin: Cubin, label: str) -> None:
        self._where = (driver, cubin.architecture)
        self._library = called(self._where, label, "cuLibraryLoadData", cubin.image, [], [], 0, [], [], 0)
        self._kernels: dict[str, LoadedKernel] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, driver.cuLibraryUnload, self._library).atexit = False

    def kernel(self, symbol: str, label: str) -> LoadedKernel:
        """The kernel of this name."""
        with self._lock:
            found = self._kernels.get(symbol)
            if found is None:
                handle = called(self._where, label, "cuLibraryGetKernel", self._library, symbol.encode())
                found = self._kernels[symbol] = LoadedKernel(self._where, handle)
        return found


class LoadedKernel:
    """A kernel of a loaded image, with what CUDA was asked for it."""

    def __init__(self, where: tuple[Any, str], handle: Any) -> None:
        self._where, self._handle = where, handle
        # The driver takes a kernel wherever it takes a function.
        self.function = where[0].CUfunction(int(handle))
        self._widened: dict[int, int] = {}
        self._lock = threading.Lock()

    def widen_shared(self, dynamic: int, label: str) -> None:
        """Allow this much dynamic shared memory on the current device, which CUDA wants to be asked for."""
        device = called(self._where, label, "cuCtxGetDevice")
        # The limit must only grow, whoever asks meanwhile: a launch of another thread may rely on it already.
        with self._lock:
            if self._widened.get(int(device), 0) < dynamic:
                attribute = self._where[0].CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                called(self._where, label, "cuKernelSetAttribute", attribute, dynamic, self._handle, device)
                self._widened[int(device)] = dynamic


def load_image(driver: Any, cubin: Cubin, label: str) -> LoadedImage:
    """A cubin, loaded.  Raises BuildError where the driver does not take it."""
    key = (id(driver), cubin.digest)  # the image keeps its driver, so the number stays its own
    with _loading:
        found = _loaded.get(key)
        if found is None:
            found = _loaded[key] = LoadedImage(driver, cubin, label)
    return found


def called(where: tuple[Any, str], label: str, name: str, *arguments: Any) -> Any:
    """What a call of the driver answers.  where: the driver, and the architecture of the kernel that it is about.

    Raises BuildError with the name of the status.
    """
    driver, architecture = where
    status, *results = getattr(driver, name)(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise failure(architecture, label, name, status)
    return results[0] if results else None


def failure(architecture: str, label: str, name: str, status: Any) -> BuildError:
    """The error for a call of the driver that failed."""
    return BuildError(
        f"{label}: {name} failed: {status.name}",
        f"the kernel is compiled for {architecture}: the GPU must be of that architecture, "
        "its context current, and earlier work on it must not have failed",
    )


class Launcher:
    """One compiled kernel, loaded, with its launch rule.

    `resolve` whenever sizes change, then `launch` as often as wanted.  image: a cubin.  label: for errors.
    driver: for tests; the installed one where None.  Raises BuildError, PackError, or LayerportError without
    a driver.
    """

    def __init__(
        self, image: bytes, symbol: str, rule: LaunchRule, *, label: str | None = None, driver: Any = None
    ) -> None:
        self.label = label or f"kernel {symbol}"
        self.cubin = Cubin.read(image, symbol)
        self.rule = rule
        check_fit(rule, self.cubin, label=self.label)
        self.driver = require_driver() if driver is None else driver
        self._current: Prepared | None = None
        self._image: LoadedImage | None = load_image(self.driver, self.cubin, self.label)
        self.kernel = self._image.kernel(symbol, self.label)

    def prepare(self, sizes: Mapping[str, int]) -> Prepared:
        """The launch for these sizes, independent of `resolve`, for callers that keep several.

        Raises UsageError with values where they break a limit of CUDA, of the kernel or of its architecture.
        """
        geometry = self.rule.resolve(sizes, label=self.label)
        if geometry is not None:
            x, y, z = geometry.block
            if faults := resource_faults(self.cubin, x * y * z, geometry.shared):
                raise UsageError(
                    f"{self.label} cannot be launched with {', '.join(f'{k}={v}' for k, v in sizes.items())}",
                    "use smaller sizes, or give the layer a kernel for them with a predicate",
                    faults=faults,
                )
        return Prepared(self, geometry)

    def resolve(self, sizes: Mapping[str, int]) -> Prepared:
        """Evaluate geometry and scalars for `launch`; as `prepare`."""
        self._current = self.prepare(sizes)
        return self._current

    def launch(self, pointers: Mapping[str, int], stream: int) -> None:
        """Launch on a stream with the sizes of the last `resolve`.  pointers: device addresses by tensor
        name.
        """
        if self._current is None:
            raise UsageError(f"{self.label} is launched before resolve", "call resolve(sizes) first")
        self._current.launch(pointers, stream)

    def close(self) -> None:
        """Give the kernel back; it is unloaded with its last user.  Wait for its launches before."""
        self._image = self._current = None

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Prepared:
    """A launch of which only the addresses and the stream are open.  Threads may share it.

    geometry: None where there is nothing to launch.
    """

    def __init__(self, launcher: Launcher, geometry: Geometry | None) -> None:
        self.geometry = geometry
        self._launcher = launcher
        self._lock = threading.Lock()  # the driver copies arguments during the call, so one launch at a time
        if geometry is None:
            return
        rule, sizes = launcher.rule, launcher.cubin.parameter_sizes
        count = max(1, len(sizes))
        # As long as this object lives, nothing of this moves: the driver reads through the addresses.
        self._slots = (ctypes.c_uint64 * count)()
        start = ctypes.addressof(self._slots)
        self._table = (ctypes.c_void_p * count)(*(start + _SLOT * index for index in range(count)))
        self._address = ctypes.addressof(self._table)
        self._patches: list[tuple[int, str, int]] = []
        for index, (arg, value) in enumerate(zip(rule.args, geometry.values, strict=True)):
            if not isinstance(arg, PointerArg):
                _pack(self._slots, index, value, sizes[index], f"{launcher.label}: argument {index}, {arg},")
            elif arg.name is not None:
                self._patches.append((index, arg.name, arg.alignment - 1))
        self._shape = (*geometry.grid, *geometry.block, geometry.shared)
        self._kernel = launcher.kernel
        self._function = launcher.kernel.function
        self._start = launcher.driver.cuLaunchKernel
        self._success = launcher.driver.CUresult.CUDA_SUCCESS
        self._wide = launcher.cubin.resources.static_shared + geometry.shared > UNASKED_SHARED

    def launch(self, pointers: Mapping[str, int], stream: int) -> None:
        """Launch on a CUDA stream.  pointers: device addresses by tensor name."""
        if self.geometry is None:
            return
        slots = self._slots
        with self._lock:
            if self._wide:
                self._kernel.widen_shared(self.geometry.shared, self._launcher.label)
            for index, name, mask in self._patches:
                address = slots[index] = pointers[name]
                if address & mask:
                    raise self._misaligned(name, address, mask + 1)
            (status,) = self._start(self._function, *self._shape, stream, self._address, 0)
        if status is not self._success:
            self._raise(status)

    def _misaligned(self, name: str, address: int, alignment: int) -> UsageError:
        return UsageError(
            f"{self._launcher.label}: tensor {name} lies at {address:#x}, which is no multiple of {alignment} bytes",
            "pass a copy of it, or a view that starts at such an address; "
            "a Triton kernel for any address is made with lp.triton(..., alignment=1)",
        )

    def _raise(self, status: Any) -> None:
        if status != self._success:
            raise failure(
                self._launcher.cubin.architecture, self._launcher.label, f"cuLaunchKernel with {self.geometry}", status
            )


def _pack(slots: Any, index: int, value: int | float | bool | None, size: int, label: str) -> None:
    if isinstance(value, float):
        try:
            struct.pack_into("<f" if size == 4 else "<d", slots, index * _SLOT, value)
        except OverflowError:
            raise UsageError(f"{label} does not fit a float", "declare the kernel's parameter as double") from None
        return
    number = int(value or 0)
    if size > 1 and not fits(number, size):
        raise UsageError(
            f"{label} is {number} for these sizes, which does not fit {size} bytes",
            "declare the kernel's parameter as long long (tl.int64 in Triton)" if size == 4 else "use smaller sizes",
        )
    slots[index] = number & 0xFFFF_FFFF_FFFF_FFFF
