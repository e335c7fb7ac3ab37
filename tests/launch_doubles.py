"""Doubles of the CUDA driver for tests of launches: one that records them, one that does nothing.

That a GPU takes what they record only a GPU can show.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from gpu_doubles import HostDriver, Status


class LaunchDriver(HostDriver):
    """A double that also takes kernels: it records each launch, with the arguments read as a GPU would read them.

    sizes: bytes of each parameter of the kernel.
    """

    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="max dynamic shared")
    _DONE = (Status.CUDA_SUCCESS,)

    def __init__(self, architecture: str = "sm_89") -> None:
        super().__init__(architecture)
        self.libraries: dict[int, bytes] = {}
        self.symbols: list[bytes] = []
        self.launches: list[tuple[Any, ...]] = []
        self.sizes: Sequence[int] = ()

    def CUfunction(self, handle: int) -> int:
        return handle

    def cuLibraryLoadData(self, image: bytes, *options: Any) -> Any:
        handle = self._handle()
        self.libraries[handle] = image
        return Status.CUDA_SUCCESS, handle

    def cuLibraryGetKernel(self, library: int, symbol: bytes) -> Any:
        self.symbols.append(symbol)
        return Status.CUDA_SUCCESS, library

    def cuLibraryUnload(self, library: int) -> Any:
        del self.libraries[library]
        return (Status.CUDA_SUCCESS,)

    def cuLaunchKernel(
        self,
        kernel: int,
        gx: int,
        gy: int,
        gz: int,
        bx: int,
        by: int,
        bz: int,
        shared: int,
        stream: int,
        table: int,
        extra: int,
    ) -> Any:
        addresses = (ctypes.c_void_p * len(self.sizes)).from_address(table)
        values = [ctypes.string_at(at, size) for at, size in zip(addresses, self.sizes, strict=True)]
        arguments = [int.from_bytes(value, "little") for value in values]
        self.launches.append(((gx, gy, gz), (bx, by, bz), shared, stream, arguments))
        return self._DONE


class SilentDriver(LaunchDriver):
    """A double whose launch does nothing at all, for measuring what comes before it."""

    def cuLaunchKernel(self, *arguments: Any) -> Any:
        return self._DONE
