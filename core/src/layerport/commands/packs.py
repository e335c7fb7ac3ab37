"""`layerport packs` and `layerport layers`: what is installed, and what every pack provides.

`cli` uses this file.  Without `load` it reads metadata only, so it imports neither pluggy nor any framework.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import layerport.packs
from layerport.commands.tables import as_html, print_table, say
from layerport.errors import PackError
from layerport.packs.discovery import (
    DISABLE_VARIABLE,
    STRICT_VARIABLE,
    PackInfo,
    disable_faults,
    discover,
    raise_for_faults,
    switched_on,
)
from layerport.system.records import Record

if TYPE_CHECKING:
    from layerport.layers.layer import Layer
    from layerport.packs.locking import Lock
    from layerport.packs.trials import Trial


@dataclass(frozen=True)
class PackReference(Record):
    """A pack, in few words; no distribution where it is a file."""

    name: str
    distribution: str | None
    version: str | None

    @classmethod
    def of(cls, info: PackInfo) -> PackReference:
        return cls(info.name, info.distribution, info.version)

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})" if self.distribution else self.name


@dataclass(frozen=True)
class Conflict(Record):
    """A layer that several packs provide."""

    layer: str
    packs: tuple[PackReference, ...]

    @property
    def rivals(self) -> str:
        """The packs in a sentence."""
        return " and ".join(map(str, self.packs))


@dataclass(frozen=True)
class ListedPack(Record):
    """A pack as its metadata has it.  status: "installed", "disabled" or "failed", with the reason."""

    name: str
    distribution: str | None
    version: str | None
    entry_point: str
    status: str
    reason: str | None


@dataclass(frozen=True)
class TriedPack(ListedPack):
    """A pack that was imported and asked.  status: "loaded", "disabled" or "failed", with the reason."""

    layers: tuple[str, ...]
    hooks: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class PacksReport(Record):
    """The packs, the layers that several of them provide, and what is wrong with the settings.

    loaded: whether they were imported and asked, so that they are of `TriedPack`.
    """

    loaded: bool
    packs: tuple[ListedPack, ...]
    conflicts: tuple[Conflict, ...]
    warnings: tuple[str, ...]

    def _repr_html_(self) -> str:
        return as_html(render_packs, self)


@dataclass(frozen=True)
class ListedLayer(Record):
    """A layer of a pack.

    rules: what attributes have to keep to beyond their types.  dtypes: the combinations that its kernels take, as text.
    purpose: what its plugin is for, None where its author has not said.
    """

    name: str
    version: int
    signature: str
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]
    attributes: tuple[str, ...]
    rules: Mapping[str, tuple[str, ...]]
    dtypes: tuple[str, ...]
    toolchains: tuple[str, ...]
    purpose: str | None
    pack: PackReference


@dataclass(frozen=True)
class FailedPack(Record):
    """A pack whose layers are missing, and why."""

    pack: PackReference
    reason: str


@dataclass(frozen=True)
class LayersReport(Record):
    """Every layer of every pack that loads, the packs that do not, and the layers that several provide."""

    layers: tuple[ListedLayer, ...]
    failed: tuple[FailedPack, ...]
    conflicts: tuple[Conflict, ...]
    warnings: tuple[str, ...]

    def _repr_html_(self) -> str:
        return as_html(render_layers, self)


def packs_report(
    *, load: bool = False, explicit: Sequence[str] = (), environ: Mapping[str, str] | None = None, **limits: Any
) -> PacksReport:
    """What is installed, from metadata alone; with `load`, also what came of importing and asking each pack.

    explicit: further packs, files or names of installed ones, which are then tried too and must load.
    limits: as `packs.trials.try_packs` takes them.  Each pack is tried in a process of its own.
    Raises UsageError for a pack that is not there, PackError where an explicit one fails, or any in strict mode.
    """
    infos = list(discover(environ=environ, unregistered=True))
    warnings = list(disable_faults(infos, environ))
    if not load and not explicit:
        return PacksReport(False, tuple(_listed(info) for info in infos), (), tuple(warnings))

    named = [layerport.packs.named.info_of_name(given, infos) for given in explicit]
    trials = layerport.packs.trials.try_packs(
        sorted({*infos, *named}, key=lambda info: (info.name, info.distribution or "")), **limits
    )
    conflicts, notes = _conflicts_of(trials, named)
    warnings += notes
    faults = [f"pack {one.info.label}: {one.failure}" for one in trials if one.status == "failed" and one.info in named]
    if faults:
        raise PackError("a pack that was named fails", "repair it, or do not name it", faults=faults)
    if switched_on(STRICT_VARIABLE, environ):
        raise_for_faults(
            [f"pack {one.info.label}: {one.failure}" for one in trials if one.status == "failed"]
            + [f"layer {one.layer}: provided by {one.rivals}" for one in conflicts]
            + warnings
        )
    return PacksReport(True, tuple(map(_tried, trials)), conflicts, tuple(warnings))


def _conflicts_of(trials: Sequence[Trial], named: Sequence[PackInfo]) -> tuple[tuple[Conflict, ...], list[str]]:
    """The layers that several packs provide, and what is to say of those that are decided and of shared namespaces."""
    providers: dict[str, dict[PackInfo, None]] = {}
    sharers: dict[str, dict[PackInfo, None]] = {}
    for trial in trials:
        for name, _ in trial.layers:
            providers.setdefault(name, {})[trial.info] = None
            sharers.setdefault(name.partition("::")[0], {})[trial.info] = None
    conflicts, notes = [], []
    for identity, found in sorted(providers.items()):
        chosen = [info for info in found if info in named]
        rivals = Conflict(identity, tuple(map(PackReference.of, found)))
        if len(found) > 1 and len(chosen) != 1:
            conflicts.append(rivals)
        elif len(found) > 1:
            notes.append(f"layer {identity} is provided by {rivals.rivals}; that of {chosen[0].label} is used")
    for namespace, sharing in sorted(sharers.items()):
        if len(sharing) > 1 and not any(info in named for info in sharing):
            notes.append(_shared(namespace, sharing))
    return tuple(conflicts), notes


def _shared(namespace: str, infos: Iterable[PackInfo]) -> str:
    """That several packs use a namespace."""
    users = " and ".join(str(PackReference.of(info)) for info in infos)
    return (
        f"namespace {namespace} is used by {users}, and one may; choose with --prefer name or {DISABLE_VARIABLE}=name"
    )


def render_packs(report: PacksReport) -> None:
    """Print a `packs_report`: a table, then each failure and warning in full."""
    if not report.packs:
        say("no layer pack is installed; the first ones come with: pip install layerport-builtin-layers")
    else:
        columns = ["name", "distribution", "version", "entry point", "status"]
        rows = [
            [
                pack.name,
                pack.distribution or "",
                pack.version or "",
                pack.entry_point,
                pack.status,
                *([", ".join(pack.layers)] if isinstance(pack, TriedPack) else []),
            ]
            for pack in report.packs
        ]
        print_table([*columns, "layers"] if report.loaded else columns, rows)
    for pack in report.packs:
        name = pack.name if pack.distribution is None else f"{pack.name} ({pack.distribution})"
        if pack.reason:
            say(f"{name} failed: {pack.reason}")
        for warning in pack.warnings if isinstance(pack, TriedPack) else ():
            say(f"{name} warning: {warning}")
    _render_notes(report)


def layers_report(*, explicit: Sequence[object] = (), environ: Mapping[str, str] | None = None) -> LayersReport:
    """Every layer of every pack: version, signature, dtypes, toolchains, pack; imports the packs."""
    packs = layerport.packs.host.load(*explicit, environ=environ)
    return LayersReport(
        layers=tuple(_listed_layer(layer, packs.owner(layer).info) for layer in packs.every_version),
        failed=tuple(FailedPack(PackReference.of(pack.info), str(pack.failure)) for pack in packs.failed),
        conflicts=tuple(
            Conflict(identity, tuple(PackReference.of(pack.info) for pack in rivals))
            for identity, rivals in packs.conflicts.items()
            if len([pack for pack in rivals if any(layer.name == identity for layer in pack.layers)]) > 1
        ),
        warnings=(
            *packs.warnings,
            *packs.notes,
            *(_shared(one, [pack.info for pack in rivals]) for one, rivals in packs.shared_namespaces.items()),
        ),
    )


def lock_packs(*, explicit: Sequence[object] = (), folder: str = ".") -> Lock:
    """Write `layerport.lock` into a folder: every pack, its version, a digest of each layer.

    Raises PackError where a pack does not load, BuildError where the file cannot be written.
    """
    locking = layerport.packs.locking
    lock = locking.lock_of(layerport.packs.host.load(*explicit))
    locking.write_lock(lock, Path(folder) / locking.FILE)
    return lock


def render_lock(lock: Lock) -> None:
    """Print what was locked."""
    for one in lock.packs:
        release = f" ({one.distribution} {one.version})" if one.distribution else ""
        say(f"{one.name}{release}: {', '.join(one.layers) or 'no layer'}")
    say(f"{layerport.packs.locking.FILE} is written; `layerport build --locked` holds to it")


def render_layers(report: LayersReport) -> None:
    """Print a `layers_report`: a table, then the packs whose layers are not in it."""
    if report.layers:
        print_table(
            ["layer", "version", "signature", "dtypes", "toolchain", "for", "pack"],
            [
                [
                    layer.name,
                    str(layer.version),
                    layer.signature,
                    ", ".join(layer.dtypes) or "none",
                    ", ".join(layer.toolchains) or "reference only",
                    layer.purpose or "",
                    f"{layer.pack.name} {layer.pack.version or ''}".rstrip(),
                ]
                for layer in report.layers
            ],
        )
        for layer in report.layers:
            for name, rules in layer.rules.items():
                say(f"{layer.name}: {name} is {' and '.join(rules)}")
    else:
        say("no loaded pack provides a layer")
    for entry in report.failed:
        say(f"{entry.pack.name} failed, so its layers are missing: {entry.reason}")
    _render_notes(report)


def _listed(info: PackInfo) -> ListedPack:
    return ListedPack(
        name=info.name,
        distribution=info.distribution,
        version=info.version,
        entry_point=info.entry_point_value,
        status="disabled" if info.disabled else "failed" if info.fault else "installed",
        reason=None if info.disabled else info.fault,
    )


def _tried(trial: Trial) -> TriedPack:
    return TriedPack(
        name=trial.info.name,
        distribution=trial.info.distribution,
        version=trial.info.version,
        entry_point=trial.info.entry_point_value,
        status=trial.status,
        reason=trial.failure,
        layers=tuple(name for name, _ in trial.layers),
        hooks=trial.hooks,
        warnings=trial.warnings,
    )


def _listed_layer(layer: Layer, info: PackInfo) -> ListedLayer:
    dtypes = [_dtype_text(combination) for kernel in layer.kernels for combination in kernel.dtypes]
    return ListedLayer(
        name=layer.name,
        version=layer.version,
        signature=layer.signature.schema(layer.short_name),
        inputs=tuple(argument.name for argument in layer.signature.inputs),
        parameters=tuple(argument.name for argument in layer.signature.params),
        attributes=tuple(argument.name for argument in layer.signature.attributes),
        rules={argument.name: tuple(map(str, argument.rules)) for _, argument in layer.signature.ruled},
        dtypes=tuple(dict.fromkeys(dtypes)),
        toolchains=tuple(dict.fromkeys(_toolchain(source) for kernel in layer.kernels for source in kernel.sources)),
        purpose=layer.purpose,
        pack=PackReference.of(info),
    )


def _dtype_text(combination: object) -> str:
    if isinstance(combination, Mapping):
        return " ".join(f"{name}:{dtype}" for name, dtype in combination.items())
    return str(combination)


def _toolchain(source: object) -> str:
    """ "cuda" for a CudaSource, "triton" for a TritonSource."""
    return type(source).__name__.removesuffix("Source").lower()


def _render_notes(report: PacksReport | LayersReport) -> None:
    for conflict in report.conflicts:
        say(
            f"conflict: layer {conflict.layer} is provided by {conflict.rivals}; "
            "choose with --prefer name or LAYERPORT_DISABLE_PACKS=name"
        )
    for warning in report.warnings:
        say(f"warning: {warning}")
