"""`layerport packs` and `layerport layers`: what is installed, and what every pack provides.

`cli` uses this file.  Without `load` it reads metadata only, so it imports neither pluggy nor any framework.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import layerport.packs
from layerport.commands.tables import print_table, say
from layerport.errors import PackError
from layerport.packs.discovery import STRICT_VARIABLE, PackInfo, disable_faults, discover, raise_for_faults, switched_on
from layerport.packs.trials import try_packs

if TYPE_CHECKING:
    from layerport.layers.layer import Layer
    from layerport.packs.host import Packs
    from layerport.packs.trials import Trial


def packs_report(
    *, load: bool = False, explicit: Sequence[str] = (), environ: Mapping[str, str] | None = None, **limits: Any
) -> dict[str, Any]:
    """What is installed, from metadata alone; with `load`, also what came of importing and asking each pack.

    explicit: further packs, files or names of installed ones, which are then tried too and must load.
    limits: as `pack_trials.try_packs` takes them.  Each pack is tried in a process of its own.
    Raises UsageError for a pack that is not there, PackError where an explicit one fails, or any in strict mode.
    """
    infos = list(discover(environ=environ))
    warnings = list(disable_faults(infos, environ))
    if not load and not explicit:
        return {
            "loaded": False,
            "packs": [_describe(info) for info in infos],
            "conflicts": [],
            "warnings": warnings,
        }

    named = [layerport.packs.named.info_of_name(given, infos) for given in explicit]
    trials = try_packs(sorted({*infos, *named}, key=lambda info: (info.name, info.distribution or "")), **limits)
    conflicts = _conflicts_of(trials, named)
    faults = [f"pack {one.info.label}: {one.failure}" for one in trials if one.status == "failed" and one.info in named]
    if faults:
        raise PackError("a pack that was named fails", "repair it, or do not name it", faults=faults)
    if switched_on(STRICT_VARIABLE, environ):
        raise_for_faults(
            [f"pack {one.info.label}: {one.failure}" for one in trials if one.status == "failed"]
            + [f"layer {one['layer']}: provided by {_rivals(one)}" for one in conflicts]
            + warnings
        )
    return {
        "loaded": True,
        "packs": [
            {
                **_describe(trial.info),
                "status": trial.status,
                "reason": trial.failure,
                "layers": [name for name, _ in trial.layers],
                "hooks": list(trial.hooks),
                "warnings": list(trial.warnings),
            }
            for trial in trials
        ],
        "conflicts": conflicts,
        "warnings": warnings,
    }


def _conflicts_of(trials: Sequence[Trial], named: Sequence[PackInfo]) -> list[dict[str, Any]]:
    providers: dict[str, list[PackInfo]] = {}
    for trial in trials:
        for name, _ in trial.layers:
            providers.setdefault(name, []).append(trial.info)
    return [
        {"layer": identity, "packs": [_pack_reference(info) for info in rivals]}
        for identity, rivals in sorted(providers.items())
        if len(rivals) > 1 and len([info for info in rivals if info in named]) != 1
    ]


def render_packs(report: Mapping[str, Any]) -> None:
    """Print a `packs_report`: a table, then each failure and warning in full."""
    packs = report["packs"]
    if not packs:
        say("no layer pack is installed; the first ones come with: pip install layerport-builtin-layers")
    else:
        columns = ["name", "distribution", "version", "entry point", "status"]
        rows = [
            [
                pack["name"],
                pack["distribution"] or "",
                pack["version"] or "",
                pack["entry_point"],
                pack["status"],
            ]
            for pack in packs
        ]
        if report["loaded"]:
            columns.append("layers")
            rows = [[*row, ", ".join(pack["layers"])] for row, pack in zip(rows, packs, strict=True)]
        print_table(columns, rows)
    for pack in packs:
        name = pack["name"] if pack["distribution"] is None else f"{pack['name']} ({pack['distribution']})"
        if pack["reason"]:
            say(f"{name} failed: {pack['reason']}")
        for warning in pack.get("warnings", ()):
            say(f"{name} warning: {warning}")
    _render_notes(report)


def layers_report(*, explicit: Sequence[object] = (), environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Every layer of every pack: version, signature, dtypes, toolchains, pack; imports the packs."""
    packs = _load(explicit, environ)
    return {
        "layers": [
            {**_describe_layer(layer), "pack": _pack_reference(packs.owner(layer).info)} for layer in packs.layers
        ],
        "failed": [{"pack": _pack_reference(pack.info), "reason": pack.failure} for pack in packs.failed],
        "conflicts": _conflicts(packs),
        "warnings": list(packs.warnings),
    }


