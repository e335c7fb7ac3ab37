"""The folder in which a bundle comes to be, beside its place; what a killed build left there is cleared away.

`bundle` imports it.  Imports nothing foreign.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from layerport.bundle.names import MANIFEST
from layerport.bundle.replacing import foreign, remove_own
from layerport.system.interrupts import put_off

_CONTENT = "bundle"
_LOCK = "lock"
_TRIES = 10
# What file systems without locks say.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def folder_for(out: Path) -> Iterator[Path]:
    """An empty folder on the file system of `out`, to be put there; what is in its place at the end is removed.

    First, what builds that are no more have left beside `out` is removed: see `clear`.  Raises OSError.
    """
    clear(out.parent)
    outer, lock = _make(out)
    content = outer / _CONTENT
    made = None
    try:
        content.mkdir()
        content.chmod(0o755)  # whatever the umask
        made = content.lstat()
        yield content
    finally:
        with put_off():
            if made is not None:
                remove_own(content, made)
            with contextlib.suppress(OSError):
                if lock is not None:
                    os.close(lock)
                (outer / _LOCK).unlink(missing_ok=True)
                outer.rmdir()


def clear(parent: Path) -> None:
    """Remove what builds of this user on this machine have left in a folder when they were killed.

    Never that of a build at work, which holds a lock; never another machine's, of which the lock may not say
    anything here (a network file system); never what cannot be locked at all; never a file of a bundle that was
    replaced and that its manifest does not list.
    """
    pattern = re.compile(rf"\..+\.{_machine()}-[a-z0-9_]+\.partial")
    try:
        names = [name for name in os.listdir(parent) if pattern.fullmatch(name)]
    except OSError:
        return
    for name in names:
        outer = parent / name
        with contextlib.suppress(OSError):
            status = outer.lstat()
            if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
                continue
            lock = _lock(outer)
            if lock is None:
                continue
            try:
                content = outer / _CONTENT
                if os.path.lexists(content / MANIFEST) and foreign(content):
                    continue
                shutil.rmtree(outer, ignore_errors=True)
            finally:
                os.close(lock)
            outer.rmdir()  # a network file system keeps an open file in its folder


def _make(out: Path) -> tuple[Path, int | None]:
    for _ in range(_TRIES):
        outer = Path(tempfile.mkdtemp(prefix=f".{out.name}.{_machine()}-", suffix=".partial", dir=out.parent))
        try:
            return outer, _lock(outer)
        except (BlockingIOError, FileNotFoundError):
            continue  # another build took it for one that was left, in the moment before it was locked
        except OSError:
            shutil.rmtree(outer, ignore_errors=True)
            raise
    raise FileExistsError(f"another program removes what is made in {out.parent}")


def _lock(outer: Path) -> int | None:
    """The lock of a folder, held until it is closed; None where there are no locks.

    Raises BlockingIOError where another holds it, OSError where it cannot be opened.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    path = outer / _LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), path.lstat()):  # whoever held it has removed it
            raise BlockingIOError
        return handle
    except BaseException as error:
        os.close(handle)
        if isinstance(error, OSError) and error.errno in _NO_LOCKS:
            return None
        raise


@cache
def _machine() -> str:
    """A name for this machine, the same after it starts again."""
    known = [socket.gethostname()]
    with contextlib.suppress(OSError):
        known.append(Path("/etc/machine-id").read_text().strip())
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]
