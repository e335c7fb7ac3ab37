"""What TensorRT makes of a layer's decomposed form by itself: how many kernels, or why it refuses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from layerport.system.records import Record


@dataclass(frozen=True)
class Alone(Record):
    """What TensorRT makes of the body of some nodes of a layer.

    kernels: what its plan runs, by TensorRT's names; None where there is none, and `fault` says why.
    """

    layer: str
    nodes: tuple[str, ...]
    kernels: tuple[str, ...] | None
    fault: str | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Alone:
        """What `to_json` wrote."""
        kernels = value["kernels"]
        return cls(value["layer"], tuple(value["nodes"]), None if kernels is None else tuple(kernels), value["fault"])

    def __str__(self) -> str:
        if self.kernels is None:
            return self.fault or "refused"
        return f"{len(self.kernels)} kernel{'s' if len(self.kernels) != 1 else ''}"
