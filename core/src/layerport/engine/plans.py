"""Which plan of a bundle runs here, and why each other one does not.  Reads the manifest and metadata only."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from typing import Any

from layerport.bundle.bundle import Bundle
from layerport.engine.flavours import FLAVOURS, version_of
from layerport.engine.runner import fitting_architecture
from layerport.errors import BuildError
from layerport.packs.discovery import discover
from layerport.packs.metadata import canonical


@dataclass(frozen=True)
class Plan:
    """A plan of a bundle: its file, its flavour, the layers that need a creator and the plugin classes of packs."""

    file: str
    flavour: str
    architectures: tuple[str, ...]
    version: str
    layers: tuple[str, ...]
    classes: frozenset[str] = frozenset()


def plan_for(bundle: Bundle, architecture: str, installed: Callable[[str], str | None] = version_of) -> Plan:
    """The plan of a bundle that fits a GPU architecture and what is installed.

    installed: the version of a flavour, None where it is not here.  Raises BuildError that says of each plan why not.
    """
    bundle.require_engine()
    entries = bundle.manifest["targets"]
    faults = []
    for entry in entries:
        fault = _fault(entry, architecture, installed)
        if fault is None:
            return _plan(bundle, entry)
        faults.append(f"{entry['file']}: {fault}")
    raise BuildError(
        f"no plan of {bundle.folder} fits this machine",
        f"build the bundle again here, or with a target such as {entries[0]['flavour']}:{architecture}",
        faults=faults,
    )


def _fault(entry: Mapping[str, Any], architecture: str, installed: Callable[[str], str | None]) -> str | None:
    flavour = FLAVOURS.get(entry["flavour"])
    if flavour is None:
        return f"flavour {entry['flavour']!r} is not known to this layerport"
    found = installed(flavour.name)
    if found is None:
        return f"it needs {flavour.distribution} {entry['tensorrt']}, which is not installed here ({flavour.install})"
    # Neither flavour reads plans of another release, but for those that carry a runtime of their own (below).
    if found != entry["tensorrt"]:
        return f"built by {flavour.distribution} {entry['tensorrt']}, here is {found}, which reads its own plans only"
    options = entry.get("options") or {}
    if options.get("version_compatible") and not options.get("exclude_lean_runtime"):
        return "it carries a runtime of its own (version_compatible), which a session does not execute"
    if not _covers(entry, options, architecture):
        return f"built for {', '.join(entry['architectures'])}, the GPU here is {architecture}"
    return None


def _covers(entry: Mapping[str, Any], options: Mapping[str, Any], architecture: str) -> bool:
    built = tuple(entry["architectures"])
    if architecture in built:
        return True
    # TensorRT's own kernels run on every later architecture then; those of the plugins only where a cubin does.
    return (
        options.get("hardware_compatibility") == "ampere_plus"
        and int(architecture[3:]) >= 80
        and (entry["plugins"] == 0 or fitting_architecture(built, architecture) is not None)
    )


def _plan(bundle: Bundle, entry: Mapping[str, Any]) -> Plan:
    nodes = [one for one in bundle.manifest["layers"] if one["realised"] == "plugin"]
    layers = sorted({one["layer"] for one in nodes})
    return Plan(
        entry["file"],
        entry["flavour"],
        tuple(entry["architectures"]),
        entry["tensorrt"],
        tuple(layers),
        pack_classes([one for one in nodes if one.get("plugin_class")]),
    )


def require_installed(nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raise BuildError where the pack of one of these manifest entries was installed, and is not any more.

    A build's process imports the plugin classes anew, and a pack may be uninstalled or replaced meanwhile.
    """
    here = {canonical(info.distribution): info.version for info in discover() if info.distribution is not None}
    gone: dict[str, str] = {}
    for one in nodes:
        distribution, version = one["distribution"], one["pack_version"]
        if distribution is not None and here.get(canonical(distribution)) != version:
            now = here.get(canonical(distribution))
            gone[distribution] = f"{one['layer']}: {distribution} {version}, now {now or 'not installed'}"
    if gone:
        raise BuildError(
            "packs whose plugin classes the engine needs have changed since the model was exported",
            _pip({one["distribution"]: one["pack_version"] for one in nodes if one["distribution"] in gone}),
            faults=list(gone.values()),
        )


def _pip(versions: Mapping[str, str | None]) -> str:
    """The command that installs these distributions in these versions."""
    wanted = [f"{name}=={version}" if version else name for name, version in sorted(versions.items())]
    return f"pip install {shlex.join(wanted)}"


def pack_classes(nodes: list[Mapping[str, Any]]) -> frozenset[str]:
    """The plugin classes of packs that these manifest entries need, each from an installed pack.

    A bundle cannot make a session import anything else: the class must be in the package that an installed pack's
    entry point names.  Raises BuildError that names all missing packs and the pip command.
    """
    if not nodes:
        return frozenset()
    roots: dict[str, set[str]] = {}
    for info in discover():
        if info.distribution is not None and not info.disabled:
            roots.setdefault(canonical(info.distribution), set()).add(
                info.entry_point_value.split(":")[0].split(".")[0]
            )
    missing: dict[str, str | None] = {}
    lines: dict[str, str] = {}
    for one in nodes:
        package = str(one["plugin_class"]).split(":")[0].split(".")[0]
        distribution = one["distribution"]
        if distribution is None:
            lines[one["layer"]] = f"{one['layer']}: the pack {one['pack']} was a file when the bundle was built"
        elif package not in roots.get(canonical(distribution), ()) or util.find_spec(package) is None:
            lines[one["layer"]] = f"{one['layer']}: {distribution} {one['pack_version'] or ''}".rstrip()
            missing[distribution] = one["pack_version"]
    if lines:
        raise BuildError(
            "layers with a plugin class of their own need packs that are not installed here",
            _pip(missing) if missing else "build the bundle again with the pack installed, not as a file",
            faults=[lines[name] for name in sorted(lines)],
        )
    return frozenset(str(one["plugin_class"]) for one in nodes)
