"""Programs that layerport starts end with it, with all that they have started, also when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from layerport.system import processes
from layerport.system.processes import Program
from process_table import VARIABLE, alive, kill, left_after, marked, new_mark, wait_for

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
# A program that starts another one, as compilers do.
FAMILY = ["/bin/sh", "-c", "sleep 301 & sleep 302"]


def owner(mark: str, code: str, tmp_path: Path) -> subprocess.Popen[str]:
    """A Python process that starts programs, to be killed."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env=marked(mark, cache=tmp_path / "cache", temporary=tmp_path),
    )


FROM_A_THREAD = f"""
import sys, threading
from layerport.system.processes import Program
kept = []
thread = threading.Thread(target=lambda: kept.append(Program({FAMILY!r})))
thread.start(); thread.join()
print("started", flush=True)
sys.stdin.read()
"""


def test_a_program_and_its_children_end_with_a_killed_owner_and_not_with_the_thread_that_started_it(
    tmp_path: Path,
) -> None:
    mark = new_mark()
    process = owner(mark, FROM_A_THREAD, tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    wait_for(mark, "sleep 301")
    time.sleep(0.3)
    assert {"sleep 301 ", "sleep 302 "} <= set(alive(mark).values())
    kill(process)
    assert left_after(mark, 2) == {}


FORKED = f"""
import os, sys, time
from layerport.system.processes import Program
program = Program({FAMILY!r})
if os.fork() == 0:
    time.sleep(8)
    os._exit(0)
print("started", flush=True)
sys.stdin.read()
"""


def test_a_fork_that_lives_on_holds_no_program(tmp_path: Path) -> None:
    mark = new_mark()
    process = owner(mark, FORKED, tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    wait_for(mark, "sleep 301")
    kill(process)
    left = left_after(mark, 2).values()
    assert len(left) == 1 and not [one for one in left if one.startswith(("sleep", "/bin/sh"))]


def test_the_fork_does_not_end_its_parents_programs() -> None:
    with Program(FAMILY) as program:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(0.2)
        assert program.process.poll() is None


ENDLESS_TEMPLATE = (
    "template <int N, long M> struct A { static constexpr long v = A<N - 1, 2 * M>::v + A<N - 1, 2 * M + 1>::v; };\\n"
    "template <long M> struct A<0, M> { static constexpr long v = M; };\\n"
    "__global__ void k(long* x) { *x = A<40, 0>::v; }\\n"
)
WORK = {
    "nvrtc": (
        "toolchains/child.py nvrtc",
        f"""
from layerport.kernels.toolchains.cuda_job import CudaJob
from layerport.kernels.toolchains.nvrtc import compile_jobs
from test_nvrtc import inline
compile_jobs([inline("{ENDLESS_TEMPLATE}", time_limit=60.0)])
""",
    ),
    "g++": (
        "cc1plus",
        f"""
import layerport as lp
from layerport.harness.compiler import compile_for_host
compile_for_host(lp.cuda("{ENDLESS_TEMPLATE}", "k"), "k", label="endless")
""",
    ),
    "builder": (
        "layerport.engine.worker",
        """
import sys
from layerport.engine.child import BuildProcess
process = BuildProcess("rtx")
sys.stdin.read()
""",
    ),
    "interpreter": (
        "triton_worker",
        """
import sys
from layerport.harness import triton_interpreter
triton_interpreter._worker()
sys.stdin.read()
""",
    ),
    "kernel": (
        "/program",
        """
import sys
import numpy as np
import layerport as lp
from layerport.system import processes
from layerport.harness.compiler import compile_for_host
from pathlib import Path
source = lp.cuda("__global__ void k(long* x) {\\n for (;;) { *(volatile long*)x = 1; } }\\n", "k")
made = compile_for_host(source, "k", label="endless")
from layerport.sizes.expressions import Const
from layerport.harness.cuda_runs import CudaJob
from layerport.kernels.launch_rules import LaunchRule, PointerArg
rule = LaunchRule((Const(1),) * 3, (Const(1),) * 3, Const(0), (PointerArg("x"),))
CudaJob(rule, rule.resolve({}), "forward", 0, "endless", 60.0, program=made).run({}, {"x": np.zeros(4, "int64")})
""",
    ),
}


@pytest.mark.parametrize("name", WORK)
def test_what_layerport_starts_ends_when_it_is_killed(name: str, tmp_path: Path) -> None:
    part, code = WORK[name]
    mark = new_mark()
    process = owner(
        mark, f"import sys; sys.path.append({str(Path(__file__).parents[1] / 'kernels')!r})\n{code}", tmp_path
    )
    wait_for(mark, part)
    time.sleep(0.2)
    kill(process)
    assert left_after(mark, 2) == {}


def test_end_ends_what_the_program_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = new_mark()
    monkeypatch.setenv(VARIABLE, mark)
    program = Program(FAMILY)
    wait_for(mark, "sleep 301")
    program.end()
    program.end()
    assert left_after(mark, 0) == {}
    assert program.process.returncode == -signal.SIGKILL


def test_what_a_program_leaves_behind_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = new_mark()
    monkeypatch.setenv(VARIABLE, mark)
    done = processes.run(["/bin/sh", "-c", "sleep 301 >&- 2>&- & echo done; echo no >&2; exit 3"])
    assert (done.returncode, done.stdout, done.stderr) == (3, "done\n", "no\n")
    assert left_after(mark, 0) == {}


def test_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = new_mark()
    monkeypatch.setenv(VARIABLE, mark)
    with pytest.raises(subprocess.TimeoutExpired):
        processes.run(FAMILY, timeout=0.3)
    assert left_after(mark, 0) == {}


def test_a_program_that_is_not_there_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = new_mark()
    monkeypatch.setenv(VARIABLE, mark)
    with pytest.raises(FileNotFoundError):
        Program(["/no/such/program"])
    assert left_after(mark, 0) == {}


def test_a_program_that_another_threads_child_holds_open_is_started_a_moment_later(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho started\n")
    program.chmod(0o700)
    holder = program.open("r+")  # as a child does that was forked while the program was written, until it is another
    threading.Timer(0.1, holder.close).start()
    assert processes.run([program]).stdout == "started\n"
    with program.open("r+"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "_BUSY_SECONDS", 0.05)
        with pytest.raises(OSError, match="Text file busy"):
            processes.run([program])


def test_signals_to_the_guard_leave_it_on_guard() -> None:
    with Program(FAMILY) as program:
        assert program._guard is not None
        time.sleep(0.2)  # until it has set what it ignores
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            program._guard.send_signal(number)
        time.sleep(0.2)
        assert program._guard.poll() is None


def test_threads_that_wait_for_a_program_go_on_when_theirs_are_killed() -> None:
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(processes.run(FAMILY).returncode)) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    processes.kill_those_of({thread.ident for thread in threads[:2] if thread.ident is not None})
    for thread in threads[:2]:
        thread.join(5)
    assert codes == [-signal.SIGKILL] * 2 and threads[2].is_alive()
    processes.kill_those_of({threads[2].ident or 0})
    for thread in threads:
        thread.join(5)
    assert codes == [-signal.SIGKILL] * 3


def test_programs_are_started_in_one_place() -> None:
    root = Path(processes.__file__).parents[1]
    words = ("subprocess.Popen(", "subprocess.run(", "subprocess.check_", "os.system(", "os.popen(", "os.spawn")
    found = {path.name for path in root.rglob("*.py") if any(word in path.read_text() for word in words)}
    # Packs are tried by a process that holds a pipe to this one itself.
    assert found == {"processes.py", "trials.py"}
