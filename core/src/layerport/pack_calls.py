"""The one place through which every call into a pack goes, and the checks of what comes back.

A fault in a pack leaves here with the pack, its version, the hook, the layer and the module's path, chained
to the original.  Only `pack_loading` and `packs` import this file.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from layerport.errors import LayerportError, PackError
from layerport.pack_discovery import DISABLE_VARIABLE, PackInfo
from layerport.pack_watch import watching
from layerport.records import (
    Candidate,
    Rewrite,
    describe,
    is_bound_layer,
    is_layer,
    is_parameters,
    is_plugin_spec,
)

if TYPE_CHECKING:
    from layerport.layers import Layer
    from layerport.parameters import Parameters
    from layerport.plugin_spec import PluginSpec

_Answer = TypeVar("_Answer")


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
    """

    info: PackInfo
    hook: str
    function: Callable[..., Any]
    layer: str | None = None
    path: str | None = None
    trace: bool = False
    is_watched: bool = False

    @property
    def context(self) -> str:
        """Which call this is, for a message."""
        layer = f" for layer {self.layer}" if self.layer else ""
        place = "" if self.path is None else f" at {self.path or 'the root module'}"
        return f"pack {self.info.label}: {self.hook}{layer}{place}"

    def ask(self, arguments: Mapping[str, Any], check: Callable[[object], _Answer]) -> _Answer:
        """Call the hook and return its checked answer; raises PackError for whatever the pack does wrong.

        What the pack prints goes to stderr, because stdout belongs to the command's answer.
        KeyboardInterrupt passes.
        """
        start = time.perf_counter()
        watch = contextlib.nullcontext() if self.is_watched else watching(self.context, **_read_only(arguments))
        with watch:
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    answer = self.function(**arguments)
            except (Exception, SystemExit) as error:
                self._print_trace(start, f"raised {type(error).__name__}")
                self._raise_from(error)
        self._print_trace(start, summarise(answer))
        try:
            return check(answer)
        except WrongAnswerError as verdict:
            raise PackError(f"{self.context} {verdict.fault}", verdict.repair) from None

    def _raise_from(self, error: BaseException) -> NoReturn:
        repair = f"report it to the pack's author, or block the pack with {DISABLE_VARIABLE}={self.info.name}"
        if isinstance(error, LayerportError):
            raise PackError(f"{self.context}: {error.fault}", error.repair or repair, faults=error.faults) from error
        raise PackError(f"{self.context} raised {reason(error)}", repair) from error

    def _print_trace(self, start: float, result: str) -> None:
        if self.trace:
            elapsed = (time.perf_counter() - start) * 1e3
            print(f"layerport trace: {self.context} -> {result} ({elapsed:.3f} ms)", file=sys.stderr)


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


def reason(error: BaseException) -> str:
    """An exception in one line: `ValueError: no such thing`."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def summarise(answer: object) -> str:
    """An answer in a few words, for the trace."""
    if isinstance(answer, tuple):
        return f"({', '.join(map(summarise, answer))})"
    if isinstance(answer, Rewrite):
        return f"rewrite with {', '.join(layer.name for layer in answer.layers)}"
    if answer is None:
        return "None"
    layer = getattr(answer, "layer", answer)
    name = getattr(layer, "name", None)
    kind = type(answer).__name__
    return f"{kind} {name}" if isinstance(name, str) else kind


def check_layers(answer: object) -> tuple[Layer, ...]:
    """The answer of `layerport_layers`."""
    wanted = "a tuple of layers"
    repair = "return a tuple of layers made by @lp.layer, as in (first_layer, second_layer)"
    if is_layer(answer):
        raise WrongAnswerError(f"returned one layer, expected {wanted}", f"return ({answer.short_name},)")
    if not isinstance(answer, tuple):
        raise WrongAnswerError(f"returned {describe(answer)}, expected {wanted}", repair)
    for index, item in enumerate(answer):
        if not is_layer(item):
            raise WrongAnswerError(f"returned {describe(item)} at index {index}, expected a layer", repair)
    names = [layer.name for layer in answer]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise WrongAnswerError(f"returned {', '.join(twice)} more than once", "return each layer once")
    return answer


def check_export(answer: object) -> tuple[Candidate, ...]:
    """The answer of `layerport_export_parameters` as candidates; none where nothing is claimed."""
    if answer is None:
        return ()
    many = isinstance(answer, tuple)
    candidates: Iterable[object] = answer if isinstance(answer, tuple) else (answer,)
    checked: list[Candidate] = []
    for index, item in enumerate(candidates):
        if isinstance(item, Rewrite) or is_bound_layer(item):
            checked.append(item)
            continue
        place = f" at index {index}" if many else ""
        repair = "return layer.bind(...), lp.rewrite(...), a tuple of them, or None"
        if is_layer(item):
            raise WrongAnswerError(
                f"returned the layer {item.name} without parameters{place}",
                f"return {item.short_name}.bind(...) with the module's parameters",
            )
        raise WrongAnswerError(f"returned {describe(item)}{place}, expected a bound layer or a rewrite", repair)
    return tuple(checked)


def check_parameters(answer: object) -> Parameters | None:
    """The answer of `layerport_convert_parameters`."""
    if answer is None or is_parameters(answer):
        return answer
    raise WrongAnswerError(
        f"returned {describe(answer)}, expected Parameters",
        "return parameters.replace(name=array), or None for the parameters as they are",
    )


def check_plugin(answer: object) -> PluginSpec | None:
    """The answer of `layerport_create_plugin`."""
    if answer is None or is_plugin_spec(answer):
        return answer
    raise WrongAnswerError(
        f"returned {describe(answer)}, expected a PluginSpec",
        "return a layerport.PluginSpec, or None for the plugin made from the layer's kernels",
    )


def layers_of(candidate: Candidate) -> tuple[Layer, ...]:
    """The layers that a candidate uses."""
    return candidate.layers if isinstance(candidate, Rewrite) else (candidate.layer,)
