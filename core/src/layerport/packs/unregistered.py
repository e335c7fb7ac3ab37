"""Distributions that need layerport and hold hooks of a pack, but register none: their group is another one, or none.

For `discovery` only.  Reads the head of each METADATA, and the modules of those few that need layerport.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from layerport.foreign import metadata_private
from layerport.packs.metadata import Entry, editable_source, entries_of, plain_bytes, text_of

_HEAD = 1 << 15
_MOST_FILES = 500
_REQUIRES = re.compile(rb"^Requires-Dist:[ \t]*layerport(?![\w.-])(?!.*;.*extra)", re.MULTILINE | re.IGNORECASE)
_HOOK = re.compile(rb"^[ \t]*(?:@.*hookimpl\b|def layerport_\w+\()", re.MULTILINE)


class Unregistered(NamedTuple):
    """A pack that nobody finds.

    module: the one with its hooks.  entry: an entry point that names it, in a group of somebody else's.
    """

    module: str
    entry: Entry | None


def unregistered_pack(distribution: metadata.Distribution) -> Unregistered | None:
    """The pack in a distribution without an entry point of ours; None where it needs no layerport, or has no hook."""
    folder = metadata_private.folder(distribution)
    if not isinstance(folder, os.PathLike) or not _needs_layerport(os.fspath(folder)):
        return None
    for name, file in _modules(distribution, folder):
        if _has_hooks(file):
            text, _ = text_of(distribution, folder, "entry_points.txt")
            named = [one for one in entries_of(text or "") if one.value.partition(":")[0].strip() == name]
            return Unregistered(name, named[0] if named else None)
    return None


def _needs_layerport(folder: str) -> bool:
    try:
        file = os.open(os.path.join(folder, "METADATA"), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        head = os.read(file, _HEAD)
    except OSError:
        return False
    finally:
        os.close(file)
    return b"layerport" in head and _REQUIRES.search(head.partition(b"\n\n")[0]) is not None


def _modules(distribution: metadata.Distribution, info: os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """The modules of a distribution by name, with their files.  info: the folder of its metadata."""
    if source := editable_source(distribution):
        for root in (os.path.join(source, "src"), source):
            yield from _modules_in(root)
        return
    text, _ = text_of(distribution, info, "RECORD")
    rows = csv.reader((text or "").splitlines())
    for parts in [tuple(row[0].split("/")) for row in rows if row][:_MOST_FILES]:
        if parts[-1].endswith(".py") and ".." not in parts:
            yield _module_name(parts), os.path.join(os.path.dirname(info), *parts)


def _modules_in(root: str) -> Iterator[tuple[str, str]]:
    number = 0
    for place, (folder, inner, files) in enumerate(os.walk(root)):
        if place >= _MOST_FILES:
            return
        inner[:] = sorted(one for one in inner if one.isidentifier() and one != "tests")
        for file in sorted(files):
            if file.endswith(".py") and number < _MOST_FILES:
                number += 1
                path = os.path.join(folder, file)
                yield _module_name(tuple(os.path.relpath(path, root).split(os.sep))), path


def _module_name(parts: tuple[str, ...]) -> str:
    *folders, file = parts
    stem = file.removesuffix(".py")
    return ".".join(folders if stem == "__init__" and folders else (*folders, stem))


def _has_hooks(file: str) -> bool:
    try:
        return _HOOK.search(plain_bytes(Path(file))) is not None
    except OSError:
        return False
