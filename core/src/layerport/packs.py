"""The host of the packs: loads them, decides who owns a layer, and asks the hooks.

`discover` (from `pack_discovery`) reads metadata only; `load` imports.  The front half, the commands and the
conformance kit use this file; no pack does.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from layerport import __version__, hookspecs
from layerport.errors import PackError, UsageError
from layerport.pack_calls import (
    HookCall,
    check_export,
    check_layers,
    check_parameters,
    check_plugin,
    layers_of,
)
from layerport.pack_discovery import (
    CORE_NAME,
    DISABLE_VARIABLE,
    STRICT_VARIABLE,
    TRACE_VARIABLE,
    PackInfo,
    canonical,
    disable_faults,
    discover,
    suggest,
    switched_on,
)
from layerport.pack_loading import Pack, import_file, load_pack
from layerport.pack_watch import watching
from layerport.records import Candidate, is_layer

if TYPE_CHECKING:
    import torch

    from layerport.layers import BoundLayer, Layer
    from layerport.parameters import Parameters
    from layerport.plugin_spec import PluginSpec
    from layerport.targets import Target

__all__ = ["Pack", "PackInfo", "Packs", "discover", "import_file", "load"]

_CHECKS: Mapping[str, Callable[[object], Any]] = {
    "layerport_layers": check_layers,
    "layerport_export_parameters": check_export,
    "layerport_convert_parameters": check_parameters,
    "layerport_create_plugin": check_plugin,
}


def load(*explicit: object, environ: Mapping[str, str] | None = None) -> Packs:
    """Import every installed pack that is not disabled, each in isolation, and ask for its layers.

    explicit: packs that the user names: the path of a Python file, a module or plugin object, or the name of
    an installed pack.  They load first, win over packs that are only installed, and a fault in one is raised.
    environ: where the LAYERPORT_* switches are read (default: os.environ).

    Raises UsageError for an explicit pack that does not exist and PackError for one that fails; with
    LAYERPORT_STRICT=1, PackError for any failure, any conflict and any unknown name in
    LAYERPORT_DISABLE_PACKS.
    """
    environ = os.environ if environ is None else environ
    infos = discover(environ=environ)
    trace = switched_on(TRACE_VARIABLE, environ)
    chosen = _load_explicit(explicit, infos, trace)
    taken = {pack.info for pack in chosen}
    packs = list(chosen)
    for info in infos:
        if info not in taken:
            packs.append(_without_twin(load_pack(info, trace=trace), packs))
    loaded = Packs(packs, warnings=disable_faults(infos, environ), trace=trace)
    if switched_on(STRICT_VARIABLE, environ):
        loaded.raise_for_faults()
    return loaded


class Packs:
    """The packs of one process, loaded, with the layers that they provide.

    Made by `load`.  It never changes; `with_plugins` makes another one.
    warnings: what is wrong with the environment switches.  conflicts: the packs that provide one identity, by
    identity, where nothing says which is meant.
    """

    def __init__(self, packs: Iterable[Pack], *, warnings: Sequence[str] = (), trace: bool = False) -> None:
        self.packs = tuple(sorted(packs, key=lambda pack: (pack.info.name, pack.info.distribution or "")))
        self.warnings = tuple(warnings)
        self._trace = trace
        self._core = _core_pack()
        providers: dict[str, list[Pack]] = {}
        for pack in self.packs:
            for layer in pack.layers:
                providers.setdefault(layer.name, []).append(pack)
        self._owners: dict[str, Pack] = {}
        self._layers: dict[str, Layer] = {}
        conflicts: dict[str, tuple[Pack, ...]] = {}
        for identity in sorted(providers):
            rivals = providers[identity]
            named = [pack for pack in rivals if pack.explicit]
            if len(rivals) > 1 and len(named) != 1:
                conflicts[identity] = tuple(named or rivals)
                continue
            owner = named[0] if named else rivals[0]
            self._owners[identity] = owner
            self._layers[identity] = next(layer for layer in owner.layers if layer.name == identity)
        self.conflicts: Mapping[str, tuple[Pack, ...]] = MappingProxyType(conflicts)

    def __iter__(self) -> Iterator[Pack]:
        return iter(self.packs)

    def __repr__(self) -> str:
        return f"<packs {', '.join(f'{pack.info.label}: {pack.status}' for pack in self.packs) or 'none'}>"

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer that can be used, sorted by identity; those in conflict are not among them."""
        return tuple(self._layers.values())

    @property
    def failed(self) -> tuple[Pack, ...]:
        """The packs that could not be loaded."""
        return tuple(pack for pack in self.packs if pack.status == "failed")

    def layer(self, identity: str) -> Layer:
        """The layer `namespace::name`.

        Raises PackError where two packs provide it or where its pack failed, and UsageError, which lists
        what is there, where it is unknown.
        """
        self._raise_if_contested(identity)
        if identity in self._layers:
            return self._layers[identity]
        raise self._unknown(identity)

    def owner(self, layer: Layer | str) -> Pack:
        """The pack that provides a layer; raises as `layer` does."""
        identity = layer if isinstance(layer, str) else layer.name
        self.layer(identity)
        return self._owners[identity]

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
        blamed = self._owners.get(identity, pack) if pack is self._core and identity else pack
        call = HookCall(blamed.info, hook, function, identity, path, self._trace, watched)
        return call.ask(arguments, _CHECKS[hook])

    def export_parameters(self, module: torch.nn.Module, name: str) -> list[tuple[Pack, tuple[Candidate, ...]]]:
        """Every pack's candidates for one module, packs in the order of their names; empty if none claims it.

        Whether two packs may claim one module is not decided here.  The core is asked only if no pack claims.
        Raises PackError for a candidate with a layer that its pack does not own and no other pack provides.
        """
        return self._export([(name, module)], None).get(name, [])

    def export_model(self, model: torch.nn.Module) -> dict[str, list[tuple[Pack, tuple[Candidate, ...]]]]:
        """What `export_parameters` says for every module of a model that is claimed, by path, in the model's order.

        What a pack changes is looked for once, around all its calls, and not around each.
        """
        found = self._export(list(model.named_modules()), model)
        return {path: found[path] for path, _ in model.named_modules() if path in found}

    def _export(
        self, modules: Sequence[tuple[str, torch.nn.Module]], model: torch.nn.Module | None
    ) -> dict[str, list[tuple[Pack, tuple[Candidate, ...]]]]:
        hook = "layerport_export_parameters"
        claims: dict[str, list[tuple[Pack, tuple[Candidate, ...]]]] = {}
        for pack in (*self.packs, self._core):
            if hook not in pack.hooks:
                continue
            label = f"pack {pack.info.label}: {hook}"
            with contextlib.nullcontext() if model is None else watching(label, model=model):
                for path, module in modules:
                    if pack is self._core and path in claims:
                        continue
                    place = f"{path or 'the root module'} ({type(module).__name__})"
                    answer = self.call(hook, pack, path=place, watched=model is not None, module=module, name=path)
                    candidates = tuple(c for c in answer if self._is_entitled(pack, c, place))
                    if candidates:
                        claims.setdefault(path, []).append((pack, candidates))
        return claims

    def convert_parameters(
        self, layer: Layer, parameters: Parameters, target: Target, *, path: str | None = None
    ) -> Parameters:
        """The parameters as the kernel wants them: the owner's answer, else the core's, else as they are."""
        arguments: dict[str, Any] = {"layer": layer, "parameters": parameters, "target": target}
        for pack in (self.owner(layer), self._core):
            answer: Parameters | None = self.call("layerport_convert_parameters", pack, path=path, **arguments)
            if answer is not None:
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

    def with_plugins(self, *explicit: object) -> Packs:
        """These packs and further ones that the user names, as in `load`.

        Where an installed pack already provides the layer, name the wanted pack in `load` instead: a Torch
        operator belongs to whoever registered it first.
        """
        added = _load_explicit(explicit, [pack.info for pack in self.packs], self._trace, known=self.packs)
        replaced = {pack.info for pack in added}
        kept = [pack for pack in self.packs if pack.info not in replaced]
        return Packs([*kept, *added], warnings=self.warnings, trace=self._trace)

    def raise_for_faults(self) -> None:
        """Raise PackError if any pack failed, any layer is contested or a switch names an unknown pack."""
        faults = [f"pack {pack.info.label}: {pack.failure}" for pack in self.failed]
        faults += [f"layer {identity}: {_versions(identity, rivals)}" for identity, rivals in self.conflicts.items()]
        faults += self.warnings
        if faults:
            error = PackError(
                f"{len(faults)} fault{'s' if len(faults) > 1 else ''} in the installed packs, and "
                f"{STRICT_VARIABLE} is set",
                f"repair or uninstall them, block packs with {DISABLE_VARIABLE}, or unset {STRICT_VARIABLE}",
                faults=faults,
            )
            raise error from next((pack.error for pack in self.failed if pack.error is not None), None)

    def _is_entitled(self, pack: Pack, candidate: Candidate, place: str) -> bool:
        """Whether a candidate may stand: the pack that lost a layer to an explicit one does not offer it."""
        for layer in layers_of(candidate):
            self._raise_if_contested(layer.name)
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
        example = rivals[0].info
        raise PackError(
            f"layer {identity} is provided by {len(rivals)} packs",
            f"choose one: block the others with {DISABLE_VARIABLE}=name, or name the wanted one, "
            f"as in --pack {example.name} or packs=[{example.name!r}]",
            faults=[_versions(identity, (pack,)) for pack in rivals],
        )

    def _unknown(self, identity: str) -> UsageError | PackError:
        namespace = canonical(identity.partition("::")[0])
        missing = [pack for pack in self.packs if pack.status != "loaded"]
        culprits = [pack for pack in missing if namespace in _names_of(pack.info)] if "::" in identity else []
        if culprits:
            pack = culprits[0]
            first = pack.failure or f"it is disabled by {DISABLE_VARIABLE}"
            error = PackError(
                f"layer {identity} is not there, because pack {pack.info.label} is not loaded: {first}",
                f"take it out of {DISABLE_VARIABLE}" if pack.info.disabled else "repair the pack or install it again",
                faults=[_missing_line(other) for other in culprits[1:]],
            )
            error.__cause__ = pack.error
            return error
        by_short = {name.partition("::")[2]: name for name in (*self._layers, *self.conflicts)}
        near = suggest(identity, self._layers)
        near += [by_short[short] for short in suggest(identity.rpartition(":")[2], by_short)]
        hint = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
        return UsageError(
            f"no loaded pack provides a layer {identity!r}",
            f"{hint}installed layers: {', '.join(self._layers) or 'none'}",
            faults=[_missing_line(pack) for pack in missing],
        )


