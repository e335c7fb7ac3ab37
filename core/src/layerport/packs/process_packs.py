"""Packs that a program or a notebook uses without naming them each time."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from layerport.packs import conversions, named
from layerport.packs.discovery import TRACE_VARIABLE, PackInfo, discover, switched_on


def use_pack(*packs: object) -> None:
    """Use packs in every later build, check and call of this process, as `packs=[...]` does in one.

    packs: as there, the path of a Python file, a module or plugin object, or the name of an installed pack; without
    any, the program or notebook itself, which has its hooks as functions.  A pack counts once.
    Raises UsageError for one that does not exist, PackError for one that fails; nothing is used then.
    """
    infos = discover()
    given = [_address(one, infos) for one in packs] or [sys.modules["__main__"]]
    named.load_named(given, infos, switched_on(TRACE_VARIABLE, os.environ))
    named.use(given)
    conversions.installed_packs.cache_clear()


def _address(pack: object, infos: Sequence[PackInfo]) -> object:
    """A named pack by its address, a file's whole path: the working directory may change."""
    return named.info_of_name(pack, infos).address if isinstance(pack, (str, os.PathLike)) else pack
