"""The one place through which every call into a pack goes, and the checks of what comes back.

A fault in a pack leaves here with the pack, its version, the hook, the layer and the module's path, chained
to the original.  Only `loading` and `packs` import this file.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from layerport.errors import LayerportError, PackError, escaped
from layerport.packs.clock import running
from layerport.packs.discovery import DISABLE_VARIABLE, PackInfo
from layerport.packs.records import (
    Candidate,
    Lossy,
    Rewrite,
    is_bound_layer,
    is_layer,
    is_lossy,
    is_parameters,
    is_plugin_spec,
    is_rewrite,
)
from layerport.packs.watch import watching
from layerport.system.foreign_text import describe, reason, type_name

if TYPE_CHECKING:
    from layerport.bundle.plugin_spec import PluginSpec
    from layerport.layers.layer import BoundLayer, Layer
    from layerport.parameters.standard_form import Parameters

_Answer = TypeVar("_Answer")
_PLUGIN_HOOKS = ("layerport_convert_parameters", "layerport_create_plugin")


class WrongAnswerError(Exception):
    """A check's verdict on an answer: what was expected, and what to write instead."""

    def __init__(self, fault: str, repair: str) -> None:
        super().__init__(fault)
        self.fault = fault
        self.repair = repair


@dataclass(frozen=True)
class HookCall:
    """One call of one hook of one pack.

    layer: the layer's identity, and path: the module's path in the model, where the call is about one.
    is_watched: whether somebody already looks, around this call and others, for what the hook changes.
    is_of_core: whether the core answers in the pack's place.
    """

    info: PackInfo
    hook: str
    function: Callable[..., Any]
    layer: str | None = None
    path: str | None = None
    trace: bool = False
    is_watched: bool = False
    is_of_core: bool = False

    @property
    def context(self) -> str:
        """Which call this is, for a message."""
        layer = f" for layer {self.layer}" if self.layer else ""
        place = "" if self.path is None else f" at {self.path or 'the root module'}"
        return f"pack {self.info.label}: {self.hook}{layer}{place}"

    def ask(self, arguments: Mapping[str, Any], check: Callable[[object], _Answer]) -> _Answer:
        """Call the hook and return its checked answer; raises PackError for whatever the pack does wrong.

        What the pack prints goes to stderr, because stdout belongs to the command's answer.
        KeyboardInterrupt passes: it is the user's.
        """
        start = time.perf_counter()
        # The core's own answers run a compiler, which is no pack's doing.
        watch: AbstractContextManager[None] = contextlib.nullcontext()
        if not self.is_watched:
            watch = watching(self.context, process=not self.is_of_core, **_read_only(arguments))
        with watch, running(self.context):
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    answer = self.function(**arguments)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # SystemExit, GeneratorExit and the pack's own are faults like any other
                self._print_trace(start, f"raised {type_name(error)}")
                self._raise_from(error)
        try:
            checked = check(answer)
            self._print_trace(start, summarise(checked))
            return checked
        except WrongAnswerError as verdict:
            self._print_trace(start, f"{type_name(answer)}, refused")
            raise PackError(f"{self.context} {verdict.fault}", verdict.repair) from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an answer that cannot even be looked at
            fault = f"{self.context} returned {type_name(answer)}, which raises {reason(error)} when it is looked at"
            raise PackError(fault, self._repair()) from error

    def _repair(self) -> str:
        way = (
            f"--decompose {self.layer} builds without its plugin; " if self.hook in _PLUGIN_HOOKS and self.layer else ""
        )
        return f"{way}report it to the pack's author, or block the pack with {DISABLE_VARIABLE}={self.info.name}"

    def _raise_from(self, error: BaseException) -> NoReturn:
        # One of ours, and no subclass of the pack's own that may say what it likes.
        if isinstance(error, LayerportError) and type(error).__module__ == LayerportError.__module__:
            fault = f"{self.context}: {error.fault}"
            raise PackError(fault, error.repair or self._repair(), faults=error.faults) from error
        raise PackError(f"{self.context} raised {reason(error)}", self._repair()) from error

    def _print_trace(self, start: float, result: str) -> None:
        if self.trace:
            elapsed = (time.perf_counter() - start) * 1e3
            print(escaped(f"layerport trace: {self.context} -> {result} ({elapsed:.3f} ms)"), file=sys.stderr)


