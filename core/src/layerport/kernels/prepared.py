"""Compiled kernels where their compiler is not: how they are found, and which are taken.

A compiled kernel has two names in the disk cache.  One is made of its source and of the compiler: a machine with a
compiler looks for that one, so that another version compiles again.  The other is made of the source alone; it says
where the first is and who made it.  It is read where the compiler is missing, and before any compiler is asked for
where the cache was prepared on another machine (`mark`).  Taken is what a compiler of the major version made that
this layerport works with.  The toolchains and `benchmarks/gpu` use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from layerport.system.disk_cache import DiskCache, cache_key

MAJOR = {"NVRTC": 13, "Triton": 3}
"""The major version of each compiler whose kernels are taken: that of the CUDA bindings, and of Triton's launches."""

_MARK = cache_key({"prepared": 1})


def mark(store: DiskCache, prepared: bool = True) -> None:
    """Say that a cache was prepared here for machines without these compilers, or with others; or that it was not."""
    store.put(_MARK, {"prepared": prepared}, b"")


def is_marked(store: DiskCache) -> bool:
    """Whether a cache was prepared, so that what it has is taken whatever compiler is here."""
    found = store.get(_MARK)
    return found is not None and found[0].get("prepared") is True


def remember(
    store: DiskCache,
    source: Mapping[str, Any],
    key: str,
    compiler: str,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Name an entry by its source alone as well.

    source: everything that decides what is made, but the compiler.  key: the entry's.  compiler: such as "NVRTC 13.0".
    more: what else `recall` is to tell.
    """
    store.put(_name(source), {**more, "entry": key, "compiler": compiler}, b"")


def recall(store: DiskCache, source: Mapping[str, Any] | None) -> tuple[dict[str, Any], bytes] | None:
    """The entry that an acceptable compiler made of a source last; None where there is none."""
    found = None if source is None else store.get(_name(source))
    if found is None or not _accepted(found[0].get("compiler")):
        return None
    entry = store.get(str(found[0].get("entry")))
    return None if entry is None else ({**entry[0], **found[0]}, entry[1])


def _name(source: Mapping[str, Any]) -> str:
    return cache_key({"source": dict(source)})


def _accepted(compiler: object) -> bool:
    name, _, version = str(compiler).partition(" ")
    return name in MAJOR and version.partition(".")[0] == str(MAJOR[name])
