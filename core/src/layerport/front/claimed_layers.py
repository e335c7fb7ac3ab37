"""A layer in the place of a module, and what a module gives with one candidate in its place.

Used by `claims`, which puts layers into the copy of a model, and by `proving`, which tries them.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch

from layerport.errors import UsageError
from layerport.layers.layer import BoundLayer
from layerport.layers.module import LayerModule
from layerport.packs.records import Rewrite


def run_candidate(answer: BoundLayer | Rewrite, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
    """What a call of the module would give if it were this candidate.

    A layer replaces the module with its hooks; a rewrite replaces its forward, and the hooks stay.
    """
    if not isinstance(answer, Rewrite):
        return ClaimedLayer(answer, module)(*args, **kwargs)
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = rewritten(answer, module)
    try:
        return module(*args, **kwargs)
    finally:
        del module.__dict__["forward"]
        if own is not None:
            module.__dict__["forward"] = own


def rewritten(answer: Rewrite, module: torch.nn.Module) -> Callable[..., Any]:
    """The module's forward as this candidate writes it, with the signature of the module's own."""
    return _like(module.forward, types.MethodType(answer.forward, module))


class ClaimedLayer(LayerModule):
    """A layer in the place of a module: takes the module's arguments, by position or name, as the layer's inputs."""

    def __init__(self, bound: BoundLayer, module: torch.nn.Module) -> None:
        super().__init__(bound.layer, bound.parameters, bound.sources)
        self.origins = bound.origins
        self.__dict__["_replaced"] = module  # not a child: its parameters are not this module's
        try:
            self._names: tuple[str, ...] | None = tuple(inspect.signature(module.forward).parameters)
        except (TypeError, ValueError):
            self._names = None
        self.__dict__["forward"] = _like(module.forward, self.forward)

    def __getattr__(self, name: str) -> Any:
        # Modules around it may read its attributes (`self.norm.variance_epsilon`).
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_replaced" not in self.__dict__:  # still being made
                raise
            return getattr(self.__dict__["_replaced"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            args = (*args, *_in_order(self._names, args, kwargs))
        if len(args) > self._most_inputs and any(value is not None for value in args[self._most_inputs :]):
            raise UsageError(
                f"the module takes {len(args)} inputs, layer {self.layer.name} {self._most_inputs}",
                "claim it with layerport.rewrite(forward, layers=...)",
            )
        return super().forward(*args[: self._most_inputs])


def _like(original: Callable[..., Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward with the signature of the module's own, by which torch.export matches dynamic shapes to inputs."""

    @functools.wraps(original)
    def run(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return run


def _in_order(names: tuple[str, ...] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    order = list(names or ())[len(args) :]
    unknown = set(kwargs) - set(order)
    if unknown:
        raise UsageError(
            f"inputs {', '.join(sorted(unknown))} have no place in the layer", "claim with layerport.rewrite"
        )
    last = max(order.index(name) for name in kwargs)
    return [kwargs.get(name) for name in order[: last + 1]]
