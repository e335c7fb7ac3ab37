"""`layerport check`: starts the conformance kit on a pack in a process of its own, and reads what it says.

`cli` uses this file.  A pack can hang, end or crash its process, and the check in which it did is what failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import layerport.packs
from layerport.commands.tables import as_html, print_table, say
from layerport.errors import BuildError, UsageError, escaped
from layerport.packs.discovery import discover
from layerport.packs.trials import describe_end
from layerport.system.foreign_text import shown
from layerport.system.processes import Program
from layerport.system.records import Record

SECONDS = 120.0
"""How long one check may take; compiling for all architectures is part of one."""
_CHILD = "layerport.testing.conformance.child"
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
_LONGEST = 3
_SLOW = 10.0
"""Seconds from which a check is worth a line."""


@dataclass(frozen=True)
class CheckedThing(Record):
    """One check.  answer: "passed", "failed" or "not run", with the reason; layer, dtype: None where it is of all.

    notes: what it has seen that is no fault, such as the registers of a kernel.
    """

    check: str
    layer: str | None
    dtype: str | None
    answer: str
    reason: str
    notes: tuple[str, ...]
    seconds: float

    @property
    def name(self) -> str:
        return _named(self.check, self.layer, self.dtype)


def _named(check: str, layer: str | None, dtype: str | None) -> str:
    return " ".join(filter(None, (layer, dtype, check)))


@dataclass(frozen=True)
class CheckReport(Record):
    """Every check of a pack, in order.  gpu: whether a GPU was asked too.  passed: whether none failed."""

    pack: str
    gpu: bool
    passed: bool
    checks: tuple[CheckedThing, ...]

    def _repr_html_(self) -> str:
        return as_html(render_check, self)


def check_pack(
    pack: str,
    *,
    layers: Sequence[str] = (),
    gpu: bool = False,
    seconds: float = SECONDS,
    tell: Callable[[CheckedThing], None] = lambda one: None,
    begin: Callable[[str], None] = lambda name: None,
) -> CheckReport:
    """Run the conformance kit on an installed pack, or a Python file that is one.

    layers: only these.  gpu: also on this machine's GPU.  seconds: what each check may take; the one that takes longer
    fails and is the last.  tell: called with each check as it ends; begin: with its layer, dtype and name before it.
    Raises UsageError for a pack, a layer or a GPU that is not there.
    """
    layerport.packs.named.info_of_name(pack, discover())
    checks: list[CheckedThing] = []
    current: dict[str, Any] = {"check": "pack", "layer": None, "dtype": None}
    since = time.monotonic()
    late = threading.Event()
    is_done = False
    with tempfile.TemporaryFile() as errors, _start(pack, layers, gpu, errors) as program:

        def stop() -> None:
            late.set()
            program.kill()

        clock = threading.Timer(seconds, stop)
        clock.start()
        try:
            assert program.process.stdout is not None
            for line in program.process.stdout:
                said = json.loads(line)
                if "error" in said:
                    raise UsageError(said["error"]["fault"], said["error"]["repair"], faults=said["error"]["faults"])
                is_done = is_done or "done" in said
                current, since = said.get("begin", current), time.monotonic()
                if "begin" in said:
                    begin(_named(**current))
                if "end" in said:
                    checks.append(CheckedThing(**{**said["end"], "notes": tuple(said["end"]["notes"])}))
                    tell(checks[-1])
                clock.cancel()
                clock = threading.Timer(seconds, stop)
                clock.start()
        finally:
            clock.cancel()
            program.end()
            if program.process.stdout is not None:
                program.process.stdout.close()
        errors.seek(0)
        printed = shown(errors.read().decode(errors="replace")[-2000:])
    if not is_done:
        code = program.process.returncode
        if late.is_set():
            fault, repair = f"it does not end within {seconds:g} s", "see what it waits for, or check smaller shapes"
        else:
            fault = describe_end(-code if code < 0 else code << 8)
            repair = f"the process said last: {printed or 'nothing'}"
        reason = f"{fault}\n  to repair: {repair}"
        spent = round(time.monotonic() - since, 3)
        checks.append(CheckedThing(**current, answer=FAILED, reason=reason, notes=(), seconds=spent))
        tell(checks[-1])
    return CheckReport(pack, gpu, all(one.answer != FAILED for one in checks), tuple(checks))


@contextlib.contextmanager
def shown_checks(*, enabled: bool = True) -> Iterator[Callable[[str], None]]:
    """A function to tell of each check that begins, by its name; it prints nothing where not enabled.

    On a terminal the check that runs and its seconds; elsewhere a line for each layer and dtype, and one for a check
    that takes long.
    """
    if not enabled:
        yield lambda name: None
    elif sys.stderr.isatty():
        with _live() as begin:
            yield begin
    else:
        with contextlib.closing(_Lines()) as lines:
            yield lines.begin


@contextlib.contextmanager
def _live() -> Iterator[Callable[[str], None]]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:

        def begin(name: str) -> None:
            for task in bar.task_ids:
                bar.remove_task(task)
            bar.add_task(escaped(name), total=None)

        yield begin


class _Lines:
    """Tells of checks line by line."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._of = ""
        self._clock: threading.Timer | None = None

    def begin(self, name: str) -> None:
        self.close()
        of = name.rpartition(" ")[0]
        if of and of != self._of:
            self._say(of)
        self._of = of
        self._clock = threading.Timer(_SLOW, self._say, [f"{name} has run for {_SLOW:g} s"])
        self._clock.daemon = True
        self._clock.start()

    def close(self) -> None:
        if self._clock is not None:
            self._clock.cancel()

    def _say(self, text: str) -> None:
        say(f"[{time.monotonic() - self._since:5.1f} s] {text}", file=sys.stderr)


