"""Whether a folder is one's own: nobody else can change what lies in it.  For what is loaded or run from there.

Anyone may import it; it imports nothing foreign.  On Windows every folder counts as one's own.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from layerport.errors import BuildError
from layerport.system.plain_files import open_plain

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_MOST_LINKS = 40


class Untrusted(OSError):
    """Others may change what lies at a path.  repair: what makes it one's own."""

    def __init__(self, fault: str, repair: str) -> None:
        super().__init__(fault)
        self.repair = repair


def require_own(folder: Path) -> None:
    """Raise Untrusted where somebody besides this user and root can change what lies in a folder, or will lie there.

    As ssh does: each folder on the way must belong to one of them and be written by its owner only, but for folders
    with the sticky bit (as /tmp), in which nobody can replace what is another's.  Links are followed by the same rule.
    """
    if not hasattr(os, "geteuid"):
        return
    place = os.sep
    _check(place, os.lstat(place), is_last=False)
    parts = deque(os.path.abspath(folder).split(os.sep)[1:])
    links = 0
    while parts:
        name = parts.popleft()
        if name in ("", ".", ".."):
            place = os.path.dirname(place) if name == ".." else place
            continue
        path = os.path.join(place, name)
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return  # whoever makes it makes it one's own
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise Untrusted(f"{folder} leads through more than {_MOST_LINKS} links", "name another folder")
            _check_owner(path, status)
            target = os.readlink(path)
            place = os.sep if os.path.isabs(target) else place
            parts.extendleft(reversed(target.split(os.sep)))
            continue
        _check(path, status, is_last=not parts)
        place = path


def make_own(folder: Path) -> None:
    """Make a folder, with those above it that are missing, for this user alone.  Raises Untrusted, or OSError."""
    require_own(folder)
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)
    require_own(folder)  # another may have been quicker


def read_own(path: Path, limit: int) -> bytes:
    """The content of a plain file in a folder of one's own.

    Raises Untrusted where others can write it, NotPlainError where it is none (or cannot be opened), OSError where it
    is larger than `limit`.
    """
    with open_plain(path) as file:
        status = os.fstat(file.fileno())
        if hasattr(os, "geteuid"):
            _check(str(path), status)
        if status.st_size > limit:
            raise OSError(f"it has {status.st_size} bytes, at most {limit} are read")
        return file.read()


@contextlib.contextmanager
def own_temporary_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder for what is run from there, gone when the block ends.  Raises BuildError where others may
    put something else in its place.
    """
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        require_own_temporary(Path(folder))
        yield Path(folder)


def require_own_temporary(folder: Path) -> None:
    """Raise BuildError where a temporary folder that was made just now is not one's own."""
    try:
        require_own(folder)
    except Untrusted as error:
        raise BuildError(
            f"the folder for temporary files is not safe to run programs from: {error}",
            f"{error.repair}, or set TMPDIR to a folder of your own",
        ) from error


def _check(path: str, status: os.stat_result, *, is_last: bool = True) -> None:
    _check_owner(path, status)
    mode = stat.S_IMODE(status.st_mode)
    if mode & _OTHERS and (is_last or not mode & stat.S_ISVTX):
        raise Untrusted(f"others may write to {path} (mode {mode:03o})", f"chmod go-w {path}")


def _check_owner(path: str, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise Untrusted(f"{path} belongs to user {status.st_uid}", f"chown {os.geteuid()} {path}")
