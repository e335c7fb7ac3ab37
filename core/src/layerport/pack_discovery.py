"""What packs are installed, read from their metadata alone: nothing of a pack is imported here.

`layerport packs` has to answer at once and even where a pack is broken, so this file needs neither pluggy nor
dataclasses.  `packs` and `commands.packs` import it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import NamedTuple

GROUP = "layerport"
DISABLE_VARIABLE = "LAYERPORT_DISABLE_PACKS"
STRICT_VARIABLE = "LAYERPORT_STRICT"
TRACE_VARIABLE = "LAYERPORT_TRACE"
CORE_NAME = "layerport"


class PackInfo(NamedTuple):
    """What a pack's metadata says.

    distribution, version: None for a pack that was passed in and is not installed.
    fault: why the pack cannot be loaded, where the metadata alone shows it.
    """

    name: str
    distribution: str | None
    version: str | None
    entry_point_value: str
    disabled: bool = False
    fault: str | None = None

    @property
    def label(self) -> str:
        """How messages name the pack: `swish (swish-layers 1.2)`."""
        if self.distribution is None:
            return f"{self.name} ({self.entry_point_value})"
        return f"{self.name} ({self.distribution} {self.version})"


def discover(*, environ: Mapping[str, str] | None = None) -> tuple[PackInfo, ...]:
    """Every pack that is installed, sorted by name, with its metadata's faults; imports no pack.

    Reads LAYERPORT_DISABLE_PACKS from `environ` (default: os.environ).
    """
    blocked = {canonical(name) for name in disabled_names(environ)}
    found: list[PackInfo] = []
    seen: set[str] = set()
    for distribution in metadata.distributions():
        if not _groups(distribution):
            continue
        name = _field(distribution, "Name") or "unknown"
        if canonical(name) in seen:
            continue
        seen.add(canonical(name))
        found += _packs_of(_first_on_path(name, distribution), name, blocked)
    return tuple(_mark_duplicates(sorted(found, key=lambda info: (info.name, info.distribution or ""))))


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


def switched_on(variable: str, environ: Mapping[str, str] | None = None) -> bool:
    """Whether an environment switch is set; empty, 0, false, no and off are not."""
    value = (os.environ if environ is None else environ).get(variable, "")
    return value.strip().lower() not in ("", "0", "false", "no", "off")


def canonical(name: str) -> str:
    """A name in the form in which pip compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def suggest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """The known names nearest to `name`, best first."""
    import difflib

    return difflib.get_close_matches(name, sorted(known), n=3, cutoff=cutoff)


def entry_point_line(name: str, value: str) -> str:
    """What to write for an entry point, and where."""
    return f'write {name} = "{value}" under [project.entry-points.{GROUP}] in its pyproject.toml'


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _groups(distribution: metadata.Distribution) -> tuple[str, ...]:
    """The entry-point groups that are ours, or are spelt as if they were meant to be."""
    try:
        text = distribution.read_text("entry_points.txt") or ""
    except (OSError, UnicodeDecodeError):
        return ()
    groups = [group.strip() for group in re.findall(r"^\s*\[([^\]\n]+)\]", text, re.MULTILINE)]
    return (GROUP,) if GROUP in groups else tuple(filter(_is_nearly_ours, groups))


def _is_nearly_ours(group: str) -> bool:
    plain = re.sub(r"[-_. ]", "", group).lower()
    if GROUP in plain:
        return True
    return ("layer" in plain or "port" in plain) and bool(suggest(plain, (GROUP,), cutoff=0.85))


def _field(distribution: metadata.Distribution, key: str) -> str | None:
    try:
        return str(distribution.metadata[key] or "") or None
    except Exception:  # damaged metadata shows as "unknown", and must not hide the other packs
        return None


def _first_on_path(name: str, distribution: metadata.Distribution) -> metadata.Distribution:
    """The copy that an import would take: an earlier one without our entry point hides this one."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return distribution


def _packs_of(distribution: metadata.Distribution, name: str, blocked: set[str]) -> list[PackInfo]:
    version = _field(distribution, "Version") or "unknown"
    groups = _groups(distribution)
    try:
        points = [point for point in distribution.entry_points if point.group in groups]
    except Exception as error:  # importlib.metadata raises whatever its own line parser trips over
        fault = f"its entry_points.txt cannot be read ({type(error).__name__}: {error}); reinstall {name}"
        return [PackInfo(name, name, version, "", canonical(name) in blocked, fault)]
    return [
        PackInfo(
            name=point.name,
            distribution=name,
            version=version,
            entry_point_value=point.value,
            disabled=bool(blocked & {canonical(point.name), canonical(name)}),
            fault=_entry_point_fault(point),
        )
        for point in points
    ]


def _entry_point_fault(point: metadata.EntryPoint) -> str | None:
    if point.group != GROUP:
        return f"its entry point is in the group {point.group!r}; {entry_point_line(point.name, point.value)}"
    if point.name == CORE_NAME:
        return f"the name {CORE_NAME!r} belongs to the core; rename the entry point"
    if not re.fullmatch(r"[\w.]+\s*(:\s*[\w.]+\s*)?(\[.*\]\s*)?", point.value):
        return f"its entry point {point.value!r} is not of the form module or module:object; correct it"
    return _missing_module(point)


def _missing_module(point: metadata.EntryPoint) -> str | None:
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
            import pkgutil

            beside = [module.name for module in pkgutil.iter_modules(locations)]
            near = [".".join((*parts[:place], one)) for one in suggest(part, beside)]
            value = near[0] if near else "MODULE"
            return f"its entry point names {point.value!r}, but there is no module {path}; " + entry_point_line(
                point.name, value
            )
    return None


def _mark_duplicates(infos: list[PackInfo]) -> list[PackInfo]:
    """Packs that share a name cannot be told apart, so none of them may load until the user has chosen."""
    marked = []
    for info in infos:
        rivals = [other for other in infos if other.name == info.name and not other.disabled]
        if not info.disabled and len(rivals) > 1:
            where = " and ".join(f"{other.distribution} {other.version}" for other in rivals)
            fault = (
                f"{len(rivals)} entry points are named {info.name!r}: {where}; uninstall all but one, "
                f"or set {DISABLE_VARIABLE} to the distribution that is not wanted"
            )
            info = info._replace(fault=fault)
        marked.append(info)
    return marked
