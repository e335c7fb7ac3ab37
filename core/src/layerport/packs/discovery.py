"""What packs are installed, read from their metadata alone: nothing of a pack is imported here.

`layerport packs` has to answer at once and even where a pack is broken, so this file needs neither pluggy nor
dataclasses.  `packs` and `commands.packs` import it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import NamedTuple

from layerport.errors import PackError
from layerport.foreign import metadata_private
from layerport.packs.metadata import GROUP, Described, Entry, canonical, describe_distribution, editable_source
from layerport.packs.unregistered import unregistered_pack
from layerport.system.foreign_text import shown

DISABLE_VARIABLE = "LAYERPORT_DISABLE_PACKS"
STRICT_VARIABLE = "LAYERPORT_STRICT"
TRACE_VARIABLE = "LAYERPORT_TRACE"
CORE_NAME = "layerport"
_NAME = re.compile(r"[a-z](?:[a-z0-9_-]*[a-z0-9])?")
_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_VALUE = re.compile(rf"{_DOTTED}\s*(:\s*{_DOTTED}\s*)?(\[.*\]\s*)?")


class PackInfo(NamedTuple):
    """What a pack's metadata says.

    distribution, version: None for a pack that was passed in and is not installed.
    fault: why the pack cannot be loaded, where the metadata alone shows it.
    rivals: all distributions with this name, where there are several.
    """

    name: str
    distribution: str | None
    version: str | None
    entry_point_value: str
    disabled: bool = False
    fault: str | None = None
    rivals: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How messages name the pack: `swish (swish-layers 1.2)`."""
        if self.distribution is None:
            return f"{self.name} ({self.entry_point_value})"
        return f"{self.name} ({self.distribution} {self.version})"

    @property
    def address(self) -> str:
        """What a user names the pack by: a file's path, else its name."""
        return self.name if self.distribution is not None else self.entry_point_value

    @property
    def package(self) -> str:
        """The top-level package, or the module, of its entry point."""
        return self.entry_point_value.partition(":")[0].partition(".")[0].strip()


def discover(*, environ: Mapping[str, str] | None = None, unregistered: bool = False) -> tuple[PackInfo, ...]:
    """Every pack that is installed, sorted by name, with its metadata's faults; imports no pack.

    Reads LAYERPORT_DISABLE_PACKS from `environ` (default: os.environ).
    unregistered: also those that hold a pack and register none, which no build asks.
    """
    blocked = {canonical(name) for name in disabled_names(environ)}
    found: list[PackInfo] = []
    leftovers: list[PackInfo] = []
    seen: set[str] = set()
    copies: dict[tuple[str, str], list[str]] = {}
    folders: set[str] = set()
    for distribution in metadata.distributions():
        folder = metadata_private.folder(distribution)
        if folder is not None and str(folder) in folders:  # on sys.path twice, as after a program's own sys.path.append
            continue
        folders.add(str(folder))
        described = describe_distribution(distribution, _groups)
        if described is None:
            found += _unregistered_of(distribution, blocked) if unregistered else []
            continue
        if described.is_leftover:
            leftovers += _packs_of(described, distribution, blocked)
            continue
        key = canonical(described.name)
        copies.setdefault((described.place, key), []).append(described.version)
        if key in seen:
            continue
        seen.add(key)
        first = _first_on_path(described.name, distribution)
        place = metadata_private.folder(first)
        if place is None or place != metadata_private.folder(distribution):
            described = describe_distribution(first, _groups)
        if described is not None:
            found += _packs_of(described, first, blocked)
    twice = {key[1]: sorted(versions) for key, versions in copies.items() if len(versions) > 1}
    found = [_with_copies(info, twice.get(canonical(info.distribution or ""))) for info in found]
    infos = [*_mark_duplicates(found), *leftovers]
    return tuple(sorted(infos, key=lambda info: (info.name, info.distribution or "")))


