"""What the checks of the kit are told apart by, and how one says no."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from layerport.errors import escaped

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


class FoundFaultError(Exception):
    """A check has found a fault: the fault with its values, then what to change; several of one thing at once."""

    def __init__(self, fault: str, repair: str, *, faults: Sequence[str] = ()) -> None:
        self.fault, self.repair, self.faults = fault, repair, tuple(faults)
        super().__init__(fault)

    def __str__(self) -> str:
        lines = [self.fault, *(f"  - {one}" for one in self.faults), f"  to repair: {self.repair}"]
        return escaped("\n".join(lines))


class NotApplicableError(Exception):
    """A check says nothing about this layer; the reason."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold.  layer, dtype: None where it is of the whole pack, or of all dtypes.

    run: raises FoundFaultError, NotApplicableError, or whatever the pack raises; may return notes for the report.
    """

    name: str
    layer: str | None
    dtype: str | None
    run: Callable[[], Sequence[str] | None] = field(repr=False, compare=False)

    @property
    def id(self) -> str:
        """A name that no other check of the pack has: `demo::scale-float32-kernel`."""
        return "-".join(filter(None, (self.layer, self.dtype, self.name)))


@dataclass(frozen=True)
class Verdict:
    """What came of a check.

    answer: "passed", "failed" or "not run".  reason: why, with the repair.  notes: what else is worth knowing.
    """

    answer: str
    reason: str = ""
    notes: tuple[str, ...] = ()
