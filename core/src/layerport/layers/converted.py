"""What packs made of a layer's parameters, kept for as long as the parameters live and stay as they are.

Looked up in every call of a layer whose pack converts, so it is a few comparisons.
"""

from __future__ import annotations

import copy
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layerport.foreign import torch_private

Replaced = Mapping[int, torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Kept:
    """The state of one call's parameters and attributes, and the tensors that replace some of them, by place."""

    first: weakref.ref[torch.Tensor]
    # The others are held, so that no new tensor takes the identity of one that is gone.
    others: tuple[tuple[int, torch.Tensor | None], ...]
    states: tuple[tuple[int, int | None, int], ...]  # place, version, address
    attributes: Any
    replaced: Replaced


class ConvertedParameters:
    """The converted parameters of one layer.

    params, attributes: the places of these in the arguments of a call.
    """

    def __init__(self, params: Sequence[int], attributes: Sequence[int]) -> None:
        self._params = tuple(params)
        self._attributes = operator.itemgetter(*attributes) if attributes else None
        self._kept: dict[int, _Kept] = {}
        self._version: Callable[[torch.Tensor], int] = torch_private.versions()  # looked up once: it is in every call

    def get(self, args: Sequence[Any], make: Callable[[], Replaced]) -> Replaced:
        """What replaces arguments in this call, by place; made where these parameters are new or have changed."""
        first = None
        for place in self._params:
            first = args[place]
            if first is not None:
                break
        else:
            return {}
        kept = self._kept.get(id(first))
        if kept is not None and kept.first() is first and self._is_unchanged(kept, args):
            return kept.replaced
        replaced = make()
        key = id(first)
        forget = self._kept.pop
        self._kept[key] = _Kept(
            weakref.ref(first, lambda _: forget(key, None)),
            tuple((place, args[place]) for place in self._params if args[place] is not first),
            tuple(
                (place, None if args[place].is_inference() else self._version(args[place]), args[place].data_ptr())
                for place in self._params
                if args[place] is not None
            ),
            None if self._attributes is None else copy.deepcopy(self._attributes(args)),
            replaced,
        )
        return replaced

    def _is_unchanged(self, kept: _Kept, args: Sequence[Any]) -> bool:
        for place, tensor in kept.others:
            if args[place] is not tensor:
                return False
        for place, version, address in kept.states:
            tensor = args[place]
            # An inference tensor does not count what is written to it.
            if tensor.data_ptr() != address or (version is not None and self._version(tensor) != version):
                return False
        return self._attributes is None or bool(self._attributes(args) == kept.attributes)
