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

RUN_LIMIT = 60.0
"""Seconds that one run may take, unless the caller says otherwise."""

PATIENCE = 2.0
"""Seconds more for a run to end itself when its time is up, and to say where it was."""

GARBAGE = (0xFF, 0x7A)
"""What bytes are that nothing has written, in a first and in a second run: NaN or -1, and neither."""

OUTPUT_GARBAGE = (0xFF, 0x7B)
"""The same for outputs: other bytes, so that garbage which a kernel copies there is told from what it leaves there."""


class TimeUp(PackError):
    """A kernel did not end in the time that it was given."""


def offset_of(offset: Offset, name: str) -> int:
    """The bytes for one tensor."""
    return offset if isinstance(offset, int) else offset.get(name, 0)


def time_up(label: str, limit: float, *, at: str = "") -> TimeUp:
    """The error for a kernel that did not end.  at: where it was then."""
    return TimeUp(
        f"{label} did not end within {limit:.3g} s",
        "look for a loop that never ends, or that waits for another block: blocks run one after another here",
        faults=[at] if at else (),
    )
