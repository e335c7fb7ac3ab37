"""The native library's parts, called from Python; `conftest` compiles it."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

_TEXT = 1 << 20


class Probe:
    """Each method answers what the C++ part does with the same input."""

    def __init__(self, library: Path) -> None:
        self._calls = ctypes.CDLL(str(library))
        self._text = ctypes.create_string_buffer(_TEXT)

    def evaluate(self, text: str, sizes: Mapping[str, int]) -> int | str:
        """The value; "unread" where it is no expression, "no value" where it has none for these sizes."""
        names = (ctypes.c_char_p * len(sizes))(*(name.encode() for name in sizes))
        values = (ctypes.c_int64 * len(sizes))(*sizes.values())
        high, low = ctypes.c_int64(), ctypes.c_uint64()
        status = self._calls.probe_expression(
            text.encode(),
            names,
            values,
            len(sizes),
            ctypes.byref(high),
            ctypes.byref(low),
            self._text,
            ctypes.c_size_t(_TEXT),
        )
        return ((high.value << 64) + low.value, "unread", "no value")[status]

    def lower(self, text: str) -> str:
        """What TensorRT's builder is asked for, a line for each."""
        self._calls.probe_lowering(text.encode(), self._text, ctypes.c_size_t(_TEXT))
        return self._text.value.decode()

    def field(self, data: bytes) -> str | None:
        """Why a field cannot be read, None where it can."""
        status = self._calls.probe_field(data, ctypes.c_size_t(len(data)), self._text, ctypes.c_size_t(_TEXT))
        return self._text.value.decode(errors="replace") if status else None

    def spec(self, text: bytes) -> str | None:
        """Why the JSON of a spec cannot be read, None where it can."""
        status = self._calls.probe_spec(text, ctypes.c_size_t(len(text)), self._text, ctypes.c_size_t(_TEXT))
        return self._text.value.decode(errors="replace") if status else None

    def cubin(self, image: bytes, symbol: str) -> tuple[str, int, int, tuple[int, ...]] | str:
        """Architecture, static shared memory, most threads and sizes of parameters; a text says what is wrong."""
        answer = (ctypes.c_int64 * 1100)()
        status = self._calls.probe_cubin(
            image,
            ctypes.c_size_t(len(image)),
            symbol.encode(),
            answer,
            ctypes.c_size_t(len(answer)),
            self._text,
            ctypes.c_size_t(_TEXT),
        )
        if status:
            return self._text.value.decode(errors="replace")
        return f"sm_{answer[0]}", answer[1], answer[2], tuple(answer[4 : 4 + answer[3]])

    def number(self, text: str) -> float | None:
        """The float of a text that `repr` gave, None for any other text."""
        number = ctypes.c_double()
        return None if self._calls.probe_number(text.encode(), ctypes.byref(number)) else number.value

    def sha256(self, data: bytes) -> str:
        self._calls.probe_sha256(data, ctypes.c_size_t(len(data)), self._text)
        return self._text.value.decode()