def render_layers(report: Mapping[str, Any]) -> None:
    """Print a `layers_report`: a table, then the packs whose layers are not in it."""
    layers = report["layers"]
    if layers:
        print_table(
            ["layer", "version", "signature", "dtypes", "toolchain", "pack"],
            [
                [
                    layer["name"],
                    str(layer["version"]),
                    layer["signature"],
                    ", ".join(layer["dtypes"]) or "none",
                    ", ".join(layer["toolchains"]) or "reference only",
                    f"{layer['pack']['name']} {layer['pack']['version'] or ''}".rstrip(),
                ]
                for layer in layers
            ],
        )
    else:
        say("no loaded pack provides a layer")
    for entry in report["failed"]:
        say(f"{entry['pack']['name']} failed, so its layers are missing: {entry['reason']}")
    _render_notes(report)


def _load(explicit: Sequence[object], environ: Mapping[str, str] | None) -> Packs:
    return layerport.packs.host.load(*explicit, environ=environ)


def _describe(info: PackInfo) -> dict[str, Any]:
    status = "disabled" if info.disabled else "failed" if info.fault else "installed"
    return {
        "name": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "entry_point": info.entry_point_value,
        "status": status,
        "reason": None if info.disabled else info.fault,
    }


def _pack_reference(info: PackInfo) -> dict[str, str | None]:
    return {"name": info.name, "distribution": info.distribution, "version": info.version}


def _conflicts(packs: Packs) -> list[dict[str, Any]]:
    return [
        {"layer": identity, "packs": [_pack_reference(pack.info) for pack in rivals]}
        for identity, rivals in packs.conflicts.items()
    ]


def _describe_layer(layer: Layer) -> dict[str, Any]:
    dtypes = [_dtype_text(combination) for kernel in layer.kernels for combination in kernel.dtypes]
    return {
        "name": layer.name,
        "version": layer.version,
        "signature": layer.signature.schema(layer.short_name),
        "inputs": [argument.name for argument in layer.signature.inputs],
        "parameters": [argument.name for argument in layer.signature.params],
        "attributes": [argument.name for argument in layer.signature.attributes],
        "dtypes": list(dict.fromkeys(dtypes)),
        "toolchains": list(dict.fromkeys(_toolchain(kernel.source) for kernel in layer.kernels)),
    }


def _dtype_text(combination: object) -> str:
    if isinstance(combination, Mapping):
        return " ".join(f"{name}:{dtype}" for name, dtype in combination.items())
    return str(combination)


def _toolchain(source: object) -> str:
    """ "cuda" for a CudaSource, "triton" for a TritonSource."""
    return type(source).__name__.removesuffix("Source").lower()


def _rivals(conflict: Mapping[str, Any]) -> str:
    return " and ".join(
        f"{pack['name']} ({pack['distribution']} {pack['version']})" if pack["distribution"] else pack["name"]
        for pack in conflict["packs"]
    )


def _render_notes(report: Mapping[str, Any]) -> None:
    for conflict in report["conflicts"]:
        say(
            f"conflict: layer {conflict['layer']} is provided by {_rivals(conflict)}; "
            "choose with LAYERPORT_DISABLE_PACKS=name or --pack name"
        )
    for warning in report["warnings"]:
        say(f"warning: {warning}")
