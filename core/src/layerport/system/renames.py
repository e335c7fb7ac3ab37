"""Two renames that Python lacks: exchange two names in one step, and take a name only where it is free.

Linux has them as `renameat2`; not every file system knows its flags, so the answer says whether it was done.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import Any

_NO_REPLACE, _EXCHANGE = 1, 2
_HERE = -100  # AT_FDCWD: names are relative to the working folder
_NOT_KNOWN = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM})


def exchange(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> bool:
    """Exchange two names in one step that cannot be half done; False where this system or file system cannot."""
    return _rename(first, second, _HERE, _EXCHANGE)


def rename_new(source: str | os.PathLike[str], target: str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
    """Rename to a name that nothing has; FileExistsError where something has it.

    dir_fd: an open folder that both names are relative to.  Where the file system cannot do it in one step, somebody
    who makes a file of that name in the same instant loses it.
    """
    if _rename(source, target, _HERE if dir_fd is None else dir_fd, _NO_REPLACE):
        return
    try:
        os.stat(target, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(source, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))


def _rename(source: str | os.PathLike[str], target: str | os.PathLike[str], folder: int, flag: int) -> bool:
    call = _renameat2()
    if call is None:
        return False
    ctypes.set_errno(0)
    if call(folder, os.fsencode(source), folder, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_KNOWN:
        return False
    raise OSError(number, os.strerror(number), os.fspath(source), None, os.fspath(target))


@cache
def _renameat2() -> Any:
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    call.restype = ctypes.c_int
    return call
