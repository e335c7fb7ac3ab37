"""The disk cache of compiled kernels and layers' ONNX bodies.  An entry is believed only if its digest says so.

A cache must never be the reason that a build fails: whatever cannot be read is a miss, and a folder that
cannot be written gives one warning.  Imports nothing foreign at module level; the compilers' adapters import
it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "LAYERPORT_CACHE_DIR"
_MAGIC = b"layerport kernel 1\n"
_LIMIT = 1 << 28
_log = logging.getLogger(__name__)
_warned: set[str] = set()


def default_folder() -> Path:
    """`LAYERPORT_CACHE_DIR` where it is set and not empty, else the user's cache folder of the system."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("layerport", appauthor=False))


def default_cache() -> KernelCache:
    """The cache in the default folder."""
    return KernelCache(default_folder() / "kernels")


def cache_key(fields: Mapping[str, Any]) -> str:
    """A name for these fields, which must be everything that decides what the compiler makes."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class KernelCache:
    """Entries of (metadata, payload) by key, one file each.

    Safe for several processes: an entry appears whole, by an atomic rename, and the last writer wins (all
    writers of one key write the same).  Damaged, foreign and tampered entries are misses.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Where the entry of this key lies, whether it is there or not."""
        return self.folder / key[:2] / key

    def get(self, key: str) -> tuple[dict[str, Any], bytes] | None:
        """The entry of this key, or None where there is none that can be believed."""
        path = self.path(key)
        try:
            with path.open("rb") as file:
                data = file.read(_LIMIT + 1)
        except OSError:
            return None
        try:
            return _decode(data, key)
        except ValueError as error:
            _log.warning("cache entry %s is not used and will be made again: %s", path, error)
            return None

    def put(self, key: str, metadata: Mapping[str, Any], payload: bytes) -> None:
        """Keep this entry; where that cannot be done, warn once for the folder and go on."""
        path = self.path(key)
        temporary = None
        try:
            # Cubins are executed later, so nobody else may write here.
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.parent.mkdir(exist_ok=True, mode=0o700)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
            with open(handle, "wb") as file:
                file.write(_encode(key, metadata, payload))
            os.replace(temporary, path)
        except OSError as error:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            _warn_once(str(self.folder), str(error))


def _warn_once(folder: str, error: str) -> None:
    if folder not in _warned:
        _warned.add(folder)
        warnings.warn(
            f"compiled kernels cannot be kept in {folder}: {error}; they are compiled again each time. "
            f"To repair: set {FOLDER_VARIABLE} to a folder that can be written",
            RuntimeWarning,
            stacklevel=4,
        )


def _encode(key: str, metadata: Mapping[str, Any], payload: bytes) -> bytes:
    head = json.dumps({"key": key, "metadata": dict(metadata)}, sort_keys=True).encode()
    body = head + b"\n" + payload
    return _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _decode(data: bytes, key: str) -> tuple[dict[str, Any], bytes]:
    start = len(_MAGIC) + 65
    if len(data) > _LIMIT or not data.startswith(_MAGIC) or data[start - 1 : start] != b"\n":
        raise ValueError("it is not an entry of this cache")
    body = data[start:]
    if hashlib.sha256(body).hexdigest().encode() != data[len(_MAGIC) : start - 1]:
        raise ValueError("its content does not have the digest that it states")
    head, _, payload = body.partition(b"\n")
    fields = json.loads(head)
    if not isinstance(fields, dict) or fields.get("key") != key or not isinstance(fields.get("metadata"), dict):
        raise ValueError("it belongs to another key")
    return fields["metadata"], payload
