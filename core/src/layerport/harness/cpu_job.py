"""What every run of a kernel on the CPU is told, whichever its toolchain.  The runs of each derive from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerport.errors import UsageError
from layerport.harness import Offset
from layerport.kernels.launch_rules import Geometry, LaunchRule

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class CpuJob(ABC):
    """One run of a kernel.

    order: of what runs one after another here, "forward", "backward" or by the number of a seed.  offset: bytes off an
    allocation's alignment.  strict: what a GPU lets pass and may be a fault is one.  once: that two threads (or
    programs) write one element, even the same value, is one too.  time_limit: seconds.
    """

    rule: LaunchRule
    geometry: Geometry
    order: str | int
    offset: Offset
    label: str
    time_limit: float
    strict: bool = True
    once: bool = False

    @abstractmethod
    def run(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], *, garbage: int) -> dict[str, Array]:
        """The outputs that the kernel writes.  Raises PackError for what it must not do, or TimeUp.

        garbage: the byte of what nothing has written.
        """

    def reversed(self) -> CpuJob:
        """The same run with the threads in the opposite order; itself where there are none to turn round."""
        return self

    def require_order(self) -> None:
        """Raise UsageError for an order that is none."""
        if self.order not in ("forward", "backward") and not isinstance(self.order, int):
            raise UsageError(f"order {self.order!r} is unknown", 'use "forward", "backward" or a whole number as seed')
