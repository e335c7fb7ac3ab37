"""Puts a finished bundle at its place, and takes an older one away without ever losing both.  `bundle` uses it.

Only a bundle is replaced: a folder of this format that holds what its manifest lists and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from layerport.bundle.names import BUNDLE_FILE, FORMAT, MANIFEST, MANIFEST_LIMIT
from layerport.errors import UsageError
from layerport.system.renames import exchange, rename_new

_SHOWN = 20


def put_in_place(folder: Path, out: Path) -> None:
    """Make a finished folder the bundle at `out`, where nothing or an older bundle is.

    At every moment one of them is whole: the two names are exchanged in one step; where the file system cannot, the
    older one waits at the name `set_aside(out)` and is put back where the next step fails.  Afterwards `folder` is
    gone or the older bundle, which is the caller's to remove with `remove_bundle`.
    Raises UsageError where what is at `out` is no bundle, OSError where the disk does not take it.
    """
    if not os.path.lexists(out):
        rename_new(folder, out)
        return
    _write_through(*folder.iterdir(), folder)
    if exchange(folder, out):
        if faults := foreign(folder):  # nobody can reach it by its name any more, so this answer stays true
            exchange(folder, out)
            raise _kept(out, faults)
        _write_through(out.parent)
        return
    _replace_in_two_steps(folder, out)


def _replace_in_two_steps(folder: Path, out: Path) -> None:
    aside = set_aside(out)
    remove_bundle(aside)
    if os.path.lexists(aside):
        raise UsageError(f"{aside} is in the way: the older bundle waits there while it is replaced", "remove it")
    try:
        os.rename(out, aside)
        if faults := foreign(aside):
            raise _kept(out, faults)
        os.rename(folder, out)
        _write_through(out.parent)
    finally:
        if not os.path.lexists(out) and os.path.lexists(aside):
            os.rename(aside, out)
        remove_bundle(aside)


def set_aside(out: Path) -> Path:
    """Where the older bundle waits while it is replaced on a file system that cannot exchange two names."""
    return out.with_name(f".{out.name}.old")


def recover(out: Path) -> None:
    """Put back the bundle that a killed replacement left at `set_aside(out)`, where nothing is at `out`."""
    aside = set_aside(out)
    if not os.path.lexists(out) and is_whole(aside):
        rename_new(aside, out)


def require_replaceable(out: Path) -> None:
    """Raise UsageError where `out` is not a bundle and nothing else; a link is never followed, nor replaced."""
    if faults := foreign(out):
        raise _kept(out, faults)


def _kept(out: Path, faults: list[str]) -> UsageError:
    more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    return UsageError(
        f"{out} is not a bundle and was kept, also with --force",
        "choose another name with -o, or remove it yourself",
        faults=[*faults[:_SHOWN], *more],
    )


def foreign(folder: Path) -> list[str]:
    """Why a folder is not a bundle and nothing else: each file in it that is none of a bundle's; empty where it is."""
    try:
        return _foreign(folder)
    except OSError as error:
        return [f"it cannot be read: {error.strerror}"]


def _foreign(folder: Path) -> list[str]:
    if folder.is_symlink():
        return [f"it is a link to {os.readlink(folder)}; a link is never followed here, nor replaced"]
    if not folder.is_dir():
        return ["it is not a folder"]
    listed = _listed(folder)
    if isinstance(listed, str):
        return [listed]
    faults = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            if not entry.is_file(follow_symlinks=False):
                faults.append(f"{entry.name} is not a plain file")
            elif entry.name != MANIFEST and not (entry.name in listed and BUNDLE_FILE.fullmatch(entry.name)):
                faults.append(f"{entry.name} is no file of the bundle")
    return faults


def is_whole(folder: Path) -> bool:
    """Whether a folder is a bundle and nothing else, with every file that its manifest lists."""
    if foreign(folder):
        return False
    listed = _listed(folder)
    return not isinstance(listed, str) and all((folder / name).is_file() for name in listed)


def _listed(folder: Path) -> dict[str, Any] | str:
    """The files that a bundle's manifest lists; why it is no bundle's where it is none."""
    path = folder / MANIFEST
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MANIFEST_LIMIT:
            return f"its {MANIFEST} is no manifest of a bundle"
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, RecursionError) as error:
        return f"its {MANIFEST} cannot be read: {type(error).__name__}"
    if not isinstance(manifest, dict) or not isinstance(manifest.get("layerport"), str):
        return f"its {MANIFEST} is no manifest of a bundle"
    if type(manifest.get("format")) is not int or manifest["format"] != FORMAT:
        return f"its {MANIFEST} has format {manifest.get('format')!r:.20}, this layerport replaces {FORMAT}"
    files = manifest.get("files")
    return files if isinstance(files, dict) else f"its {MANIFEST} lists no files"


def remove_bundle(folder: Path) -> None:
    """Take away the files of a bundle, the manifest last, and the folder where nothing else is in it.

    What cannot be removed stays.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    listed = _listed(folder)
    names = [] if isinstance(listed, str) else [*filter(BUNDLE_FILE.fullmatch, listed), MANIFEST]
    try:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()  # also of a removal that was killed at its very end
    except OSError:
        return


def remove_own(folder: Path, made: os.stat_result) -> None:
    """Remove a folder that this process made, or the older bundle that has its name by now."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return
    if os.path.samestat(status, made):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        remove_bundle(folder)


def _write_through(*paths: Path) -> None:
    """Have the disk hold files and the names in folders, so that a loss of power does not find the older ones gone."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
