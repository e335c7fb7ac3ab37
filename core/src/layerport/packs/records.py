"""The records that packs answer hooks with, checked when they are made, and how to tell them apart.

Pack authors reach `rewrite` and `lossy` through `layerport`; the host (`packs`, `calls`) uses the rest.  A record is
told by its very class: a subclass, or an object that names another `__class__`, may answer as it likes.  Imports no
framework.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import layerport.parameters
from layerport.bundle.plugin_spec import PluginSpec
from layerport.errors import UsageError
from layerport.layers.layer import BoundLayer, Layer
from layerport.system.foreign_text import describe

if TYPE_CHECKING:
    from layerport.bundle.plugin_spec import PluginSpec
    from layerport.layers.layer import BoundLayer, Layer
    from layerport.parameters.standard_form import Parameters

Candidate: TypeAlias = "BoundLayer | Rewrite"
ExportAnswer: TypeAlias = "Candidate | Lossy | tuple[Candidate | Lossy, ...] | None"


@dataclass(frozen=True, eq=False)
class Rewrite:
    """A forward for the structural copy of a module, written with layers and the module's own children.

    forward: called as `forward(module, *args, **kwargs)` with the copy of the module, never the original.
    layers: every layer that it calls.  probe: whether the module may be run on other numbers than the model's.
    """

    forward: Callable[..., Any]
    layers: tuple[Layer, ...]
    probe: bool = True

    def __post_init__(self) -> None:
        faults = [*_forward_faults(self.forward), *_layers_faults(self.layers)]
        if type(self.probe) is not bool:
            faults.append(f"probe: expected a bool, got {describe(self.probe)}")
        if faults:
            raise UsageError(
                f"rewrite {_name_of(self.forward)} has {len(faults)} fault{'s' if len(faults) > 1 else ''}",
                "write lp.rewrite(forward, layers=(my_layer,)) with a function forward(module, *inputs)",
                faults=faults,
            )


def rewrite(forward: Callable[..., Any], *, layers: Sequence[Layer], probe: bool = True) -> Rewrite:
    """Answer `layerport_export_parameters` where a layer is one step inside a module's forward.

    forward: takes the copy of the module and then what the module's own forward takes.
    layers: the layers that it calls, at least one.
    probe: False where the module must not be run on random numbers, because it takes floating-point inputs as indices
    or sizes without a check; the claim is proven on the model's own inputs only.
    Raises UsageError with all faults at once.
    """
    # Anything else goes on as it is, so that the record's own check names it.
    given: Any = layers
    if isinstance(layers, (list, tuple)):
        given = tuple(layers)
    return Rewrite(forward, given, probe)


@dataclass(frozen=True, eq=False)
class Lossy:
    """A layer for a module that does not compute quite the same; see `lossy`."""

    layer: Layer
    make: Callable[[], BoundLayer]
    bound: float

    def __post_init__(self) -> None:
        faults = []
        if not is_layer(self.layer):
            faults.append(f"layer: expected a layer, got {describe(self.layer)}")
        given = suspends(self.make) if callable(self.make) else describe(self.make)
        if given is not None:
            faults.append(f"make: expected a function that returns layer.bind(...), got {given}")
        if type(self.bound) not in (int, float) or not 0 < self.bound < math.inf:
            faults.append(f"bound: expected a finite number above 0, got {describe(self.bound)}")
        if faults:
            raise UsageError(
                f"a lossy claim has {len(faults)} fault{'s' if len(faults) > 1 else ''}",
                "write lp.lossy(my_layer, lambda: my_layer.bind(...), bound=0.05)",
                faults=faults,
            )


def lossy(layer: Layer, make: Callable[[], BoundLayer], *, bound: float) -> Lossy:
    """Answer `layerport_export_parameters` where a layer computes nearly, and not quite, what the module computes.

    It is used only for modules that the user names (`--lossy`), where nothing else answers or not.
    make: returns `layer.bind(...)`; it is called for those modules only, and while the hook's answer is taken.
    bound: how far an element of an output may be from the module's, relative to its own magnitude plus the mean of the
    tensor; the claim is refused where it is farther on the example inputs or on probes.
    Several in a tuple are tried in their order.  Raises UsageError with all faults at once.
    """
    return Lossy(layer, make, bound)


def is_lossy(value: object) -> TypeGuard[Lossy]:
    """Whether `value` is what `lossy` returns."""
    return type(value) is Lossy


def is_rewrite(value: object) -> TypeGuard[Rewrite]:
    """Whether `value` is what `rewrite` returns."""
    return type(value) is Rewrite


def is_layer(value: object) -> TypeGuard[Layer]:
    """Whether `value` is a layer."""
    return type(value) is Layer


def is_bound_layer(value: object) -> TypeGuard[BoundLayer]:
    """Whether `value` is what `layer.bind(...)` returns."""
    return type(value) is BoundLayer


def is_parameters(value: object) -> TypeGuard[Parameters]:
    """Whether `value` is a set of parameters in the standard form."""
    return type(value) is layerport.parameters.standard_form.Parameters


def is_plugin_spec(value: object) -> TypeGuard[PluginSpec]:
    """Whether `value` describes a plugin."""
    return type(value) is PluginSpec


def suspends(function: Callable[..., Any]) -> str | None:
    """What kind of function this is, if calling it only makes an object that runs later."""
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        return "a generator function"
    return "an async function" if inspect.iscoroutinefunction(function) else None


def _name_of(forward: object) -> str:
    return str(getattr(forward, "__qualname__", None) or type(forward).__name__)


def _is_module(value: object) -> bool:
    # Looks at the classes' names, because importing torch to look is what this file must not do.
    return any(
        f"{base.__module__}.{base.__qualname__}" == "torch.nn.modules.module.Module" for base in type(value).__mro__
    )


def _forward_faults(forward: object) -> list[str]:
    if not callable(forward):
        return [f"forward: expected a function, got {describe(forward)}"]
    if kind := suspends(forward):
        return [f"forward: expected a function that returns its outputs, got {kind}"]
    if _is_module(forward) or _is_module(getattr(forward, "__self__", None)):
        return ["forward: it belongs to the original module; write it with the copy as first argument"]
    captured = [
        name
        for name, cell in zip(
            getattr(getattr(forward, "__code__", None), "co_freevars", ()),
            getattr(forward, "__closure__", None) or (),
            strict=False,
        )
        if _cell_holds_module(cell)
    ]
    if captured:
        return [f"forward: it captures the original module as {captured[0]!r}; take the copy as first argument"]
    try:
        inspect.signature(forward).bind_partial(object())
    except TypeError:
        return ["forward: it takes no positional argument; its first one is the copy of the module"]
    except ValueError:  # a builtin without a readable signature
        pass
    return []


def _cell_holds_module(cell: Any) -> bool:
    try:
        return _is_module(cell.cell_contents)
    except ValueError:  # not assigned yet
        return False


def _layers_faults(layers: object) -> list[str]:
    if is_layer(layers):
        return [f"layers: expected a tuple of layers, got the layer {layers.name}; write ({layers.short_name},)"]
    if type(layers) is not tuple:
        return [f"layers: expected a tuple of layers, got {describe(layers)}"]
    if not layers:
        return ["layers: expected at least one layer, got none"]
    return [
        f"layers[{index}]: expected a layer, got {describe(item)}"
        for index, item in enumerate(layers)
        if not is_layer(item)
    ]
