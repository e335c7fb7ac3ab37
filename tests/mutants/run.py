"""Changes the core at random and lets the tests of the changed room judge: `python tests/mutants/run.py --help`.

The folder that is changed is the one that `layerport` is installed from, so run this with an editable install of a
copy (`tox run -e mutants` makes one).  A process that holds the heavy libraries forks for each change: the tests that
run the changed line come first, the quickest of them first of all, then quick ones of the room.  Exit code 1 where
fewer changes than wanted are noticed.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import coverage
import pytest
from places import Change, sample

# A room's tests are those in the folder of its name.
ROOMS = (
    "sizes",
    "parameters",
    "kernels",
    "layers",
    "bundle",
    "packs",
    "engine",
    "harness",
    "session",
    "checks",
    "front",
)
# Of this room, what decides whether a plugin is right.
_FRONT = ("realise.py", "size_checks.py")
# Loaded once, before the forks.  Nothing of layerport may be among them.
HEAVY = ("torch", "torch.onnx", "torch.export", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "sympy")
_TEST = "MUTANTS_TEST"
# These rooms compile: what another change left in the cache must not answer for them.
_COLD = ("kernels", "harness")


# Of the tests that are not known to run a line, the quick ones are asked all the same: what a fixture made once, or an
# import, ran it for them too.
OTHERS_SECONDS = 10


class Tests:
    """Chooses and orders the tests of a run; notes how long each took, what it ran, and which failed."""

    def __init__(self, order: dict[str, float] | None = None, measuring: coverage.Coverage | None = None) -> None:
        self.order, self.measuring = order, measuring
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.order is not None:
            kept = [one for one in items if one.nodeid in self.order]
            items[:] = sorted(kept, key=lambda one: self.order[one.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if self.measuring is not None:
            os.environ[_TEST] = item.nodeid
            self.measuring.switch_context(item.nodeid)
        began = time.monotonic()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.monotonic() - began

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def in_child(work: Path, limit: float, run: Any) -> tuple[int, str]:
    """Run a function in a fork, its output in a file; its exit code (-1 where it ran too long) and what it said."""
    log = work / "log.txt"
    child = os.fork()
    if child == 0:
        os.setsid()
        code, opened = 70, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(opened, number)
        try:
            code = run()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end, code = time.monotonic() + limit, -1
    while time.monotonic() < end:
        if (done := os.waitpid(child, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(done[1])
            break
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if code == -1:
        os.waitpid(child, 0)
    return code, log.read_text(errors="replace")


def pytest_run(arguments: list[str], work: Path, plugin: Tests) -> int:
    """pytest in this process, one test after another, with temporary files in `work`."""
    options = ["-x", "-q", "-n", "0", "-p", "no:randomly", "--hypothesis-seed=0", f"--basetemp={work / 'temporary'}"]
    return int(pytest.main([*options, *arguments], plugins=[plugin]))


def measure(room: str, work: Path, core: Path) -> dict[str, Any]:
    """The room's tests on the sound code: how long each takes, and which lines it runs, in child processes too."""
    data = work / "coverage"
    data.mkdir()
    (work / "coveragerc").write_text(
        f"[run]\nparallel = true\ncontext = ${{{_TEST}-}}\ninclude = {core}/*\ndata_file = {data / 'part'}\n"
    )

    def run() -> int:
        os.environ["COVERAGE_PROCESS_START"] = str(work / "coveragerc")
        os.environ["LAYERPORT_CACHE_DIR"] = str(work / "cache")
        measuring = coverage.Coverage(config_file=str(work / "coveragerc"))
        plugin = Tests(measuring=measuring)
        measuring.start()
        code = pytest_run(["--maxfail=1000", f"tests/core/{room}"], work, plugin)
        measuring.stop()
        measuring.save()
        (work / "seconds.json").write_text(json.dumps([plugin.seconds, plugin.failed]))
        return code

    code, said = in_child(work, 3600, run)
    assert code in (0, 1), said
    seconds, failed = json.loads((work / "seconds.json").read_text())
    for one in failed:
        print(f"{room}: left out, fails on the sound code while it is measured: {one}", flush=True)
    combined = coverage.Coverage(config_file=str(work / "coveragerc"))
    combined.combine([str(data)])
    found = combined.get_data()
    lines = {
        str(Path(file).relative_to(core)): {line: [one for one in tests if one] for line, tests in by_line.items()}
        for file in found.measured_files()
        if (by_line := found.contexts_by_lineno(file))
    }
    return {"seconds": {one: took for one, took in seconds.items() if one not in failed}, "lines": lines}


def measured(room: str, work: Path, core: Path) -> dict[str, Any]:
    """What `measure` found, now or in an earlier run."""
    if not (note := work / "measured.json").exists():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        note.write_text(json.dumps(measure(room, work, core)))
    known: dict[str, Any] = json.loads(note.read_text())
    print(f"{room}: {len(known['seconds'])} tests, {sum(known['seconds'].values()):.0f} s", flush=True)
    return known


