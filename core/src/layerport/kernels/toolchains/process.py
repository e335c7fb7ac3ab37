"""Compiler processes: they read jobs, answer one after the other, and can be ended.

What `nvrtc` and `triton` share.  A compiler runs in a process of its own because native code cannot be
interrupted, and because a crash in it must not take this process along.

In:  a JSON list of jobs; each has "limit", seconds.
Out: for each job a length (4 bytes, little-endian), a JSON object with "ok" and "size", then so many bytes.  The
child ends after the first job that is not ok, and ends itself at a job's limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from layerport.system.processes import Program

_CHILD = Path(__file__).with_name("child.py")
_MOST_CHILDREN = 8


@dataclass(frozen=True)
class Answer:
    """What became of a job: its head and bytes; or, where its process ended before, why.

    head: None where there is no answer.  timed_out: the job's limit passed.  status: the process's exit status.
    errors: the last lines that it wrote.
    """

    head: dict[str, Any] | None
    data: bytes = b""
    timed_out: bool = False
    status: int = 0
    errors: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.head is not None and self.head["ok"] is True


def run_jobs(
    compiler: str,
    jobs: Sequence[Mapping[str, Any]],
    *,
    grace: float,
    most: int = _MOST_CHILDREN,
    environment: Mapping[str, str] | None = None,
) -> dict[int, Answer]:
    """The answers by position, from as many processes as there are cores, each with its share of the jobs.

    compiler: as `child` knows it.  grace: seconds for a process to start and to write, beside its jobs' limits.
    Stops at the first job that is not ok, which is then the last of the answers; no process is left either way.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    width = min(len(jobs), cores, most)
    answers: dict[int, Answer] = {}
    with contextlib.ExitStack() as stack:
        children = [_Child(compiler, jobs[start::width], stack, environment) for start in range(width)]
        for start, process in enumerate(children):
            for position, answer in enumerate(process.answers(grace)):
                answers[start + position * width] = answer
                if not answer.ok:
                    return answers
    return answers


class _Child:
    """One compiler process at work on its share of the jobs.  It is ended when the stack closes."""

    def __init__(
        self,
        compiler: str,
        jobs: Sequence[Mapping[str, Any]],
        stack: contextlib.ExitStack,
        environment: Mapping[str, str] | None,
    ) -> None:
        self.jobs = jobs
        # Files, not pipes: a child must not wait until this process has time to read.
        self.output = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self.errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        with tempfile.TemporaryFile() as source:
            source.write(json.dumps(list(jobs)).encode())
            source.seek(0)
            self.started = time.monotonic()
            self.program = stack.enter_context(
                Program(
                    [sys.executable, "-P", str(_CHILD), compiler],
                    stdin=source,
                    stdout=self.output,
                    stderr=self.errors,
                    env=None if environment is None else dict(environment),
                )
            )

    def answers(self, grace: float) -> list[Answer]:
        """The answers of its jobs, once it has ended; the last one may be not ok."""
        # The child ends itself at a job's limit; this is for systems without interval timers.
        total = sum(job["limit"] for job in self.jobs) + grace
        timed_out = False
        try:
            self.program.process.wait(max(0.0, self.started + total - time.monotonic()))
        except subprocess.TimeoutExpired:
            timed_out = True
            self.program.end()
        self.output.seek(0)
        answers = []
        for _ in self.jobs:
            answer = _read(self.output)
            answers.append(self._stopped(timed_out) if answer is None else answer)
            if not answers[-1].ok:
                break
        return answers

    def _stopped(self, timed_out: bool) -> Answer:
        status = self.program.process.returncode
        self.errors.seek(0)
        tail = self.errors.read().decode(errors="replace").strip().splitlines()[-5:]
        return Answer(
            None,
            timed_out=timed_out or status == -getattr(signal, "SIGALRM", 0),
            status=status,
            errors=tuple(tail),
        )


def _read(file: BinaryIO) -> Answer | None:
    length = file.read(4)
    if len(length) < 4:
        return None
    data = file.read(int.from_bytes(length, "little"))
    try:
        head: dict[str, Any] = json.loads(data)
    except ValueError:
        return None
    payload = file.read(head.get("size", 0))
    return Answer(head, payload) if len(payload) == head.get("size", 0) else None