def _missing_line(pack: Pack) -> str:
    if pack.info.disabled:
        return f"pack {pack.info.label} is disabled by {DISABLE_VARIABLE}"
    return f"pack {pack.info.label} is not loaded: {pack.failure}"


def _versions(identity: str, packs: Iterable[Pack]) -> str:
    versions = ((pack, layer.version) for pack in packs for layer in pack.layers if layer.name == identity)
    return " and ".join(f"version {version} from pack {pack.info.label}" for pack, version in versions)


def _names_of(info: PackInfo) -> set[str]:
    """The namespaces that a pack which cannot be asked would most likely fill."""
    names = (info.name, info.distribution or "", info.entry_point_value.partition(":")[0].partition(".")[0])
    return {canonical(name) for name in names}


def _without_twin(pack: Pack, others: Sequence[Pack]) -> Pack:
    """Two entry points of one object would provide every layer twice."""
    for other in others:
        if pack.plugin is not None and other.plugin is pack.plugin:
            failure = f"its entry point names the same object as pack {other.info.label}; uninstall one of the two"
            return Pack(pack.info, failure=failure, warnings=pack.warnings)
    return pack


def _core_pack() -> Pack:
    """The core's own answers: an ordinary plugin, and the last one to be asked."""
    from layerport.core_plugin import CorePlugin

    info = PackInfo(CORE_NAME, CORE_NAME, __version__, "layerport.core_plugin:CorePlugin")
    pack = load_pack(info, plugin=CorePlugin())
    if pack.failure is not None:
        raise PackError(f"the core's own hooks are at fault: {pack.failure}", "report it") from pack.error
    return pack


