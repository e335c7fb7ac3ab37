"""What a cubin says about its kernels: parameter sizes and resource usage.

The launcher packs arguments by these sizes, so an author never declares C widths.  Pure reading of bytes,
with every offset checked, since the launcher also meets images from plans.  Imports nothing foreign; kernels,
nvrtc and the launcher may import it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from layerport.errors import BuildError

# Attributes of a `.nv.info` section.  NVIDIA does not document them; the names are those that `cuobjdump
# -elf` prints.
_MAX_THREADS = 0x05
_FRAME_SIZE = 0x11
_KPARAM_INFO = 0x17
_REGCOUNT = 0x2F
_KPARAM_INFO_V2 = 0x45  # for kernels with more than 4 KiB of parameters
_FORMAT_SIZED = 4
_EM_CUDA = 190
_HEADER = 64
_INFO = ".nv.info."
_RESERVED_SHARED = 1024


@dataclass(frozen=True)
class Resources:
    """What one kernel uses.  registers: per thread; the sizes are bytes.

    local_bytes: stack frame per thread, which holds spilled registers and indexed local arrays; 0 means no
    spills. max_threads: threads per block that `__launch_bounds__` allows, None where the source states none.
    """

    registers: int
    local_bytes: int
    static_shared: int
    max_threads: int | None = None


@dataclass(frozen=True)
class Cubin:
    """One compiled kernel.  parameter_sizes: bytes of each parameter, in order.  architecture: such as
    "sm_90".
    """

    symbol: str
    architecture: str
    image: bytes = field(repr=False)
    parameter_sizes: tuple[int, ...]
    resources: Resources

    @property
    def digest(self) -> str:
        """SHA-256 of the image, in hexadecimal."""
        return hashlib.sha256(self.image).hexdigest()

    @classmethod
    def read(cls, image: bytes, symbol: str) -> Cubin:
        """The kernel of this symbol.  Raises BuildError where the image is no cubin or has no such kernel."""
        try:
            sections = _Sections(image)
            return sections.kernel(symbol)
        except (struct.error, IndexError, ValueError) as error:
            raise BuildError(
                f"{len(image)} bytes given as a cubin cannot be read: {error}",
                "compile the kernel again; if the image comes from a file, that file is damaged",
            ) from error


def kernel_symbols(image: bytes) -> tuple[str, ...]:
    """The symbols of all kernels in a cubin, sorted.  Raises ValueError where the image is no cubin."""
    return tuple(sorted(name.removeprefix(_INFO) for name in _Sections(image).by_name if name.startswith(_INFO)))


class _Sections:
    """The section table of a 64-bit little-endian ELF file."""

    def __init__(self, image: bytes) -> None:
        if (
            len(image) < _HEADER
            or image[:6] != b"\x7fELF\x02\x01"
            or struct.unpack_from("<H", image, 18)[0] != _EM_CUDA
        ):
            raise ValueError("no CUDA ELF header")
        self.image = image
        start, flags = struct.unpack_from("<Q", image, 40)[0], struct.unpack_from("<I", image, 48)[0]
        # The ABI version tells which byte of the flags holds the architecture: it moved with CUDA 13.
        self.architecture = f"sm_{flags >> 8 & 0xFF if image[8] >= 8 else flags & 0xFF}"
        size, count, names = struct.unpack_from("<HHH", image, 58)
        if size != 64 or names >= count:
            raise ValueError("no section table")
        if start + count * size > len(image):
            raise ValueError("the section table is cut short")
        table = [struct.unpack_from("<IIQQQQIIQQ", image, start + index * size) for index in range(count)]
        self.by_name = {self._string(table[names], row[0]): row for row in table}

    def _string(self, table: tuple[int, ...], offset: int) -> str:
        begin = table[4] + offset
        end = self.image.index(b"\0", begin, table[4] + table[5])
        return self.image[begin:end].decode()

    def _bytes(self, row: tuple[int, ...]) -> bytes:
        data = self.image[row[4] : row[4] + row[5]]
        if len(data) != row[5]:
            raise ValueError("a section is cut short")
        return data

    def _symbol_index(self, symbol: str) -> int:
        data, strings = self._bytes(self.by_name[".symtab"]), self.by_name[".strtab"]
        for index in range(len(data) // 24):
            if self._string(strings, struct.unpack_from("<I", data, index * 24)[0]) == symbol:
                return index
        raise ValueError(f"no symbol {symbol}")

    def _static_shared(self, symbol: str) -> int:
        row = self.by_name.get(f".nv.shared.{symbol}")
        # From sm_90 on, the section begins with what the system keeps of each block, outside a block's limit.
        reserved = _RESERVED_SHARED if ".nv.shared.reserved.0" in self.by_name else 0
        return max(0, row[5] - reserved) if row else 0

    def kernel(self, symbol: str) -> Cubin:
        found = self.by_name.get(_INFO + symbol)
        if found is None:
            there = sorted(name.removeprefix(_INFO) for name in self.by_name if name.startswith(_INFO))
            raise ValueError(f"no kernel {symbol} in it, only {', '.join(there) or 'none'}")
        if missing := [name for name in (".symtab", ".strtab", ".nv.info") if name not in self.by_name]:
            raise ValueError(f"section {missing[0]} is missing")
        sizes: dict[int, int] = {}
        max_threads = None
        for attribute, data in _attributes(self._bytes(found)):
            if attribute == _KPARAM_INFO:
                _, ordinal, _, packed = struct.unpack("<IHHI", data)
                sizes[ordinal] = packed >> 18
            elif attribute == _KPARAM_INFO_V2:
                _, ordinal, _, sizes[ordinal] = struct.unpack("<IHHI", data)
            elif attribute == _MAX_THREADS:
                x, y, z = struct.unpack("<III", data)
                max_threads = x * y * z
        if sorted(sizes) != list(range(len(sizes))):
            raise ValueError(f"parameters {sorted(sizes)} of {symbol} are not numbered from 0")
        index = self._symbol_index(symbol)
        used = {_REGCOUNT: 0, _FRAME_SIZE: 0}
        for attribute, data in _attributes(self._bytes(self.by_name[".nv.info"])):
            if attribute in used:
                owner, value = struct.unpack("<II", data)
                if owner == index:
                    used[attribute] = value
        shared = self._static_shared(symbol)
        return Cubin(
            symbol=symbol,
            architecture=self.architecture,
            image=self.image,
            parameter_sizes=tuple(sizes[ordinal] for ordinal in range(len(sizes))),
            resources=Resources(used[_REGCOUNT], used[_FRAME_SIZE], shared, max_threads),
        )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data):
        layout, attribute, value = struct.unpack_from("<BBH", data, position)
        position += 4
        if layout == _FORMAT_SIZED:
            if position + value > len(data):
                raise ValueError("an attribute is cut short")
            yield attribute, data[position : position + value]
            position += value
