"""The host of the packs: loads them, decides who owns a layer, and asks the hooks.

`discover` (from `discovery`) reads metadata only; `load` imports.  The front half, the commands and the
conformance kit use this file; no pack does.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import layerport.packs
from layerport.errors import PackError, UsageError
from layerport.packs import hookspecs
from layerport.packs.calls import HookCall, check_export, check_layers, check_parameters, check_plugin, layers_of, made
from layerport.packs.clock import running
from layerport.packs.core_plugin import core_pack
from layerport.packs.discovery import (
    DISABLE_VARIABLE,
    STRICT_VARIABLE,
    TRACE_VARIABLE,
    PackInfo,
    disable_faults,
    discover,
    raise_for_faults,
    suggest,
    switched_on,
    twin_fault,
    without_rivals,
)
from layerport.packs.faults import DroppedPack, ModelClaims, blamed, may_provide, missing_line
from layerport.packs.loading import Pack, load_pack
from layerport.packs.lossy import LossyWish, allowed
from layerport.packs.named import load_named, used
from layerport.packs.ownership import INSTALLED, contested, no_version, ownership, ranks
from layerport.packs.records import Candidate, Lossy, is_bound_layer, is_layer, is_lossy
from layerport.packs.torch_autoload import importing_torch
from layerport.packs.watch import LastingChangeError, sample, watching
from layerport.system import html

if TYPE_CHECKING:
    import torch

    from layerport.bundle.plugin_spec import PluginSpec
    from layerport.layers.layer import BoundLayer, Layer
    from layerport.parameters.standard_form import Parameters
    from layerport.targets import Target, TorchTarget

__all__ = ["DroppedPack", "ModelClaims", "Pack", "PackInfo", "Packs", "blamed", "discover", "importing_torch", "load"]

_CHECKS: Mapping[str, Callable[[object], Any]] = {
    "layerport_layers": check_layers,
    "layerport_export_parameters": check_export,
    "layerport_convert_parameters": check_parameters,
    "layerport_create_plugin": check_plugin,
}


def load(*explicit: object, prefer: Iterable[object] = (), environ: Mapping[str, str] | None = None) -> Packs:
    """Import every installed pack that is not disabled, each in isolation, and ask for its layers.

    explicit: packs that the user names: the path of a Python file, a module or plugin object, or the name of
    an installed pack.  They load first, win over packs that are only installed, and a fault in one is raised.
    What `use_pack` was given counts as named, too.
    prefer: the same, and where several packs answer these go before all others, in this order.
    environ: where the LAYERPORT_* switches are read (default: os.environ).

    Raises UsageError for an explicit pack that does not exist and PackError for one that fails; with
    LAYERPORT_STRICT=1, PackError for any failure, any conflict and any unknown name in
    LAYERPORT_DISABLE_PACKS.
    """
    environ = os.environ if environ is None else environ
    wanted = tuple(prefer)
    infos = without_rivals(discover(environ=environ), wanted)
    trace = switched_on(TRACE_VARIABLE, environ)
    # They load first, because the first to define a Torch operator keeps it.
    preferred = load_named(wanted, infos, trace)
    packs = [*preferred, *load_named((*explicit, *used()), infos, trace, known=preferred)]
    taken = {pack.info for pack in packs}
    for info in infos:
        if info not in taken:
            packs.append(_without_twin(load_pack(info, trace=trace), packs))
    loaded = Packs(packs, preferred=preferred, warnings=disable_faults(infos, environ), trace=trace)
    if switched_on(STRICT_VARIABLE, environ):
        loaded.raise_for_faults()
    return loaded


class Packs:
    """The packs of one process, loaded, with the layers that they provide.

    Made by `load`.  It never changes.
    warnings: what is wrong with the environment switches.  conflicts: the packs that dispute an identity, by
    identity, where nothing says which is meant; shared_namespaces: the same by namespace.
    notes: each layer that is used instead of another pack's.
    """

    def __init__(
        self,
        packs: Iterable[Pack],
        *,
        preferred: Sequence[Pack] = (),
        warnings: Sequence[str] = (),
        trace: bool = False,
    ) -> None:
        self.packs = tuple(sorted(packs, key=lambda pack: (pack.info.name, pack.info.distribution or "")))
        self.warnings = tuple(warnings)
        self._trace = trace
        self._core = core_pack()
        # The last answer of each pack, to see whether it is let be.
        self._answered: dict[Pack, list[tuple[str, weakref.ref[Any], bytes]]] = {}
        self._preferred = tuple(preferred)
        self._rank = ranks(self.packs, preferred)
        found = ownership(self.packs, self._rank)
        self._owners, self._layers, self.notes = found.owners, found.layers, found.notes
        self.shared_namespaces = found.shared
        self.conflicts: Mapping[str, tuple[Pack, ...]] = MappingProxyType(dict(found.conflicts))

    def __iter__(self) -> Iterator[Pack]:
        return iter(self.packs)

    def __repr__(self) -> str:
        return f"<packs {', '.join(f'{pack.info.label}: {pack.status}' for pack in self.packs) or 'none'}>"

    def _repr_html_(self) -> str:
        rows = (
            (one.info.name, one.info.distribution, one.info.version, one.status, one.failure or _names(one))
            for one in self.packs
        )
        lines = (*self.warnings, *self.notes, *(str(contested(*item)) for item in self.conflicts.items()))
        return html.table(("pack", "distribution", "version", "status", "layers"), rows) + "".join(
            map(html.line, lines)
        )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer that can be used in its newest version, sorted by identity; those in conflict are not there."""
        return tuple(versions[0] for versions in self._layers.values())

    @property
    def every_version(self) -> tuple[Layer, ...]:
        """The same with all their versions."""
        return tuple(layer for versions in self._layers.values() for layer in versions)

    @property
    def failed(self) -> tuple[Pack, ...]:
        """The packs that could not be loaded."""
        return tuple(pack for pack in self.packs if pack.status == "failed")

    def layer(self, identity: str, version: int | None = None) -> Layer:
        """The layer `namespace::name`, in its newest version where none is given.

        Where that version is not there: the newest one that can upgrade from it.
        Raises PackError where two packs provide it or where its pack failed, and UsageError, which lists
        what is there, where it is unknown.
        """
        self._raise_if_contested(identity)
        there = self._layers.get(identity)
        if there is None:
            raise self._unknown(identity)
        for layer in there:
            if version in (None, layer.version):
                return layer
        assert version is not None
        for layer in there:
            if layer.upgrades_from(version):
                return layer
        raise no_version(self._owners[identity], there, version)

    def owner(self, layer: Layer | str) -> Pack:
        """The pack that provides a layer; raises as `layer` does."""
        identity = layer if isinstance(layer, str) else layer.name
        self.layer(identity)
        return self._owners[identity]

    def rank(self, pack: Pack) -> int:
        """How early a pack goes where several answer; of equals none does."""
        return self._rank.get(pack, INSTALLED)

    def is_preferred(self, pack: Pack) -> bool:
        """Whether the user has said that it goes before others."""
        return pack in self._preferred

    def call(self, hook: str, pack: Pack, *, path: str | None = None, watched: bool = False, **arguments: Any) -> Any:
        """Ask one hook of one pack; None where the pack does not implement it.

        path: the module's path in the model, for messages.  watched: whether the caller looks for what it changes.
        The answer is checked; that of `layerport_export_parameters` is always a tuple.
        Raises PackError, chained to the original, also where the hook changes what it may only read.
        """
        if hook not in hookspecs.HOOKS:
            raise UsageError(f"there is no hook {hook!r}", f"the hooks are {', '.join(hookspecs.HOOKS)}")
        function = pack.hooks.get(hook)
        if function is None:
            return () if hook == "layerport_export_parameters" else None
        layer = arguments.get("layer")
        identity = layer.name if is_layer(layer) else None
        # What the core makes of a layer's kernels is at fault where the pack's kernels are.
        blame = self._owners.get(identity, pack) if pack is self._core and identity else pack
        call = HookCall(blame.info, hook, function, identity, path, self._trace, watched, pack is self._core)
        return call.ask(arguments, _CHECKS[hook])

    def export_model(
        self,
        model: torch.nn.Module,
        *,
        required: Collection[str] = (),
        strict: bool = False,
        lossy: Sequence[LossyWish] = (),
    ) -> ModelClaims:
        """What `export_parameters` says for every module of a model, and the packs whose hook fails.

        What a pack changes is looked for once, around all its calls, and not around each.
        required: layers that the user asks for.  lossy: the lossy claims that are made.
        Raises PackError where the hook fails of a pack that has one of the required ones or that the user named, and
        for any failure where strict or where a change of the model cannot be put back.
        """
        claims: dict[str, list[tuple[Pack, tuple[Candidate, ...]]]] = {}
        dropped: list[DroppedPack] = []
        modules = list(model.named_modules())
        for pack in (*self.packs, self._core):
            try:
                left = [one for one in modules if pack is not self._core or one[0] not in claims]
                answers = self._export(pack, left, lossy)
            except PackError as error:
                asked_for = pack.explicit or any(layer.name in required for layer in pack.layers)
                if strict or asked_for or pack is self._core or isinstance(error, LastingChangeError):
                    raise
                dropped.append(DroppedPack(pack, error))
                continue
            self._add(claims, pack, answers)
        return ModelClaims({path: claims[path] for path, _ in modules if path in claims}, tuple(dropped))

    def _export(
        self, pack: Pack, modules: Sequence[tuple[str, torch.nn.Module]], lossy: Sequence[LossyWish]
    ) -> dict[str, tuple[Candidate, ...]]:
        """The candidates of one pack, by the module's path."""
        hook = "layerport_export_parameters"
        if hook not in pack.hooks or not modules:
            return {}
        found = {}
        label = f"pack {pack.info.label}: {hook}"
        (_, root), *_ = modules
        recorder = layerport.packs.torch_origins.Recorder(root, pack.info.name)
        with watching(label, model=root, layers=pack.layers), running(label):
            for path, module in modules:
                place = f"{path or 'the root module'} ({type(module).__name__})"
                with recorder:
                    answer = self.call(hook, pack, path=place, watched=True, module=module, name=path)
                    wanted = [one for one in answer if not is_lossy(one) or allowed(lossy, one, path)]
                    own = [one for one in wanted if self._is_own(pack, one, place)]
                    candidates = [made(pack.info, one, place, self._trace) if is_lossy(one) else one for one in own]
                if candidates:
                    found[path] = tuple(recorder.bound(one, path) if is_bound_layer(one) else one for one in candidates)
                recorder.forget()
        return found

    def _add(
        self,
        claims: dict[str, list[tuple[Pack, tuple[Candidate, ...]]]],
        pack: Pack,
        answers: Mapping[str, tuple[Candidate, ...]],
    ) -> None:
        for path, candidates in answers.items():
            for layer in (layer for one in candidates for layer in layers_of(one)):
                self._raise_if_contested(layer.name)
            claims.setdefault(path, []).append((pack, candidates))

    def convert_parameters(
        self,
        layer: Layer,
        parameters: Parameters,
        target: Target | TorchTarget,
        *,
        path: str | None = None,
        owner: Pack | None = None,
    ) -> Parameters:
        """The parameters as the kernel wants them: the owner's answer, else the core's, else as they are.

        owner: the layer's pack, where somebody knows it better than by the layer's name.
        """
        arguments: dict[str, Any] = {"layer": layer, "parameters": parameters, "target": target}
        for pack in (owner or self.owner(layer), self._core):
            answer: Parameters | None = self.call("layerport_convert_parameters", pack, path=path, **arguments)
            self._refuse_changed(pack)
            if answer is not None:
                self._answered[pack] = [
                    (name, weakref.ref(array), sample(array))
                    for name, array in answer.items()
                    if array is not parameters.get(name)
                ]
                return answer
        return parameters

    def create_plugin(
        self, layer: Layer, bound: BoundLayer, target: Target, *, path: str | None = None
    ) -> PluginSpec | None:
        """The plugin of a layer: its owner's answer, else the core's; None where there is neither."""
        for pack in (self.owner(layer), self._core):
            answer: PluginSpec | None = self.call(
                "layerport_create_plugin", pack, path=path, layer=layer, bound=bound, target=target
            )
            if answer is not None:
                return answer
        return None

    def raise_for_faults(self) -> None:
        """Raise PackError if any pack failed, any layer is contested or a switch names an unknown pack."""
        faults = [f"pack {pack.info.label}: {pack.failure}" for pack in self.failed]
        for identity, rivals in self.conflicts.items():
            error = contested(identity, rivals)
            faults.append(f"{error.fault}: {' and '.join(error.faults)}")
        faults += self.warnings
        raise_for_faults(faults, next((pack.error for pack in self.failed if pack.error is not None), None))

    def _refuse_changed(self, pack: Pack) -> None:
        """Raise PackError where a pack has written anew to what it answered before: one buffer for all its answers."""
        for name, held, before in self._answered.pop(pack, ()):
            array = held()
            if array is not None and sample(array) != before:
                raise PackError(
                    f"pack {pack.info.label}: layerport_convert_parameters changed the values of {name}, which it had "
                    "answered with before",
                    "make a new array at each call",
                )

    def _is_own(self, pack: Pack, candidate: Candidate | Lossy, place: str) -> bool:
        """Whether a candidate may stand: the pack that lost a layer to an explicit one does not offer it."""
        for layer in layers_of(candidate):
            if layer.name in self.conflicts:
                continue
            owner = self._owners.get(layer.name)
            if owner is None:
                raise PackError(
                    f"pack {pack.info.label}: layerport_export_parameters at {place} answers with layer "
                    f"{layer.name}, which no loaded pack provides",
                    "return that layer from layerport_layers too",
                )
            if owner is not pack and any(own.name == layer.name for own in pack.layers):
                return False
        return True

    def _raise_if_contested(self, identity: str) -> None:
        rivals = self.conflicts.get(identity)
        if rivals is None:
            return
        raise contested(identity, rivals)

    def missing(self, identity: str) -> PackError | None:
        """Why a layer is not there, where the pack that provides it is known and not loaded."""
        culprits = [pack for pack in self.packs if pack.status != "loaded" and may_provide(pack.info, identity)]
        if not culprits:
            return None
        pack = culprits[0]
        first = pack.failure or f"it is disabled by {DISABLE_VARIABLE}"
        error = PackError(
            f"layer {identity} is not there, because pack {pack.info.label} is not loaded: {first}",
            f"take it out of {DISABLE_VARIABLE}" if pack.info.disabled else "repair the pack or install it again",
            faults=[missing_line(other) for other in culprits[1:]],
        )
        error.__cause__ = pack.error
        return error

    def _unknown(self, identity: str) -> UsageError | PackError:
        if "::" in identity and (error := self.missing(identity)):
            return error
        by_short = {name.partition("::")[2]: name for name in (*self._layers, *self.conflicts)}
        near = suggest(identity, self._layers)
        near += [by_short[short] for short in suggest(identity.rpartition(":")[2], by_short)]
        hint = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
        # Not a slip of the pen, then: what is missing may well be what the failed packs would have brought.
        kind = PackError if self.failed and "::" in identity and not near else UsageError
        return kind(
            f"no loaded pack provides a layer {identity!r}",
            f"{hint}installed layers: {', '.join(self._layers) or 'none'}",
            faults=[missing_line(pack) for pack in self.packs if pack.status != "loaded"],
        )


def _names(pack: Pack) -> str:
    return ", ".join(f"{layer.name} version {layer.version}" for layer in pack.layers)


def _without_twin(pack: Pack, others: Sequence[Pack]) -> Pack:
    """Two entry points of one object would provide every layer twice."""
    for other in others:
        if pack.plugin is not None and other.plugin is pack.plugin:
            return Pack(pack.info, failure=twin_fault(other.info), warnings=pack.warnings)
    return pack