def _load_explicit(
    explicit: Sequence[object], infos: Sequence[PackInfo], trace: bool, known: Sequence[Pack] = ()
) -> list[Pack]:
    loaded: list[Pack] = []
    for given in explicit:
        pack = _load_one(given, infos, trace, known)
        if all(pack.plugin is not other.plugin for other in loaded):
            loaded.append(pack)
    return loaded


def _load_one(given: object, infos: Sequence[PackInfo], trace: bool, known: Sequence[Pack]) -> Pack:
    if isinstance(given, str) and not given.endswith(".py") and not Path(given).is_file():
        info, plugin = _named(given, infos), None
    elif isinstance(given, (str, os.PathLike)):
        file = Path(given).expanduser().resolve()
        if not file.is_file():
            raise UsageError(f"there is no pack file {str(given)!r}", "give the path of a Python file")
        info, plugin = PackInfo(file.stem, None, None, str(file)), None
    else:
        twin = next((pack.info for pack in known if pack.plugin is given), None)
        info, plugin = twin or _info_of(given, infos), given
    pack = load_pack(info, plugin=plugin, explicit=True, trace=trace)
    if pack.failure is not None:
        raise PackError(f"pack {info.label}: {pack.failure}", "repair it, or do not name it") from pack.error
    return pack


def _named(name: str, infos: Sequence[PackInfo]) -> PackInfo:
    wanted = canonical(name)
    matches = [info for info in infos if wanted in (canonical(info.name), canonical(info.distribution or ""))]
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
    name = getattr(plugin, "__name__", None) or type(plugin).__name__
    for info in infos:
        module, _, attribute = info.entry_point_value.partition(":")
        named: object = sys.modules.get(module.strip())
        for part in filter(None, attribute.strip().split(".")):
            named = getattr(named, part, None)
        if named is plugin and not info.disabled:
            return info
    origin = getattr(plugin, "__file__", None) if isinstance(plugin, ModuleType) else None
    if name == "__main__" and origin:  # a script that passes itself is the same pack as with --pack
        name = Path(origin).stem
    return PackInfo(str(name).rpartition(".")[2], None, None, origin or f"passed in: {type(plugin).__qualname__}")