def render_check(report: CheckReport) -> None:
    """Print a report: what passed in few words, why some was not run, notes, then each failure with its repair."""
    names = list(dict.fromkeys(one.check for one in report.checks))
    rows = {(one.layer or report.pack, one.dtype or ""): dict.fromkeys(names, "") for one in report.checks}
    for one in report.checks:
        rows[one.layer or report.pack, one.dtype or ""][one.check] = {FAILED: "FAILED"}.get(one.answer, one.answer)
    for (layer, dtype), answers in rows.items():
        for answer in (PASSED, NOT_RUN, "FAILED"):
            if found := [name for name, one in answers.items() if one == answer]:
                say(f"{' '.join(filter(None, (layer, dtype)))}: {answer}: {', '.join(found)}")
    reasons = dict.fromkeys((one.layer or "", one.check, one.reason) for one in report.checks if one.answer == NOT_RUN)
    if reasons:
        print_table(["not run", "of", "because"], [[check, layer, reason] for layer, check, reason in reasons])
    for one in report.checks:
        for note in one.notes:
            say(f"{one.name}: {note}")
    for one in report.checks:
        if one.answer == FAILED:
            say(f"FAILED {one.name}: {one.reason}")
    longest = sorted(report.checks, key=lambda one: one.seconds, reverse=True)[:_LONGEST]
    if slow := [f"{one.name} {one.seconds:.0f} s" for one in longest if one.seconds >= _SLOW]:
        say(f"longest: {'; '.join(slow)}")
    counts = [sum(one.answer == answer for one in report.checks) for answer in (PASSED, FAILED, NOT_RUN)]
    layers = len({one.layer for one in report.checks} - {None})
    took = sum(one.seconds for one in report.checks)
    asked = "" if report.gpu else "; no GPU was asked"
    say(
        f"{report.pack}: {layers} layer{'' if layers == 1 else 's'}, {counts[0]} passed, {counts[1]} failed, "
        f"{counts[2]} not run in {took:.0f} s{asked}"
    )


def write_junit(report: CheckReport, path: str | Path) -> None:
    """Write a report as JUnit has it, which CI services show.  Raises BuildError where the file cannot be written."""
    suite = ElementTree.Element(
        "testsuite",
        name=f"layerport check {report.pack}",
        tests=str(len(report.checks)),
        failures=str(sum(one.answer == FAILED for one in report.checks)),
        skipped=str(sum(one.answer == NOT_RUN for one in report.checks)),
        errors="0",
    )
    for one in report.checks:
        names = {"classname": one.layer or report.pack, "name": " ".join(filter(None, (one.dtype, one.check)))}
        test = ElementTree.SubElement(suite, "testcase", {**names, "time": str(one.seconds)})
        if one.answer != PASSED:
            text = escaped(one.reason)
            kind = "failure" if one.answer == FAILED else "skipped"
            ElementTree.SubElement(test, kind, message=text.splitlines()[0]).text = text
    try:
        Path(path).write_bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))
    except OSError as error:
        raise BuildError(f"{path} cannot be written: {error.strerror}", "name another file with --junit") from error


def _start(pack: str, layers: Sequence[str], gpu: bool, errors: Any) -> Program:
    # The working folder stays out of the path, as in the command itself.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(one or os.getcwd() for one in sys.path)}
    command = [sys.executable, "-P", "-m", _CHILD, pack, str(int(gpu)), *layers]
    return Program(command, stdout=subprocess.PIPE, stderr=errors, env=environment, encoding="utf-8", errors="replace")
