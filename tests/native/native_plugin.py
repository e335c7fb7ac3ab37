"""The native plugin driven from Python as TensorRT drives it, over the stand-in for libcuda; never in a test's process.

It imports nothing heavy: many of the processes that use it only look at the log.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHAR, INT8 = 6, 3
BUILD, RUNTIME = 0, 1


class NativeLibrary:
    """The plugin library, opened as a registry does, with a log of its own.

    version: what TensorRT calls itself, which decides the layout of its log.
    driver: the folder of a stand-in for libcuda, or none for the machine's own.
    """

    def __init__(self, folder: Path, version: int = 110100, driver: str = "cuda") -> None:
        if driver:  # opened first, under the name by which the library looks for the driver
            self.cuda = ctypes.CDLL(str(folder / driver / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
        self.host = ctypes.CDLL(str(folder / "plugin_host.so"))
        for name in ("host_open", "host_create", "host_clone", "host_attach"):
            getattr(self.host, name).restype = ctypes.c_void_p
        self.host.host_metadata.restype = self.host.host_cache_id.restype = ctypes.c_char_p
        self.host.host_time.restype = ctypes.c_double
        self.host.host_log.restype = self.host.host_workspace.restype = ctypes.c_size_t
        self.creator = self.host.host_open(str(folder / "liblayerport_plugins.so").encode(), version)
        assert self.creator

    def log(self) -> str:
        """What was written to the log since it was last asked for."""
        text = ctypes.create_string_buffer(1 << 16)
        length = self.host.host_log(text, ctypes.c_size_t(len(text)))
        return text.raw[:length].decode()

    def create(self, data: bytes, phase: int = RUNTIME, kind: int = INT8) -> NativePlugin | None:
        made = self.host.host_create(ctypes.c_void_p(self.creator), data, len(data), phase, kind)
        return NativePlugin(self, made) if made else None

    def plugin(self, field: bytes) -> NativePlugin:
        """A plugin as an engine holds it; ask for contexts of it."""
        made = self.create(field)
        assert made is not None, self.log()
        return made


class NativePlugin:
    """One plugin object; destroyed by `close`."""

    def __init__(self, library: NativeLibrary, handle: int) -> None:
        self._library, self._host = library, library.host
        self.handle = ctypes.c_void_p(handle)

    def attach(self) -> NativePlugin:
        return NativePlugin(self._library, self._host.host_attach(self.handle))

    def clone(self) -> NativePlugin:
        return NativePlugin(self._library, self._host.host_clone(self.handle))

    def close(self) -> None:
        self._host.host_destroy(self.handle)

    def tactics(self) -> int:
        return int(self._host.host_tactics(self.handle))

    def set_tactic(self, tactic: int) -> bool:
        return self._host.host_set_tactic(self.handle, tactic) == 0

    def field(self) -> bytes:
        text = ctypes.create_string_buffer(1 << 22)
        length = self._host.host_field(self.handle, text, len(text))
        return text.raw[:length]

    def metadata(self) -> str:
        return str(self._host.host_metadata(self.handle).decode())

    def cache_id(self) -> str:
        return str(self._host.host_cache_id(self.handle).decode())

    def set_shapes(self, shapes: Sequence[Sequence[int]]) -> bool:
        return self._host.host_shapes(self.handle, len(shapes), *_dims(shapes)) == 0

    def workspace(self, shapes: Sequence[Sequence[int]]) -> int:
        """The bytes of workspace that inputs up to these shapes need."""
        return int(self._host.host_workspace(self.handle, len(shapes), *_dims(shapes)))

    def enqueue(self, inputs: Sequence[int], outputs: Sequence[int], stream: int = 11, workspace: int = 0) -> bool:
        pointers = (ctypes.c_void_p(workspace), ctypes.c_void_p(stream))
        return self._host.host_enqueue(self.handle, table(inputs), table(outputs), *pointers) == 0

    def time(self, calls: int, shapes: Sequence[Sequence[int]], inputs: Sequence[int], outputs: Sequence[int]) -> float:
        """Seconds for a call of `enqueue`, or of a change of shape where there are no addresses."""
        given = (table(inputs), table(outputs)) if outputs else (None, None)
        return float(self._host.host_time(self.handle, calls, len(shapes), *_dims(shapes), *given)) * 1e-9


def table(addresses: Sequence[int]) -> Any:
    return (ctypes.c_void_p * max(1, len(addresses)))(*addresses)


def _dims(shapes: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    flat = [size for shape in shapes for size in shape]
    return (ctypes.c_int * max(1, len(shapes)))(*map(len, shapes)), (ctypes.c_int64 * max(1, len(flat)))(*flat)