@contextmanager
def changed(file: Path, source: str, count: int) -> Iterator[None]:
    """The file with another content, put back at the end; Python's cache asks for its time, so each has its own."""
    before, times = file.read_text(), os.stat(file)
    try:
        file.write_text(source)
        os.utime(file, (times.st_mtime + 1 + count, times.st_mtime + 1 + count))
        yield
    finally:
        file.write_text(before)
        os.utime(file, (times.st_mtime, times.st_mtime))


def lines_of(source: str, line: int) -> range:
    """The lines of the innermost statement that holds this line: a condition over two lines counts for its first."""
    found = range(line, line + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if isinstance(body, list) and body else node.end_lineno or 0
            if node.lineno <= line <= last:
                found = range(node.lineno, last + 1)
    return found


def judge(change: Change, room: str, known: dict[str, Any], work: Path, core: Path, count: int) -> dict[str, Any]:
    """Whether the room's tests notice the change, and which one does."""
    source = change.file.read_text()
    lines = known["lines"].get(str(change.file.relative_to(core)), {})
    first = {one for line in lines_of(source, change.line) for one in lines.get(str(line), [])}
    seconds = known["seconds"]
    order = {one: seconds[one] for one in first if one in seconds}
    left = OTHERS_SECONDS if first else 1e6
    for one in sorted(seconds.keys() - first, key=seconds.__getitem__):
        if (left := left - seconds[one]) >= 0:
            order[one] = 1e6 + seconds[one]
    after = change.apply(source)
    told = {
        "room": room,
        "file": str(change.file.relative_to(core)),
        "line": change.line,
        "operator": change.operator.partition("/")[2],
        "occurrence": change.occurrence,
        "before": source.splitlines()[change.line - 1].strip(),
        "after": after.splitlines()[change.line - 1].strip(),
        "tests_of_the_line": len(first),
    }
    cache = work / "changed_cache"
    shutil.rmtree(cache, ignore_errors=True)
    if room not in _COLD and (work / "cache").exists():
        shutil.copytree(work / "cache", cache, copy_function=os.link)

    def run() -> int:
        os.environ["LAYERPORT_CACHE_DIR"] = str(cache)
        return pytest_run(sorted({one.partition("::")[0] for one in order}), work, Tests(order))

    began = time.monotonic()
    with changed(change.file, after, count):
        code, said = in_child(work, 60 + 3 * sum(seconds[one] for one in order), run)
    told["verdict"] = {0: "survived", -1: "too long"}.get(code, "caught")
    by = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return told | {"by": by[0][:300] if by else said[-300:], "seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--room", action="append", choices=ROOMS, help="judge only those changes of the sample")
    parser.add_argument("--wanted", type=float, default=0.95, help="the part that has to be noticed")
    parser.add_argument("--work", type=Path, required=True, help="what was measured stays here for the next run")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--again", type=Path, help="only the survivors of this output, on the same source")
    options = parser.parse_args()
    found = importlib.util.find_spec("layerport")
    assert found is not None and found.origin is not None
    core = Path(found.origin).parent
    root = core.parents[2]
    if (root / ".git").exists():
        parser.error(
            f"{root} is a checkout, and its files would be changed; install layerport from a copy without .git"
        )
    os.chdir(root)
    files = {room: sorted(core.joinpath(room).rglob("*.py")) for room in ROOMS}
    files["front"] = [file for file in files["front"] if file.name in _FRONT]
    if options.again:
        kept = [one for one in json.loads(options.again.read_text()) if one["verdict"] == "survived"]
        changes = [
            Change(core / one["file"], one["line"], 0, f"core/{one['operator']}", one["occurrence"]) for one in kept
        ]
    else:
        changes = sample([file for some in files.values() for file in some], options.count, options.seed)
    for name in HEAVY:
        importlib.import_module(name)
    answers: list[dict[str, Any]] = []
    for room in options.room or ROOMS:
        work = options.work.resolve() / room
        known = measured(room, work, core)
        for change in changes:
            if change.file in files[room]:
                told = judge(change, room, known, work, core, len(answers))
                answers.append(told)
                options.output.write_text(json.dumps(answers, indent=1) + "\n")
                where = f"{told['file']}:{told['line']}"
                print(f"{len(answers)} {told['verdict']} {told['seconds']} s {where} {told['after']}", flush=True)
    survived = sum(one["verdict"] == "survived" for one in answers)
    print(f"{len(answers) - survived} of {len(answers)} changes were noticed")
    return 0 if survived <= (1 - options.wanted) * len(answers) else 1


if __name__ == "__main__":
    sys.exit(main())
