"""Finds functions of Torch that somebody has replaced: in its namespaces, in its tensors and in its modules.

For `watch`.  It imports Torch, so callers look first whether the process has it.
"""

from __future__ import annotations

import operator
import os
from typing import Any

import torch

_HOLDERS: dict[str, Any] = {
    "torch": torch,
    "torch.nn.functional": torch.nn.functional,
    "torch.nn": torch.nn,
    "torch.Tensor": torch.Tensor,
    "torch.nn.Module": torch.nn.Module,
}
_MISSING = object()
_FOLDER = os.path.dirname(torch.__file__) + os.sep


class TorchNames:
    """What these namespaces name at one moment."""

    def __init__(self) -> None:
        self._before = {place: dict(vars(holder)) for place, holder in _HOLDERS.items()}

    def changes(self) -> list[str]:
        """What names something else now, such as "torch.relu"; a name that is new is Torch's own, loaded late."""
        return [f"{place}.{name}" for place, before in self._before.items() for name in _replaced(place, before)]

    def restore(self) -> None:
        """Let every name mean again what it meant."""
        for place, before in self._before.items():
            for name in _replaced(place, before):
                setattr(_HOLDERS[place], name, before[name])


def _replaced(place: str, before: dict[str, Any]) -> list[str]:
    now = vars(_HOLDERS[place])
    if all(map(operator.is_, before.values(), map(now.get, before))):
        return []
    found = [name for name, one in before.items() if now.get(name, _MISSING) is not one]
    return [name for name in found if not _is_of_torch(now.get(name))]


def _is_of_torch(value: object) -> bool:
    """Whether a function stands in Torch's own files: it wraps some of its functions when a part is loaded late."""
    code = getattr(value, "__code__", None)
    return code is not None and code.co_filename.startswith(_FOLDER)
