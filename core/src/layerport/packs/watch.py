"""Finds what a pack changes that it may only read: the model, parameters, layers, Torch's settings, random states.

`calls` looks around each call of a hook, `packs` once around all calls that one pack gets for a model, and
`loading` around a pack's import.  A process without Torch has nothing to look at.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import layerport.packs
from layerport.errors import PackError
from layerport.packs.process_state import ProcessState
from layerport.system.foreign_text import shown

if TYPE_CHECKING:
    import numpy as np
    import torch

    from layerport.layers.layer import Layer

# An array above this many bytes is looked at in parts and cannot be put back.
KEPT_WHOLE = 4 << 20
_PART = 4096


class LastingChangeError(PackError):
    """A pack has changed what is not its own, and that cannot be put back."""


@contextlib.contextmanager
def watching(
    context: str,
    *,
    model: torch.nn.Module | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    arrays: Mapping[str, np.ndarray[Any, Any]] | None = None,
    layers: Iterable[Layer] = (),
    notes: list[str] | None = None,
    process: bool = True,
) -> Iterator[None]:
    """Raise PackError where the block changes what is given, a setting of Torch or a random state; put that back.

    context: what the message begins with.  notes: where an import may draw random numbers, because a library that it
    imports may do so, takes down that it did; and what it changed of the process.  process: whether to look at that.
    """
    with contextlib.ExitStack() as stack:
        found = _Process(notes, all_of_it=process)
        stack.callback(found.restore)
        held = [_ArrayState(name, array) for name, array in (arrays or {}).items()]
        known = [(layer, _facts(layer)) for layer in layers]
        watch = None
        if (model is not None or tensors) and "torch" in sys.modules:
            watch = stack.enter_context(layerport.packs.torch_watch.ModelWatch(model, tensors or {}))
        raised: BaseException | None = None
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raised = error
        # An array may be a tensor's memory: put back first, it is not reported twice.
        changes = [f"the values of {state.name}{state.put_back()}" for state in held if state.is_changed()]
        changes += watch.changes() if watch else []
        changes += [f"layer {layer.name}" for layer, facts in known if _facts(layer) != facts]
        changes = list(dict.fromkeys([*changes, *found.changes()]))
        lasting = any(change.endswith("be put back)") for change in changes)
        if raised is not None and not lasting:
            raise raised
        if changes:
            few = changes if len(changes) <= 5 else [*changes[:5], f"and {len(changes) - 5} more"]
            kind = LastingChangeError if lasting else PackError
            raise kind(
                f"{context} changed {', '.join(few)}",
                "read it only: clone a tensor or copy an array before writing to it, and set nothing global",
            ) from raised


class _Process:
    """Torch's settings, the random states and what else the process has one of."""

    def __init__(self, notes: list[str] | None, *, all_of_it: bool) -> None:
        self._notes = notes
        self._settings: Any = None
        self._states: Any = None
        self._rest = ProcessState() if all_of_it else None
        self._names: Any = None
        if "torch" in sys.modules:
            if all_of_it:
                self._names = layerport.packs.torch_patches.TorchNames()
            self._settings, self._states = (
                layerport.packs.torch_state.Settings(),
                layerport.packs.torch_state.RandomStates(),
            )

    def changes(self) -> list[str]:
        changes: list[str] = []
        random: list[str] = []
        if "torch" in sys.modules:
            if self._settings is None:
                self._settings = layerport.packs.torch_state.Settings.initial()
            changes = [f"Torch's {change}" for change in self._settings.changes()]
            random = self._states.changes() if self._states is not None else []
        patched = self._names.changes() if self._names is not None else []
        rest = self._rest.changes() if self._rest is not None else []
        threads = self._rest.threads() if self._rest is not None else []
        if self._notes is None:
            return changes + random + rest + patched
        self._notes += [f"it changed {change} at import, which was put back" for change in random + rest]
        # A library that the pack imports may be meant to do that: a backend for another kind of device.
        self._notes += [f"it replaced {name} at import, for every model of this process" for name in patched[:5]]
        if threads:
            names = ", ".join(map(shown, threads))
            self._notes.append(f"it left a thread running ({names}), which keeps the process from ending by itself")
        return changes

    def restore(self) -> None:
        if self._names is not None and self._notes is None:
            self._names.restore()
        if self._rest is not None:
            self._rest.restore()
        if self._settings is not None:
            self._settings.restore()
        if self._states is not None:
            self._states.restore()


class _ArrayState:
    """The bytes of a parameter's array, which may be those of the user's weight."""

    def __init__(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self.name = name
        self._array = array
        self._is_whole = array.nbytes <= KEPT_WHOLE
        self._before: Any = array.copy() if self._is_whole else self._parts()

    def is_changed(self) -> bool:
        now = self._array.tobytes() if self._is_whole else self._parts()
        return bool(now != (self._before.tobytes() if self._is_whole else self._before))

    def put_back(self) -> str:
        """Put the values back, or the words that they cannot be."""
        if not self._is_whole:
            return " (too many to be put back)"
        self._array[...] = self._before
        return ""

    def _parts(self) -> bytes:
        return sample(self._array)


def sample(array: np.ndarray[Any, Any]) -> bytes:
    """Some thousand elements of an array, from all over it."""
    flat = array.reshape(-1)
    return flat[:: max(1, flat.size // _PART)].tobytes()


def _facts(layer: Layer) -> tuple[Any, ...]:
    return layer.name, layer.version, layer.reference, layer.kernels, layer.shapes_override, layer.signature
