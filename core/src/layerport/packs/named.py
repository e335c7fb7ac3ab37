"""The packs that a user names: a file, a module or plugin object, the name of an installed pack.  For `packs` only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from layerport.errors import PackError, UsageError
from layerport.packs.discovery import DISABLE_VARIABLE, PackInfo, discover, suggest
from layerport.packs.loading import Pack, load_pack
from layerport.packs.metadata import canonical
from layerport.system.foreign_text import type_name

# What `use_pack` was given in this process.
_used: list[object] = []


def used() -> tuple[object, ...]:
    """The packs that every load of this process takes too, as if the user had named them."""
    return tuple(_used)


def use(packs: Iterable[object]) -> None:
    """Take further packs in every later load; each counts once."""
    for pack in packs:
        if not any(pack is one or (isinstance(pack, str) and pack == one) for one in _used):
            _used.append(pack)


def load_named(
    explicit: Sequence[object], infos: Sequence[PackInfo], trace: bool, *, known: Sequence[Pack] = ()
) -> list[Pack]:
    """Load the packs that the user names, each once.

    explicit: as in `load`.  known: those that are loaded already.
    Raises UsageError for a pack that is not there, PackError for a fault in one.
    """
    loaded: list[Pack] = []
    for given in explicit:
        pack = _load_one(given, infos, trace)
        if all(pack.plugin is not other.plugin for other in (*known, *loaded)):
            loaded.append(pack)
    return loaded


def _load_one(given: object, infos: Sequence[PackInfo], trace: bool) -> Pack:
    if isinstance(given, (str, os.PathLike)):
        info, plugin = info_of_name(given, infos), None
    else:
        info, plugin = _info_of(given, infos), given
    pack = load_pack(info, plugin=plugin, explicit=True, trace=trace)
    if pack.failure is not None:
        raise PackError(f"pack {info.label}: {pack.failure}", "repair it, or do not name it") from pack.error
    return pack


def info_of_name(given: str | os.PathLike[str], infos: Sequence[PackInfo]) -> PackInfo:
    """The pack that a text means: a Python file, or an installed pack.  Raises UsageError where there is neither."""
    if isinstance(given, str) and not given.endswith(".py") and not Path(given).is_file():
        return _named(given, infos)
    file = Path(given).expanduser().resolve()
    if not file.is_file():
        raise UsageError(f"there is no pack file {str(given)!r}", "give the path of a Python file")
    return PackInfo(file.stem, None, None, str(file))


def _named(name: str, infos: Sequence[PackInfo]) -> PackInfo:
    wanted = canonical(name)

    def found(infos: Sequence[PackInfo]) -> list[PackInfo]:
        return [info for info in infos if wanted in (canonical(info.name), canonical(info.distribution or ""))]

    matches = found(infos) or found(discover(unregistered=True))
    if not matches:
        known = sorted({info.name for info in infos})
        near = suggest(name, known)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"there is no pack {name!r}", f"{hint}installed packs: {', '.join(known) or 'none'}")
    if matches[0].disabled:
        raise UsageError(f"pack {matches[0].label} is disabled", f"take it out of {DISABLE_VARIABLE}")
    return matches[0]


def _info_of(plugin: object, infos: Sequence[PackInfo]) -> PackInfo:
    """The description of a plugin object, which is the installed pack's own where it belongs to one."""
    try:
        name = str(getattr(plugin, "__name__", None) or type_name(plugin))
    except KeyboardInterrupt:
        raise
    except BaseException:  # an object that answers to nothing; loading it says why
        name = type_name(plugin)
    for info in infos:
        if not info.disabled and _object_of(info) is plugin:
            return info
    origin = getattr(plugin, "__file__", None) if isinstance(plugin, ModuleType) else None
    if name == "__main__" and origin:  # a script that passes itself is the same pack as with --pack
        name = Path(origin).stem
    return PackInfo(str(name).rpartition(".")[2], None, None, origin or f"passed in: {type(plugin).__qualname__}")


def _object_of(info: PackInfo) -> object:
    """What a pack's entry point names, where its module is imported already."""
    module, _, attribute = info.entry_point_value.partition(":")
    named: object = sys.modules.get(module.strip())
    for part in filter(None, attribute.strip().split(".")):
        try:
            named = getattr(named, part, None)
        except Exception:  # whoever loads that pack hears of it
            return None
    return named
