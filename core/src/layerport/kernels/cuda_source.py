"""CUDA C++ code of a kernel, as an author names it: `layerport.cuda`.  `declaration` makes kernels of it."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from layerport.errors import BuildError, PackError, UsageError, shown

_REFUSED_OPTIONS = {
    r"-{1,2}(arch|gpu-architecture)\b": "the targets of a build give the architecture",
    r"-I|--include-path|-{1,2}include\b|--pre-include": ("name folders in include=(...) and headers in the source"),
    r"-{1,2}(dc|rdc|device-c|relocatable-device-code|dlto|gen-opt-lto|dlink-time-opt|optix-ir)\b": (
        "a kernel is compiled whole, to a cubin"
    ),
    r"-{1,2}(pch|create-pch|use-pch|time|fdevice-time-trace)\b": "the compiler writes nothing but the cubin",
}


@dataclass(frozen=True)
class CudaSource:
    """CUDA C++ code and the entry to take from it.  Made by `layerport.cuda`.

    folder: where relative paths and quoted includes start; set when a kernel is made of it.
    """

    source: str
    entry: str
    options: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    time_limit: float = 120.0
    folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("source", "entry"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip() or "\0" in value:
                raise UsageError(f"lp.cuda: {name} is {shown(value)}", "give it as text that is not empty")
        for name in ("options", "include"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(item, str) and item for item in value):
                raise UsageError(f"lp.cuda: {name} is {shown(value)}", f'give a tuple of texts: {name}=("...",)')
            object.__setattr__(self, name, tuple(value))
        for option in self.options:
            if not option.startswith("-"):
                raise UsageError(f"lp.cuda: option {option!r} does not start with '-'", "write it as '--name=value'")
            for pattern, reason in _REFUSED_OPTIONS.items():
                if re.match(pattern, option):
                    raise UsageError(f"lp.cuda: option {option!r} cannot be used here", f"leave it out: {reason}")
        if not isinstance(self.time_limit, (int, float)) or not 0 < self.time_limit <= 86400:
            raise UsageError(
                f"lp.cuda: time_limit is {shown(self.time_limit)}", "give seconds, more than 0, at most a day (86400)"
            )

    @property
    def inline(self) -> bool:
        """Whether `source` is the code itself, not a path: it has more than one line."""
        return "\n" in self.source

    @property
    def path(self) -> Path | None:
        """The file, None for inline code."""
        return None if self.inline else Path(self.folder or os.curdir, self.source)

    def anchored(self, folder: str) -> CudaSource:
        """The same with this folder for relative paths, unless it has one already."""
        return self if self.folder is not None else replace(self, folder=folder)

    def read(self) -> str:
        """The code.  Raises BuildError where the file cannot be read."""
        path = self.path
        if path is None:
            return self.source
        try:
            text = path.read_bytes().decode()
        except OSError as error:
            raise BuildError(
                f"kernel source {path} cannot be read: {error.strerror}",
                "a path is relative to the file with the launch rule; is it in the package's data files?",
            ) from error
        except UnicodeDecodeError as error:
            raise BuildError(f"kernel source {path} is not UTF-8 at byte {error.start}", "save it as UTF-8") from error
        if "\0" in text:
            raise BuildError(f"kernel source {path} has a NUL at character {text.index(chr(0))}", "save it as text")
        return text


def cuda(
    source: str,
    entry: str,
    *,
    options: Sequence[str] = (),
    include: Sequence[str] = (),
    time_limit: float = 120.0,
) -> CudaSource:
    """A kernel in CUDA C++, compiled with NVRTC for each architecture that is asked for.

    source: a file, relative to the file of the launch rule that it decorates; or the code itself, if it has a
    newline. entry: the kernel, as `"scale<{x}>"`: `{x}` becomes the C++ type of tensor x, `{n}` the value of
    attribute n (int, bool, or str that is a C++ name), `{x.1}` the size of axis 1 of x: the kernel then takes
    tensors where that size is static.  options: for NVRTC; `--std=c++17` unless one sets
    it.  include: more folders for `#include`, relative like source; the source's own folder and CUDA's
    headers are there anyway. time_limit: seconds that one compilation may take.  Raises UsageError.

    Equal sources give equal cubins, wherever they lie; `-lineinfo` and `-G` write the folder's path into
    them.
    """
    return CudaSource(source, entry, options, include, time_limit)  # type: ignore[arg-type]


def pieces_of(source: CudaSource, kernel: str) -> list[tuple[str, str | None]]:
    """The entry as texts, each with the name in braces after it.  Raises PackError where it is no template."""
    try:
        pieces = list(string.Formatter().parse(source.entry))
    except ValueError as error:
        raise PackError(
            f"kernel {kernel}: entry {source.entry!r} is no template: {error}", 'write it as "scale<{x}>"'
        ) from error
    return [
        (literal, name and name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else ""))
        for literal, name, spec, conversion in pieces
    ]


def dim_of(name: str, aliases: Mapping[str, str]) -> tuple[str, int] | None:
    """The tensor (by the layer's name) and the axis of "x.1" in an entry; None where it is no such name."""
    tensor, _, axis = name.partition(".")
    return (aliases.get(tensor, tensor), int(axis)) if axis.isascii() and axis.isdigit() and len(axis) < 4 else None
