"""The files that `layerport run` writes: which name each output gets, what is there already, and the writing.

Names come from a bundle that nobody vouches for, so none may lead out of the folder or meet another one in it.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from layerport.errors import BuildError, UsageError
from layerport.system.renames import rename_new

_LONGEST = 255
# What no file name holds, the sign that stands for it, and the dot that hides a file or leads upwards.
_ESCAPED = re.compile(r"[/%\0]|^\.")


def file_names(outputs: Sequence[str]) -> dict[str, str]:
    """The file of each output: NAME.npy, with `/`, `%` and a dot at the start as in URLs (`a/b` is `a%2Fb.npy`).

    Raises UsageError that lists the names that are too long for a file, and those that some file systems (which know
    no case, or no composed letters) take for the same.
    """
    names = {name: f"{_ESCAPED.sub(lambda found: f'%{ord(found[0]):02X}', name)}.npy" for name in outputs}
    faults = [
        f"{name:.60}... is {len(os.fsencode(file))} bytes long as a file name, {_LONGEST} are possible"
        for name, file in names.items()
        if len(os.fsencode(file)) > _LONGEST
    ]
    by_file: dict[str, list[str]] = {}
    for name, file in names.items():
        by_file.setdefault(unicodedata.normalize("NFC", unicodedata.normalize("NFC", file).casefold()), []).append(name)
    faults += [f"{' and '.join(same)} would be one file" for same in by_file.values() if len(same) > 1]
    if faults:
        raise UsageError(
            "outputs of this model cannot be files of one folder",
            "leave -o out, or rename the outputs in the model; from Python, layerport.load gives them by name",
            faults=faults,
        )
    return names


class OutputFolder:
    """A folder for files of these names; made when they are written, or not at all.

    Raises UsageError where the folder is something else, or has one of the names already: kept without `force`, and
    kept also with it where it is a link or anything but a plain file.
    """

    def __init__(self, folder: Path, files: Sequence[str], *, force: bool) -> None:
        self._folder, self._files, self._force = folder, files, force
        if os.path.lexists(folder):
            if not folder.is_dir():
                raise UsageError(
                    f"{folder} is a file, not a folder", "name a folder with -o; each output becomes NAME.npy in it"
                )
            self._check(lambda name: os.lstat(folder / name))

    def write(self, writers: Mapping[str, Callable[[BinaryIO], object]]) -> dict[str, Path]:
        """Write each file by what fills it; all are complete before the first one gets its name.  Their paths.

        Raises BuildError where the disk does not take them.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            place = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._failed(error) from error
        partial = {name: f".{secrets.token_hex(8)}.partial" for name in writers}
        try:
            # All names are looked up in this very folder, so nobody can put another one under its path meanwhile.
            self._check(lambda name: os.stat(name, dir_fd=place, follow_symlinks=False))
            for name, fill in writers.items():
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(partial[name], flags, 0o666, dir_fd=place), "wb") as file:
                    fill(file)
            for name in writers:
                if self._force:
                    os.rename(partial[name], name, src_dir_fd=place, dst_dir_fd=place)
                else:
                    rename_new(partial[name], name, dir_fd=place)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            for file_name in partial.values():
                with suppress(FileNotFoundError):
                    os.unlink(file_name, dir_fd=place)
            os.close(place)
        return {name: self._folder / name for name in writers}

    def _check(self, status: Callable[[str], os.stat_result]) -> None:
        present = {}
        for name in self._files:
            if name in (".", "..") or "/" in name:
                raise UsageError(f"{name!r} is no name of a file", "this is a fault of layerport; please report it")
            try:
                present[name] = status(name)
            except FileNotFoundError:
                continue
        if present and not self._force:
            raise UsageError(
                f"{self._folder} has {', '.join(present)} already, kept", "choose another folder, or add --force"
            )
        if strange := [name for name, one in present.items() if not stat.S_ISREG(one.st_mode)]:
            raise UsageError(
                f"{self._folder} has {', '.join(strange)}, no plain file: kept, also with --force",
                "choose another folder, or remove it yourself",
            )

    def _failed(self, error: OSError) -> BuildError:
        return BuildError(
            f"outputs cannot be written to {self._folder}: {error.strerror or error}", "choose another folder with -o"
        )
