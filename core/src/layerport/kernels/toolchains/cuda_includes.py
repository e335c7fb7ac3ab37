"""Which local files a CUDA source includes, for the key of the compiled-kernel cache.

A header is taken as included wherever its name stands behind `#include`, whether the preprocessor would get
there or not: one file too many costs a compilation, one too few would run old code.  `nvrtc` imports it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

_DIRECTIVE = re.compile(rb"(?:#|%:)[ \t]*(?:include(?:_next)?|embed|import)\b[ \t]*([^\n]*)")
_PROBE = re.compile(rb"__has_(?:include(?:_next)?|embed)[ \t]*\(([^)\n]*)")
_OPERAND = re.compile(rb"[ \t]*(?:\"([^\"\n]+)\"|<([^>\n]+)>)")


def local_headers(text: str, folder: str, include: Sequence[str]) -> list[tuple[str, str]] | None:
    """(path as the compiler sees it, SHA-256) of each file that lies in these folders and that the source
    includes.

    folder: of the source.  include: more folders.  Headers that lie elsewhere (CUDA's) are left out. None
    where an include names its file through a macro, so that nothing can be said.
    """
    found: dict[str, str] = {}
    waiting = [(text.encode(), folder)]
    while waiting:
        content, place = waiting.pop()
        content = content.replace(b"\r\n", b"\n").replace(b"\\\n", b"")
        for match in (*_DIRECTIVE.finditer(content), *_PROBE.finditer(content)):
            operand = _OPERAND.match(match[1])
            if operand is None:
                return None
            name = os.fsdecode(operand[1] or operand[2])
            # All places that could serve, not only the first: which one does is the compiler's business.
            for base in dict.fromkeys((place, folder, *include)):
                path = Path(base, name)
                if not path.is_file():
                    continue
                seen = os.path.relpath(path, folder)
                if seen not in found:
                    data = path.read_bytes()
                    found[seen] = hashlib.sha256(data).hexdigest()
                    waiting.append((data, str(path.parent)))
    return sorted(found.items())


_HEADER_OF_NAME = (
    (r"(?:__)?nv_bfloat16\w*|__\w*bfloat16\w*", "cuda_bf16.h"),
    (r"__nv_fp8\w*|__nv_cvt_\w*fp8\w*", "cuda_fp8.h"),
    (r"__nv_fp4\w*", "cuda_fp4.h"),
    (r"half2?|__half\w*|__\w+2half\w*|__h(?:add|sub|mul|fma|div|neg|abs|max|min|eq|ne|lt|gt|le|ge)\w*", "cuda_fp16.h"),
    (r"cooperative_groups", "cooperative_groups.h"),
    (r"nvcuda|wmma", "mma.h"),
    (r"u?int(?:8|16|32|64)_t", "cuda/std/cstdint"),
)
_UNKNOWN_NAME = re.compile(
    r"identifier \"(\w+)\" is undefined|"
    r"'(?:struct )?(\w+)' (?:was not declared|does not name a type|has not been declared)|"
    r"incomplete type '(?:const )?(?:struct )?(\w+)'"
)


def include_repair(text: str, entry: str, log: str) -> str | None:
    """The `#include` lines that a source lacks, by the names that a compiler did not know; None where none is missing.

    text: the source.  entry: its name expression, whose types the source must know.  log: of NVRTC or g++.
    """
    names = {name for match in _UNKNOWN_NAME.finditer(log) for name in match.groups() if name}
    if "complete" in log:  # a type that another header of CUDA declares and does not define
        names |= set(re.findall(r"\w+", entry))
    missing = [
        header
        for pattern, header in _HEADER_OF_NAME
        if any(re.fullmatch(pattern, name) for name in names) and f"<{header}>" not in text
    ]
    lines = " and ".join(f"#include <{header}>" for header in missing)
    return f"add {lines} to the source" if missing else None
