"""Kernels on the CPU: CUDA C++ through a host compiler, Triton under its interpreter, each in a process of its own.

What the check of a build and `layerport.testing` run; it shows numbers, bounds and launch rules, never speed or true
concurrency.  No fallback for a missing GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from layerport.errors import PackError

Offset: TypeAlias = "int | Mapping[str, int]"
"""Bytes by which the pointers of a run miss an allocation's alignment: of all, or by the tensor's name."""

RUN_LIMIT = 300.0
"""Seconds that one run may take, unless the caller says less."""


class TimeUp(PackError):
    """A kernel did not end in the time that it was given."""


def offset_of(offset: Offset, name: str) -> int:
    """The bytes for one tensor."""
    return offset if isinstance(offset, int) else offset.get(name, 0)


def time_up(label: str, limit: float) -> TimeUp:
    """The error for a kernel that did not end."""
    return TimeUp(f"{label} did not end within {limit:.3g} s", "look for a loop that never ends")
