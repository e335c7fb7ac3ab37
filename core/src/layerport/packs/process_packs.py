"""Packs that a program or a notebook uses without naming them each time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from layerport.packs import conversions, named
from layerport.packs.discovery import TRACE_VARIABLE, discover, switched_on


def use_pack(*packs: object) -> None:
    """Use packs in every later build, check and call of this process, as `packs=[...]` does in one.

    packs: as there, the path of a Python file, a module or plugin object, or the name of an installed pack; without
    any, the program or notebook itself, which has its hooks as functions.  A pack counts once.
    Raises UsageError for one that does not exist, PackError for one that fails; nothing is used then.
    """
    given = [_whole(one) for one in packs] or [sys.modules["__main__"]]
    named.load_named(given, discover(), switched_on(TRACE_VARIABLE, os.environ))
    named.use(given)
    conversions.installed_packs.cache_clear()


def _whole(pack: object) -> object:
    """A file by its whole path: the working directory may change."""
    is_file = isinstance(pack, os.PathLike) or (isinstance(pack, str) and pack.endswith(".py"))
    return str(Path(pack).expanduser().resolve()) if is_file else pack  # type: ignore[arg-type]
