"""Writes a plan while TensorRT makes it: the file is there once, whole, and its digest is known by then.

TensorRT then needs no memory for a serialised copy of the engine.  Used by the build worker; the module of the flavour
is passed in.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerport.engine.plan_fields import PlanFields, Search, read_plan
from layerport.errors import BuildError


@dataclass(frozen=True)
class WrittenPlan:
    """A plan that is on the disk."""

    size: int
    sha256: str


def write_plan(
    trt: Any, path: Path, build: Callable[[Any], bool], check: Callable[[PlanFields], bool]
) -> WrittenPlan | None:
    """Write what `build` gives to the stream writer that it gets; None where one of the two answers False.

    check: whether the file may stay, asked before it has its name.  Nothing is at `path` unless all went well.
    Raises BuildError where the disk does not take it.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb", buffering=0) as file:
            writer = _writer(trt, file)
            built = build(writer)
            if isinstance(writer.failure, OSError):
                raise BuildError(
                    f"writing {path} failed: {writer.failure.strerror}",
                    "free some space, or choose another place with -o",
                ) from writer.failure
            if writer.failure is not None:
                raise writer.failure
            if built and not writer.size:
                raise BuildError(f"TensorRT wrote nothing to {path}", "report this, with the model if you can")
            os.fsync(file.fileno())
        if not built or not check(read_plan(part, writer.search.places)):
            return None
        part.replace(path)
        return WrittenPlan(writer.size, writer.digest.hexdigest())
    finally:
        part.unlink(missing_ok=True)


def _writer(trt: Any, file: Any) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.size = 0
            self.digest = hashlib.sha256()
            self.search = Search()
            self.failure: BaseException | None = None

        def write(self, data: Any, size: int | None = None) -> int:  # none is given, whatever the signature says
            try:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                self.digest.update(data)
                self.search.feed(data)
                self.size += len(data)
            except BaseException as error:  # TensorRT says of one that leaves here only that there was one
                self.failure = error
                return -1
            return len(data)

    return Writer()
