"""What the metadata of one installed distribution says of its packs, also where that metadata is damaged.

For `discovery` only.  Reads files and imports nothing of a pack: a file that is no plain one, or that is larger
than metadata ever is, is not read at all.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from importlib import metadata
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from layerport.foreign import metadata_private
from layerport.system.foreign_text import reason, shown

GROUP = "layerport"
_MOST_BYTES = 4 << 20
_FOLDER = re.compile(r"(?P<name>.+?)(?:-(?P<version>[^-]*)(?:-.*)?)?\.(?:dist|egg)-info")
_DISTRIBUTION = re.compile(r"[A-Z0-9](?:[A-Z0-9._-]*[A-Z0-9])?", re.IGNORECASE)
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.!+_-]*")


class Entry(NamedTuple):
    """One entry point, as its line says."""

    group: str
    name: str
    value: str


class Described(NamedTuple):
    """What a distribution says of itself.

    name, version: as its METADATA has them, or as its folder is called.  fault: what is wrong with all its packs.
    place: the folder that it is installed in.  is_leftover: whether an interrupted pip has left it there.
    """

    name: str
    version: str
    entries: tuple[Entry, ...]
    fault: str | None
    place: str
    is_leftover: bool


def describe_distribution(distribution: metadata.Distribution, is_ours: Any) -> Described | None:
    """What a distribution says of itself; None where it has no group of entry points that is ours.

    is_ours: which of the groups are, given all of them.
    """
    path = metadata_private.folder(distribution)
    folder = getattr(path, "name", "")
    found = _FOLDER.fullmatch(folder.lstrip("~"))
    called = found["name"] if found else ""
    text, fault = text_of(distribution, path, "entry_points.txt")
    if text is None and not (fault and "layer" in folder.lower()):
        return None
    groups = is_ours(tuple(group.strip() for group in re.findall(r"^\s*\[([^\]\n]+)\]", text or "", re.MULTILINE)))
    if text is not None and not groups:
        return None
    faults = [fault] if fault else []
    entries: tuple[Entry, ...] = ()
    if not fault:
        try:
            entries = tuple(one for one in entries_of(text or "") if one.group in groups)
        except Exception as error:  # importlib.metadata raises whatever its own line parser trips over
            faults.append(f"its entry_points.txt cannot be read ({reason(error)})")
        else:
            if not entries:
                faults.append(f"its entry_points.txt has no line under [{shown(groups[0])}]")
    name, version, more = _identity(distribution, path, called, found["version"] if found else None)
    is_leftover = folder.startswith("~")
    if is_leftover:
        more = [f"its folder {shown(folder)} is what an interrupted pip has left; delete it"]
    faults += more
    text = "; ".join(faults)
    if faults and not is_leftover:
        text += f"; reinstall {name or 'it'}"
    place = os.fspath(path.parent) if isinstance(path, os.PathLike) else ""  # type: ignore[attr-defined]
    return Described(name or called or "unknown", version or "unknown", entries, text or None, place, is_leftover)


def entries_of(text: str) -> Iterator[Entry]:
    """The entry points in the text of a file.  Raises whatever importlib.metadata trips over."""
    for one in _Read(text).entry_points:
        yield Entry(one.group, one.name, one.value)


class _Read(metadata.Distribution):
    """A distribution whose entry points are read already."""

    def __init__(self, text: str) -> None:
        self._text = text

    def read_text(self, filename: str) -> str | None:
        return self._text

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


def editable_source(distribution: metadata.Distribution) -> str | None:
    """The folder that a distribution was installed from in editable mode."""
    text, _ = text_of(distribution, metadata_private.folder(distribution), "direct_url.json")
    try:
        said = json.loads(text or "{}")
        if said.get("dir_info", {}).get("editable") is True:
            return shown(unquote(urlsplit(str(said["url"])).path))
    except (ValueError, AttributeError, KeyError):
        pass
    return None


def _identity(
    distribution: metadata.Distribution, path: Any, called: str, version_called: str | None
) -> tuple[str | None, str | None, list[str]]:
    """Name, version and faults of what METADATA says."""
    text, fault = None, None
    for file in ("METADATA", "PKG-INFO"):
        text, fault = text_of(distribution, path, file)
        if text is not None or fault:
            break
    if text is None:
        return called or None, version_called, [fault or "it has no METADATA"]
    head = re.split(r"\r?\n\r?\n", text, maxsplit=1)[0]
    fields = dict(re.findall(r"^(Name|Version):[ \t]*(.*?)\s*$", head, re.MULTILINE))
    name, version = (shown(fields.get(key, "")) or None for key in ("Name", "Version"))
    faults = [fault] if fault else []
    if name is None:
        faults.append("its METADATA has no Name")
    elif not _DISTRIBUTION.fullmatch(name):
        faults.append(f"its METADATA has the Name '{name}', which no installer takes")
    elif called and canonical(called) != canonical(name):
        faults.append(f"its METADATA has the Name '{name}', but its folder is called '{shown(called)}'")
    if version is None:
        faults.append("its METADATA has no Version")
    elif not _VERSION.fullmatch(version):
        faults.append(f"its METADATA has the Version '{version}', which is none")
    return name or called or None, version, faults


def canonical(name: str) -> str:
    """A name in the form in which pip compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def text_of(distribution: metadata.Distribution, path: Any, name: str) -> tuple[str | None, str | None]:
    """The text of one file, or why it cannot be read; neither where there is no such file."""
    try:
        data = plain_bytes(path / name) if isinstance(path, os.PathLike) else None  # type: ignore[operator]
        if data is None:
            return distribution.read_text(name) or None, None
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    except Exception as error:
        return None, f"its {name} cannot be read ({reason(error)})"
    if data.startswith(b"\xef\xbb\xbf"):
        return data[3:].decode(
            errors="replace"
        ), f"its {name} begins with a byte order mark, which hides its first line"
    try:
        return data.decode(), f"its {name} has NUL characters" if b"\0" in data else None
    except UnicodeDecodeError as error:
        # UTF-16, perhaps: what it would say is enough to see whose it is.
        return data.replace(b"\0", b"").lstrip(b"\xff\xfe").decode(
            errors="replace"
        ), f"its {name} is not UTF-8 ({error.reason})"


def plain_bytes(path: os.PathLike[str]) -> bytes:
    """A plain file's content.  Opening one never waits: a pipe in its place would keep everybody waiting."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        status = os.fstat(file)
        if stat.S_ISDIR(status.st_mode):
            raise OSError("it is a folder")
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no plain file")
        if status.st_size > _MOST_BYTES:
            raise OSError(f"it has {status.st_size} bytes")
        parts = []
        while part := os.read(file, _MOST_BYTES):
            parts.append(part)
            if sum(map(len, parts)) >= status.st_size:  # the usual end, without asking once more
                break
        return b"".join(parts)
    finally:
        os.close(file)