def _read_only(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a hook is given and may not change, as `watching` takes it."""
    bound, parameters, layer = (arguments.get(name) for name in ("bound", "parameters", "layer"))
    arrays = dict(parameters or {})
    tensors = {}
    if is_bound_layer(bound):
        arrays |= dict(bound.parameters)
        tensors = {name: value for name, value in bound.sources.items() if hasattr(value, "untyped_storage")}
    return {
        "model": arguments.get("module"),
        "tensors": tensors,
        "arrays": arrays,
        "layers": [layer] if is_layer(layer) else [],
    }


def summarise(answer: object) -> str:
    """An answer in a few words, for the trace; asks nothing of an object that is not a record."""
    if (items := _plain_tuple(answer)) is not None:
        return f"({', '.join(map(summarise, items))})"
    if is_rewrite(answer):
        return f"rewrite with {', '.join(layer.name for layer in answer.layers)}"
    if is_layer(answer):
        return f"Layer {answer.name}"
    if is_lossy(answer):
        return f"lossy claim of {answer.layer.name}"
    if is_bound_layer(answer):
        return f"BoundLayer {answer.layer.name}"
    return "None" if answer is None else type_name(answer)


def check_layers(answer: object) -> tuple[Layer, ...]:
    """The answer of `layerport_layers`."""
    wanted = "a tuple of layers"
    repair = "return a tuple of layers made by @lp.layer, as in (first_layer, second_layer)"
    if is_layer(answer):
        raise WrongAnswerError(f"returned one layer, expected {wanted}", f"return ({answer.short_name},)")
    items = _plain_tuple(answer)
    if items is None:
        raise WrongAnswerError(f"returned {_given(answer)}, expected {wanted}", repair)
    layers: list[Layer] = []
    for index, item in enumerate(items):
        if not is_layer(item):
            raise WrongAnswerError(f"returned {_given(item)} at index {index}, expected a layer", repair)
        layers.append(item)
    versions = [(layer.name, layer.version) for layer in layers]
    if twice := sorted({name for name, version in versions if versions.count((name, version)) > 1}):
        raise WrongAnswerError(f"returned {', '.join(twice)} more than once", "return each version of a layer once")
    return tuple(layers)


def check_export(answer: object) -> tuple[Candidate | Lossy, ...]:
    """The answer of `layerport_export_parameters` as candidates and offers; none where nothing is claimed."""
    if answer is None:
        return ()
    many = _plain_tuple(answer)
    checked: list[Candidate | Lossy] = []
    for index, item in enumerate((answer,) if many is None else many):
        if is_rewrite(item) or is_bound_layer(item) or is_lossy(item):
            checked.append(item)
            continue
        place = "" if many is None else f" at index {index}"
        repair = "return layer.bind(...), lp.rewrite(...), lp.lossy(...), a tuple of them, or None"
        if is_layer(item):
            raise WrongAnswerError(
                f"returned the layer {item.name} without parameters{place}",
                f"return {item.short_name}.bind(...) with the module's parameters",
            )
        raise WrongAnswerError(f"returned {_given(item)}{place}, expected a bound layer or a rewrite", repair)
    return tuple(checked)


def _plain_tuple(answer: object) -> tuple[object, ...] | None:
    """The items of a tuple as they lie there: a subclass may count and list them as it likes."""
    if not issubclass(type(answer), tuple):
        return None
    return tuple.__getitem__(cast("tuple[object, ...]", answer), slice(None))


def _given(answer: object) -> str:
    """What was answered, for a message; a coroutine is closed, so that nobody is told that it was never awaited."""
    text = describe(answer)
    if type(answer) is CoroutineType:
        answer.close()
    return text


def check_parameters(answer: object) -> Parameters | None:
    """The answer of `layerport_convert_parameters`."""
    if answer is None or is_parameters(answer):
        return answer
    raise WrongAnswerError(
        f"returned {_given(answer)}, expected Parameters",
        "return parameters.replace(name=array), or None for the parameters as they are",
    )


def check_plugin(answer: object) -> PluginSpec | None:
    """The answer of `layerport_create_plugin`."""
    if answer is None or is_plugin_spec(answer):
        return answer
    raise WrongAnswerError(
        f"returned {_given(answer)}, expected a PluginSpec",
        "return a layerport.PluginSpec, or None for the plugin made from the layer's kernels",
    )


def made(info: PackInfo, offer: Lossy, place: str, trace: bool) -> BoundLayer:
    """What a lossy claim puts there, while somebody looks for what the pack changes."""
    hook = "layerport_export_parameters"
    call = HookCall(info, hook, offer.make, offer.layer.name, place, trace, is_watched=True)
    return call.ask({}, functools.partial(check_made, offer))


def check_made(offer: Lossy, answer: object) -> BoundLayer:
    """What the function of a lossy claim returned, with the bound of the claim."""
    if not is_bound_layer(answer) or answer.layer is not offer.layer:
        raise WrongAnswerError(
            f"answers with a lossy claim whose function returned {_given(answer)}, expected {offer.layer.name} with "
            "parameters",
            f"return {offer.layer.short_name}.bind(...)",
        )
    return replace(answer, loss=float(offer.bound))


def layers_of(candidate: Candidate | Lossy) -> tuple[Layer, ...]:
    """The layers that a candidate uses."""
    return candidate.layers if isinstance(candidate, Rewrite) else (candidate.layer,)
