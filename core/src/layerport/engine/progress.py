"""What a build tells while it runs: by itself, and from the process in which TensorRT builds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from layerport.system.records import Record


@dataclass(frozen=True)
class ProgressEvent(Record):
    """What a build tells while it runs; `layerport.build(progress=...)` is called with each.

    stage: "load", "claim", "export", "compile", "write", "engine" or "verify".
    kind: "stage" where it begins; "note" and "log" have a text for people, the second from TensorRT; its "phase" begins
    within `parent` and has so many `steps`, a "step" of it (from 0) is done, and it comes to its "finish".
    """

    stage: str
    kind: Literal["stage", "note", "log", "phase", "step", "finish"]
    text: str | None = None
    phase: str | None = None
    parent: str | None = None
    step: int | None = None
    steps: int | None = None


Tell: TypeAlias = Callable[[ProgressEvent], None]
