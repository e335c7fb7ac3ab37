"""Opens files that others left in a folder: plain ones only, at once, and without following anything.

Imports nothing of the project; anyone may import it.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import BinaryIO

_SPARSE_FROM = 64 << 20
_SPARSE_PART = 8


class NotPlainError(Exception):
    """A file is not there, or is not a plain one; the text says why."""


def open_plain(path: Path) -> BinaryIO:
    """Open a file to read it, unbuffered.  Raises NotPlainError that says why it is none.

    Links, also hard ones, folders, FIFOs, sockets, devices and files that are nearly all hole are refused, and opening
    never waits.  What is checked is what is opened.
    """
    try:
        _require_plain(os.lstat(path))  # opening a device may do something
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise NotPlainError(error.strerror or str(error)) from error
    except ValueError as error:  # a NUL in the path
        raise NotPlainError(str(error)) from error
    file = os.fdopen(handle, "rb", buffering=0)
    try:
        status = os.fstat(handle)
        _require_plain(status)
        _require_content(handle, status)
    except BaseException:
        file.close()
        raise
    return file


def mentions(file: BinaryIO, word: bytes) -> bool:
    """Whether a word stands anywhere in an open file."""
    if os.fstat(file.fileno()).st_size == 0:
        return False
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(word) >= 0


def identity(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


_KINDS = {
    stat.S_IFLNK: "it is a link",
    stat.S_IFDIR: "it is a folder",
    stat.S_IFIFO: "it is a FIFO",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
}


def _require_plain(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotPlainError(_KINDS.get(stat.S_IFMT(status.st_mode), "it is no file"))
    if status.st_nlink > 1:
        raise NotPlainError(f"it is a hard link, the file has {status.st_nlink} names")


def _require_content(handle: int, status: os.stat_result) -> None:
    """A hole of a terabyte costs nothing to make and hours to read."""
    present = status.st_blocks * 512
    if status.st_size < _SPARSE_FROM or present * _SPARSE_PART >= status.st_size:
        return
    try:  # some file systems do not count blocks; those know of no holes either
        hole = os.lseek(handle, 0, os.SEEK_HOLE)
        os.lseek(handle, 0, os.SEEK_SET)
    except OSError:
        return
    if hole < status.st_size:
        raise NotPlainError(f"it is sparse: {present} of its {status.st_size} bytes are there")
