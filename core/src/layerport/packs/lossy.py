"""For which modules the user wishes claims that bring an error of their own, such as quantised weights.

A pack offers such a claim (`records.Lossy`); the host makes it for these modules only.  Imports no framework.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

from layerport.errors import UsageError
from layerport.packs.records import Lossy

Asked: TypeAlias = "Mapping[str, str | Iterable[str] | Mapping[str, float]] | Iterable[str]"
"""What the user wishes: layer to patterns of module paths, or to the greatest error by pattern; or texts."""


@dataclass(frozen=True)
class LossyWish:
    """A layer that may replace the modules at paths like this; limit: the greatest bound that it may declare."""

    layer: str
    pattern: str
    limit: float = math.inf

    def __str__(self) -> str:
        return f"{self.layer}={self.pattern}" + ("" if math.isinf(self.limit) else f":{self.limit:g}")

    def names(self, layer: str, path: str) -> bool:
        """Whether it speaks of this module."""
        return layer == self.layer and fnmatchcase(path, self.pattern)


def allowed(wishes: Iterable[LossyWish], offer: Lossy, path: str) -> bool:
    """Whether the user wishes this of the module at this path; of several wishes the last one counts."""
    own = [one.limit for one in wishes if one.names(offer.layer.name, path)]
    return bool(own) and offer.bound <= own[-1]


def parse_lossy(asked: Asked) -> tuple[LossyWish, ...]:
    """The wishes of a mapping, or of texts "LAYER=PATTERN" and "LAYER=PATTERN:LIMIT".  Raises UsageError."""
    found: list[LossyWish] = []
    faults = []
    if isinstance(asked, Mapping):
        for layer, patterns in asked.items():
            given = patterns if isinstance(patterns, Mapping) else dict.fromkeys(_texts(patterns), math.inf)
            for pattern, limit in given.items():
                if not isinstance(layer, str) or not isinstance(pattern, str) or type(limit) not in (int, float):
                    faults.append(f"{layer!r}: {pattern!r}: {limit!r} is no layer, pattern and number")
                else:
                    found.append(LossyWish(layer, pattern, limit))
    else:
        for text in _texts(asked):
            layer, equals, pattern = text.partition("=")
            pattern, colon, number = pattern.partition(":")
            try:
                found.append(LossyWish(layer, pattern, float(number) if colon else math.inf))
            except ValueError:
                equals = ""
            if not equals or not layer or not pattern:
                faults.append(f"{text!r} is not LAYER=PATTERN or LAYER=PATTERN:LIMIT")
    faults += [f"{one}: the limit is below 0" for one in found if not one.limit >= 0]
    if faults:
        raise UsageError(
            "wishes for lossy claims cannot be read",
            'write them like {"my_pack::my_layer": {"model.layers.*": 0.05}}'
            if isinstance(asked, Mapping)
            else "write them like --lossy my_pack::my_layer=model.layers.*:0.05",
            faults=faults,
        )
    return tuple(found)


def _texts(value: str | Iterable[str]) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value]
