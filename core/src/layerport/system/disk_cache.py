"""The disk cache of everything that is kept from one build to the next: `default_cache` gives it by kind.

Cubins, programs and engine code from here are run, so an entry is believed only if its digest says so, and only where
nobody else can write it.  A cache must never be the reason that a build fails: whatever cannot be read is a miss, and a
folder that cannot be written, or is not one's own, gives one warning.  Imports nothing foreign at module level.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerport.system.plain_files import NotPlainError
from layerport.system.trust import Untrusted, make_own, read_own, require_own

FOLDER_VARIABLE = "LAYERPORT_CACHE_DIR"
_MAGIC = b"layerport kernel 1\n"
_LIMIT = 1 << 28
_HALF = ".writing-"
_HALF_SECONDS = 3600.0
_log = logging.getLogger(__name__)
_warned: set[str] = set()


def default_folder() -> Path:
    """`LAYERPORT_CACHE_DIR` where it is set and not empty, else the user's cache folder of the system."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("layerport", appauthor=False))


def default_cache(kind: str = "kernels") -> DiskCache:
    """The cache of one kind of entries in the default folder."""
    return DiskCache(default_folder() / kind)


def cache_key(fields: Mapping[str, Any]) -> str:
    """A name for these fields, which must be everything that decides what the compiler makes."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class DiskCache:
    """Entries of (metadata, payload) by key, one file each.

    Safe for several processes: an entry appears whole, by an atomic rename, and the last writer wins (all
    writers of one key write the same).  Damaged, foreign and tampered entries are misses, and so is what is no regular
    file.  Where somebody besides this user and root can write to the folder, nothing is read from it or kept in it.
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
            for folder in (self.folder, path.parent):
                require_own(folder)
            if not os.path.lexists(path):
                return None
            return _decode(read_own(path, _LIMIT), key)
        except Untrusted as error:
            _warn_once(self.folder, error)
        except NotADirectoryError:
            pass
        except (NotPlainError, OSError, ValueError) as error:
            _log.warning("cache entry %s is not used and will be made again: %s", path, error)
        return None

    def put(self, key: str, metadata: Mapping[str, Any], payload: bytes) -> None:
        """Keep this entry; where that cannot be done, warn once for the folder and go on."""
        path = self.path(key)
        temporary = None
        try:
            content = _encode(key, metadata, payload)
            if len(content) > _LIMIT:
                raise OSError(f"an entry has {len(content)} bytes, at most {_LIMIT} are kept")
            for folder in (self.folder, path.parent):
                make_own(folder)
            _remove_halves(path.parent)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_HALF)
            with open(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except OSError as error:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            _warn_once(self.folder, error)


def _remove_halves(folder: Path) -> None:
    """Take away what processes left that were killed while they wrote."""
    for half in folder.glob(f"{_HALF}*"):
        with contextlib.suppress(OSError):
            if half.lstat().st_mtime < time.time() - _HALF_SECONDS:
                half.unlink()


def _warn_once(folder: Path, error: OSError) -> None:
    if str(folder) in _warned:
        return
    _warned.add(str(folder))
    repair = f"set {FOLDER_VARIABLE} to a folder that can be written"
    if isinstance(error, Untrusted):
        repair = f"{error.repair}, or set {FOLDER_VARIABLE} to a folder of your own"
    warnings.warn(
        f"nothing is kept in {folder}, nor taken from there: {error}; compilers run again each time. "
        f"To repair: {repair}",
        RuntimeWarning,
        stacklevel=4,
    )


def _encode(key: str, metadata: Mapping[str, Any], payload: bytes) -> bytes:
    head = json.dumps({"key": key, "metadata": dict(metadata)}, sort_keys=True).encode()
    body = head + b"\n" + payload
    return _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _decode(data: bytes, key: str) -> tuple[dict[str, Any], bytes]:
    start = len(_MAGIC) + 65
    if not data.startswith(_MAGIC) or data[start - 1 : start] != b"\n":
        raise ValueError("it is not an entry of this cache")
    body = data[start:]
    if hashlib.sha256(body).hexdigest().encode() != data[len(_MAGIC) : start - 1]:
        raise ValueError("its content does not have the digest that it states")
    head, _, payload = body.partition(b"\n")
    fields = json.loads(head)
    if not isinstance(fields, dict) or fields.get("key") != key or not isinstance(fields.get("metadata"), dict):
        raise ValueError("it belongs to another key")
    return fields["metadata"], payload
