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
