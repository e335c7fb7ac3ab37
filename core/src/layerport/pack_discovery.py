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
        if not _mentions_group(distribution):
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


def suggest(name: str, known: Iterable[str]) -> list[str]:
    """The known names nearest to `name`, best first."""
    import difflib

    return difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _mentions_group(distribution: metadata.Distribution) -> bool:
    try:
        text = distribution.read_text("entry_points.txt")
    except (OSError, UnicodeDecodeError):
        return False
    return f"[{GROUP}]" in (text or "")


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
    try:
        points = [point for point in distribution.entry_points if point.group == GROUP]
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
    if point.name == CORE_NAME:
        return f"the name {CORE_NAME!r} belongs to the core; rename the entry point"
    if not re.fullmatch(r"[\w.]+\s*(:\s*[\w.]+\s*)?(\[.*\]\s*)?", point.value):
        return f"its entry point {point.value!r} is not of the form module or module:object; correct it"
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
