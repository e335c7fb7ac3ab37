"""Finds what was changed in a module tree and its tensors: structure, hooks, attributes, contents.

For code that may only read a model: the packs' hooks.  A look must be cheap: `ReadOnly` sees what operators write,
identities are compared for everything else, and a glimpse of a few bytes of a tensor shows most of what is written to
its memory behind Torch's back.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from layerport.packs.torch_writes import ReadOnly, named_tensors

_CONTAINERS = frozenset({dict, OrderedDict, list, set})
_SIMPLE = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size})
_GLIMPSE = 64  # bytes at the beginning, the middle and the end


class ModelWatch:
    """A module tree and named tensors as they are now; within the block, what operators write is kept and put back.

    module: None where only tensors are watched.
    """

    def __init__(self, module: torch.nn.Module | None, tensors: Mapping[str, torch.Tensor]) -> None:
        self._modules = [_ModuleState(path, part) for path, part in module.named_modules()] if module else []
        self._classes = [(kind, dict(vars(kind))) for kind in {type(state.module) for state in self._modules}]
        self._tensors = {**(named_tensors(module) if module else {}), **tensors}
        self._flags = {name: (tensor.requires_grad, tensor.grad) for name, tensor in self._tensors.items()}
        self._glimpses = {name: _glimpse(tensor) for name, tensor in self._tensors.items()}
        self._kept = ReadOnly(self._tensors)
        self._is_unchanged = False

    def __enter__(self) -> ModelWatch:
        self._kept.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        self._kept.__exit__(*raised)
        if self._is_unchanged:
            return
        for name, tensor in self._tensors.items():
            requires_grad, grad = self._flags[name]
            if tensor.requires_grad != requires_grad and tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
            if tensor.is_leaf and tensor.grad is not grad:
                tensor.grad = grad
        for state in self._modules:
            state.restore()
        for kind, before in self._classes:
            for name in _differing(vars(kind), before):
                if name in before:
                    setattr(kind, name, before[name])
                else:
                    delattr(kind, name)

    def changes(self) -> list[str]:
        """What is otherwise than at the beginning, as texts; asked last in the block."""
        written = self._kept.written()
        found = [f"the values of {name}" for name in written]
        for name, tensor in self._tensors.items():
            requires_grad, grad = self._flags[name]
            if tensor.requires_grad != requires_grad:
                found.append(f"requires_grad of {name}")
            if tensor.is_leaf and tensor.grad is not grad:
                found.append(f"the gradient of {name}")
            if name not in written and _glimpse(tensor) != self._glimpses[name]:
                found.append(f"the values of {name} (behind Torch's back: they cannot be put back)")
        for state in self._modules:
            found += state.changes()
        for kind, before in self._classes:
            found += [f"{name} of class {kind.__name__}" for name in _differing(vars(kind), before)]
        self._is_unchanged = not found
        return found


class _ModuleState:
    """The attributes of one module, and the contents of its containers and plain objects."""

    __slots__ = ("_attributes", "_contents", "_empty", "_objects", "module", "path")

    def __init__(self, path: str, module: torch.nn.Module) -> None:
        self.path, self.module = path, module
        self._attributes = vars(module).copy()
        self._empty: list[Any] = []  # most of a module's dicts are, and are looked at in one go
        self._contents: list[tuple[str, Any, Any]] = []
        self._objects: list[tuple[str, Any, dict[str, Any]]] = []
        for name, value in self._attributes.items():
            kind = type(value)
            if kind in _CONTAINERS:
                if value:
                    self._contents.append((name, value, kind(value)))
                else:
                    self._empty.append(value)
            elif kind not in _SIMPLE and _is_plain_object(value):
                self._objects.append((name, value, vars(value).copy()))

    def changes(self) -> list[str]:
        found = _differing(vars(self.module), self._attributes)
        if any(self._empty):
            found += [
                name for name, value in self._attributes.items() if any(value is one for one in self._empty if one)
            ]
        found += [name for name, value, before in self._contents if not _same_contents(value, before)]
        found += [
            f"{name}.{attribute}"
            for name, value, before in self._objects
            for attribute in _differing(vars(value), before)
        ]
        place = self.path or "the root module"
        return [f"{name.strip('_').replace('_', ' ')} of {place}" for name in dict.fromkeys(found)]

    def restore(self) -> None:
        for value in self._empty:
            value.clear()
        for _, value, before in self._contents:
            if not _same_contents(value, before):
                value.clear()
                (value.extend if isinstance(value, list) else value.update)(before)
        for _, value, before in self._objects:
            if _differing(vars(value), before):
                vars(value).clear()
                vars(value).update(before)
        if _differing(vars(self.module), self._attributes):
            vars(self.module).clear()
            vars(self.module).update(self._attributes)


def _differing(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    if len(now) == len(before) and all(map(_is, now.values(), before.values())):
        return []  # the usual case; a change of order is looked at below
    missing = object()
    names = dict.fromkeys([*before, *now])
    return [name for name in names if not _is(now.get(name, missing), before.get(name, missing))]


def _is(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and type(one) in _SIMPLE and (one == other or one != one))


def _same_contents(now: Any, before: Any) -> bool:
    if len(now) != len(before):
        return False
    if isinstance(now, set):
        return bool(now == before)
    if isinstance(now, list):
        return all(map(_is, now, before))
    return all(map(_is, now.values(), before.values())) and list(now) == list(before)


def _is_plain_object(value: Any) -> bool:
    """Whether it may hold settings: a configuration, but no class, function, tensor or module."""
    if isinstance(value, (torch.nn.Module, torch.Tensor, type)) or callable(value):
        return False
    return isinstance(getattr(value, "__dict__", None), dict)


def _glimpse(tensor: torch.Tensor) -> tuple[bytes, ...]:
    """A few bytes of a tensor's memory on the CPU."""
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or type(tensor) not in _PLAIN_TENSORS:
        return ()
    storage = tensor.untyped_storage()
    size, start = storage.nbytes(), storage.data_ptr()
    if not start or not size:
        return ()
    return tuple(ctypes.string_at(start + offset, length) for offset, length in _parts(size))


def _parts(size: int) -> Iterator[tuple[int, int]]:
    if size <= 3 * _GLIMPSE:
        yield 0, size
        return
    for offset in (0, (size - _GLIMPSE) // 2, size - _GLIMPSE):
        yield offset, _GLIMPSE


_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