def disabled_names(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The names in LAYERPORT_DISABLE_PACKS, as they were written."""
    text = (os.environ if environ is None else environ).get(DISABLE_VARIABLE, "")
    return tuple(name for part in text.split(",") if (name := part.strip()))


def disable_faults(infos: Iterable[PackInfo], environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """One sentence for each name in LAYERPORT_DISABLE_PACKS that blocks nothing."""
    known = {name for info in infos for name in (info.name, info.distribution) if name}
    by_canonical = {canonical(name): name for name in known}
    faults = []
    for name in disabled_names(environ):
        if canonical(name) in by_canonical:
            continue
        near = suggest(canonical(name), by_canonical)
        hint = f"did you mean {by_canonical[near[0]]}?" if near else f"installed: {_listed(known)}"
        faults.append(f"{DISABLE_VARIABLE} names {name!r}, which is not an installed pack; {hint}")
    return tuple(faults)


def raise_for_faults(faults: Sequence[str], cause: BaseException | None = None) -> None:
    """Raise PackError where strict mode is on and something is wrong with the installed packs."""
    if faults:
        raise PackError(
            f"{len(faults)} fault{'s' if len(faults) > 1 else ''} in the installed packs, and {STRICT_VARIABLE} is set",
            f"repair or uninstall them, block packs with {DISABLE_VARIABLE}, or unset {STRICT_VARIABLE}",
            faults=faults,
        ) from cause


def switched_on(variable: str, environ: Mapping[str, str] | None = None) -> bool:
    """Whether an environment switch is set; empty, 0, false, no and off are not."""
    value = (os.environ if environ is None else environ).get(variable, "")
    return value.strip().lower() not in ("", "0", "false", "no", "off")


def suggest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """The known names nearest to `name`, best first."""
    import difflib

    return difflib.get_close_matches(name, sorted(known), n=3, cutoff=cutoff)


def entry_point_line(name: str, value: str) -> str:
    """What to write for an entry point, and where."""
    return f'write {name} = "{value}" under [project.entry-points.{GROUP}] in its pyproject.toml'


def twin_fault(other: PackInfo) -> str:
    """What is wrong with a pack that is the same object as another one."""
    return f"its entry point names the same object as pack {other.label}; uninstall one of the two"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _groups(groups: Sequence[str]) -> tuple[str, ...]:
    """The entry-point groups that are ours, or are spelt as if they were meant to be."""
    return (GROUP,) if GROUP in groups else tuple(filter(_is_nearly_ours, groups))


def _is_nearly_ours(group: str) -> bool:
    plain = re.sub(r"[-_. ]", "", group).lower()
    if GROUP in plain:
        return True
    return ("layer" in plain or "port" in plain) and bool(suggest(plain, (GROUP,), cutoff=0.85))


def _first_on_path(name: str, distribution: metadata.Distribution) -> metadata.Distribution:
    """The copy that an import would take: an earlier one without our entry point hides this one."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return distribution


def _unregistered_of(distribution: metadata.Distribution, blocked: set[str]) -> list[PackInfo]:
    """The pack that a distribution holds and does not register."""
    try:
        pack = unregistered_pack(distribution)
        name, version = (distribution.name, distribution.version) if pack else ("", "")
    except Exception:  # whatever importlib.metadata trips over in damaged files of somebody else's
        return []
    if pack is None or _first_on_path(name, distribution).locate_file("") != distribution.locate_file(""):
        return []
    if pack.entry is not None:
        fault = _other_group(pack.entry)
    else:
        called = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        fault = f"it registers no pack, though {pack.module} has hooks; {entry_point_line(called, pack.module)}"
    info = PackInfo(pack.entry.name if pack.entry else name, name, version, pack.module, fault=fault)
    return [info._replace(disabled=bool(blocked & {canonical(info.name), canonical(name)}))]


def _other_group(entry: Entry) -> str:
    return f"its entry point is in the group '{shown(entry.group)}'; {entry_point_line(entry.name, entry.value)}"


def _packs_of(described: Described, distribution: metadata.Distribution, blocked: set[str]) -> list[PackInfo]:
    name = described.name
    if not described.entries:
        return [PackInfo(name, name, described.version, "", canonical(name) in blocked, described.fault)]
    several = None
    if len(described.entries) > 1:
        names = ", ".join(shown(entry.name, 40) for entry in described.entries)
        several = (
            f"its distribution has {len(described.entries)} entry points in the group {GROUP!r} ({names}), and is one "
            "pack; keep one of them, and return the layers of all from its layerport_layers"
        )
    return [
        PackInfo(
            name=shown(entry.name, 80) or "unnamed",
            distribution=name,
            version=described.version,
            entry_point_value=shown(entry.value, 200),
            disabled=bool(blocked & {canonical(entry.name), canonical(name)}),
            fault=described.fault or several or _entry_point_fault(entry, distribution),
        )
        for entry in described.entries
    ]


def _entry_point_fault(entry: Entry, distribution: metadata.Distribution) -> str | None:
    if canonical(entry.name) == CORE_NAME:
        return f"the name {CORE_NAME!r} belongs to the core; rename the entry point"
    if not _NAME.fullmatch(entry.name):
        import unicodedata

        plain = unicodedata.normalize("NFKD", entry.name).encode("ascii", "ignore").decode()
        near = re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_0123456789") or "my_pack"
        return (
            f"its entry point has the name '{shown(entry.name)}'; call it by lower-case letters, digits, _ and -, "
            f"as in {near!r}"
        )
    if not _VALUE.fullmatch(entry.value):
        return f"its entry point '{shown(entry.value)}' is not of the form module or module:object; correct it"
    if entry.group != GROUP:
        return _other_group(entry)
    return _missing_module(metadata.EntryPoint(entry.name, entry.value, entry.group), distribution)


def _with_copies(info: PackInfo, versions: list[str] | None) -> PackInfo:
    if versions is None:
        return info
    listed = " and ".join(versions)
    return info._replace(
        fault=f"{info.distribution} is installed {len(versions)} times in one folder (versions {listed}), so nobody "
        f"knows whose files are there; pip uninstall {info.distribution} until it is gone, then install it"
    )


def _missing_module(point: metadata.EntryPoint, distribution: metadata.Distribution) -> str | None:
    """What is wrong where the module of an entry point is nowhere; looks for files, imports nothing."""
    import importlib.util
    from importlib.machinery import PathFinder

    path, parts = "", point.module.split(".")
    found = None
    locations: list[str] = []
    for place, part in enumerate(parts):
        path = f"{path}.{part}" if path else part
        try:
            locations = list((found and found.submodule_search_locations) or ())
            found = importlib.util.find_spec(part) if place == 0 else PathFinder.find_spec(path, locations)
        except (ImportError, ValueError, AttributeError):
            return None  # a finder of somebody's own: the import will tell
        if found is None:
            if folder := editable_source(distribution):
                state = "is not on sys.path any more" if os.path.isdir(folder) else "is gone"
                return f"it was installed in editable mode from {folder}, which {state}; install it again"
            import pkgutil

            beside = [module.name for module in pkgutil.iter_modules(locations)]
            near = [".".join((*parts[:place], one)) for one in suggest(part, beside)]
            value = near[0] if near else "MODULE"
            return f"its entry point names {point.value!r}, but there is no module {path}; " + entry_point_line(
                point.name, value
            )
    return None


def without_rivals(infos: Iterable[PackInfo], preferred: Iterable[object]) -> tuple[PackInfo, ...]:
    """The packs, where several have one name only that whose distribution is preferred."""
    wanted = {canonical(name) for name in preferred if isinstance(name, str)}
    left = []
    for info in infos:
        if wanted.isdisjoint(info.rivals):
            left.append(info)
        elif canonical(info.distribution or "") in wanted:
            left.append(info._replace(fault=None, rivals=()))
    return tuple(left)


def _mark_duplicates(infos: list[PackInfo]) -> list[PackInfo]:
    """Packs that share a name cannot be told apart, so none of them may load until the user has chosen one."""
    named: dict[str, list[PackInfo]] = {}
    for info in infos:
        if not info.disabled:
            named.setdefault(canonical(info.name), []).append(info)
    marked = []
    for info in infos:
        rivals = named.get(canonical(info.name), [])
        distributions = {canonical(other.distribution or "") for other in rivals}
        if info.fault is None and not info.disabled and len(distributions) > 1:
            where = " and ".join(sorted(f"{other.distribution} {other.version}" for other in rivals))
            fault = (
                f"{len(rivals)} entry points are named {info.name!r}: {where}; uninstall all but one, name the wanted "
                f"distribution, as in --prefer {info.distribution}, or the other one in {DISABLE_VARIABLE}"
            )
            info = info._replace(fault=fault, rivals=tuple(sorted(distributions)))
        marked.append(info)
    return marked
