"""Notes what a pack's export hook makes of a model's tensors, so that each bound parameter keeps where it came from.

Every call of Torch in the hook passes through a mode; what is made without Torch is told by its memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from layerport.foreign import torch_private
from layerport.layers.layer import BoundLayer
from layerport.parameters.origins import Origin
from layerport.parameters.steps import Step, full_name

_ARRAYS = (torch.Tensor, np.ndarray)


@dataclass(frozen=True)
class _Way:
    """How a value came to be.  value: held, so that no other takes its identity."""

    value: Any
    sources: tuple[torch.Tensor, ...]
    steps: tuple[Step, ...]


class Recorder(TorchFunctionMode):
    """Within it, what is made of a model's tensors is noted.  by: who makes it."""

    def __init__(self, model: torch.nn.Module, by: str) -> None:
        super().__init__()
        self._by = by
        self._names: dict[int, list[str]] = {}
        self._tensors: list[torch.Tensor] = []
        named = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
        for name, tensor in (one for each in named for one in each):
            self._names.setdefault(id(tensor), []).append(name)
            self._tensors.append(tensor)
        self._ways: dict[int, _Way] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        written = args[:1] if result is None and _action(func) == "__setitem__" else result
        made = [
            one for one in (written if isinstance(written, (tuple, list)) else (written,)) if isinstance(one, _ARRAYS)
        ]
        if made:  # most calls only ask a tensor for something
            given = [leaf for leaf in torch_private.pytree.tree_leaves((args, kwargs)) if isinstance(leaf, _ARRAYS)]
            action = _action(func)
            for one in made:
                if _changes(action, one, given):
                    self._ways[id(one)] = self._way_of(one, action, given)
        return result

    def _way_of(self, made: Any, action: str, given: list[Any]) -> _Way:
        ways = [way for one in given if (way := self._known(one)) is not None]
        sources = tuple({id(tensor): tensor for way in ways for tensor in way.sources}.values())
        # Two equal steps are two; one that two values have in common is one.
        steps = tuple({id(step): step for way in ways for step in way.steps}.values())
        if not (len(given) == 1 and _is_same(made, given[0])):
            steps += (_step(full_name(type(given[0] if given else made)), made, action, self._by),)
        return _Way(made, sources, steps)

    def _known(self, value: Any) -> _Way | None:
        if id(value) in self._names:
            return _Way(value, (value,), ())
        return self._ways.get(id(value))

    def bound(self, layer: BoundLayer, module: str) -> BoundLayer:
        """A layer that the hook has bound, with where its parameters came from, seen from the module at this path."""
        origins = []
        for name, array in layer.parameters.items():
            path = f"{layer.layer.name}.{name}"
            way = self._way_to(layer.sources.get(name))
            converted = tuple(step for step in layer.steps if step.path == path)
            sources, tied = self._named(way, module)
            steps = tuple(step._replace(path=path) for step in way.steps) + converted
            origins.append(Origin(name, array.dtype.name, array.shape, sources, tied, steps))
        return replace(layer, origins=tuple(origins), steps=tuple(step for one in origins for step in one.steps))

    def forget(self) -> None:
        """Let go of what the hook has made so far."""
        self._ways.clear()

    def _way_to(self, value: Any) -> _Way:
        known = self._known(value)
        if known is not None:
            return known
        if isinstance(value, _ARRAYS) and (shared := self._sharing(value)) is not None:
            return _Way(value, (shared,), (_step(full_name(type(value)), value, "view", self._by),))
        return _Way(value, (), ())

    def _sharing(self, value: Any) -> torch.Tensor | None:
        """The tensor of the model in whose memory a value lies."""
        start = _address(value)
        if start is None:
            return None
        for tensor in self._tensors:
            if (own := _address(tensor)) is None:
                continue
            first = own - tensor.storage_offset() * tensor.itemsize
            if first <= start < first + tensor.untyped_storage().nbytes():
                return tensor
        return None

    def _named(self, way: _Way, module: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of the sources, those within the module first where a tensor has several, and the other names."""
        sources, tied = [], []
        for tensor in way.sources:
            names = self._names[id(tensor)]
            prefix = f"{module}." if module else ""
            first = next((name for name in names if name.startswith(prefix)), names[0])
            sources.append(first)
            tied += [name for name in names if name != first]
        return tuple(sources), tuple(tied)


def _action(func: Any) -> str:
    """What a call of Torch does, in the word that people write for it."""
    name = str(getattr(func, "__name__", func))
    if name in ("__get__", "__set__"):
        name = str(getattr(getattr(func, "__self__", None), "__name__", name))
    return name if name == "__setitem__" else name.strip("_") or name


def _changes(action: str, made: Any, given: list[Any]) -> bool:
    """Whether a call made this value, or wrote to it; not where it handed on what it was given."""
    return action in _WRITES or action.endswith("_") or not any(made is one for one in given)


_WRITES = frozenset({"__setitem__"})


def _is_same(made: Any, given: Any) -> bool:
    """Whether a value is the very memory of another, in the same order."""
    return (
        made is not given
        and (address := _address(made)) is not None
        and address == _address(given)
        and _dtype(made) == _dtype(given)
        and tuple(made.shape) == tuple(given.shape)
        and _strides(made) == _strides(given)
    )


def _step(source: str, made: Any, action: str, by: str) -> Step:
    """A step to this value; of one that is no plain array (sparse, nested, made of others) the sizes are not told."""
    plain = _address(made) is not None
    return Step(source, _dtype(made), tuple(made.shape) if plain else (), made.nbytes if plain else 0, action, by)


def _dtype(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def _strides(value: Any) -> tuple[int, ...]:
    """In elements."""
    if isinstance(value, np.ndarray):
        return tuple(step // value.itemsize for step in value.strides)
    return tuple(value.stride())


def _address(value: Any) -> int | None:
    """Where a value begins in memory; None where it is no plain array of its own."""
    if isinstance(value, np.ndarray):
        return int(value.__array_interface__["data"][0])
    if value.layout is not torch.strided or value.is_nested:
        return None
    try:
        return value.data_ptr() or None
    except RuntimeError:  # a subclass without memory of its own, or on no device
        return None
