"""Programs that end with whoever started them: compilers, kernels run on the CPU, the TensorRT builder.

Whatever starts a process goes through here.  Imports nothing foreign; anyone may import it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

_GROUPS = os.name == "posix"
# It leads the program's process group, and ends all of it when the other end of its standard input closes: when this
# process ends, however it ends.  PR_SET_PDEATHSIG would tie a program to the thread that started it, and would not
# reach what the program starts itself.
_GUARD = ("/bin/sh", "-c", "trap '' HUP INT QUIT TERM; read -r _; kill -KILL 0")
# What is killed is gone by then; an orphan that nobody waits for stays in the table for ever.
_DYING_SECONDS = 0.05
_BUSY_SECONDS = 2.0
_lock = threading.Lock()
_living: weakref.WeakSet[Program] = weakref.WeakSet()


class Program:
    """A running program with all that it starts: `end` ends all of it, and so does the end of this process, by SIGKILL
    too.

    It is out of reach of the terminal's Ctrl-C.  Start it from any thread; the thread may end before it.
    thread: the identity of the thread that waits for it, at first of that which starts it; 0 where none does.
    options: as of `subprocess.Popen`; without `stdin` it reads nothing.  Raises OSError where it cannot be started.
    """

    def __init__(self, command: Sequence[str | os.PathLike[str]], **options: Any) -> None:
        self.thread = threading.get_ident()
        self._guard: subprocess.Popen[bytes] | None = None
        if _GROUPS:
            self._guard = subprocess.Popen(
                _GUARD, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
            )
            options["process_group"] = self._guard.pid
        try:
            # Until it runs, the program itself holds the other end of the guard's input: it cannot be missed.
            self.process = _start(command, {"stdin": subprocess.DEVNULL, **options})
        except BaseException:
            self._end_guard()
            raise
        with _lock:
            _living.add(self)

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self.process.pid

    def end(self) -> None:
        """End the program and all that it started, whatever it is doing.  It may be called again."""
        if self._guard is None and self.process.poll() is None:
            self.process.kill()
        self._end_guard()
        self.process.wait()
        self._wait_for_children()

    def kill(self) -> None:
        """End all of it and wait for nothing; `end` has to follow."""
        guard = self._guard
        with contextlib.suppress(ProcessLookupError):
            if guard is None:
                self.process.kill()
            elif guard.returncode is None:  # else the number may be another's by now
                os.killpg(guard.pid, signal.SIGKILL)

    def let_go(self) -> None:
        """In a fork of this process: leave the program to its parent."""
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()

    def _wait_for_children(self) -> None:
        """Until the last of the group is gone, which may still write a file."""
        end = time.monotonic() + _DYING_SECONDS
        with contextlib.suppress(ProcessLookupError, PermissionError):
            while self._guard is not None and time.monotonic() < end:
                os.killpg(self._guard.pid, 0)
                time.sleep(0.001)

    def _end_guard(self) -> None:
        if self._guard is not None and self._guard.returncode is None:
            self.kill()
            self._guard.wait()
            assert self._guard.stdin is not None
            self._guard.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def _start(command: Sequence[str | os.PathLike[str]], options: Mapping[str, Any]) -> subprocess.Popen[Any]:
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return subprocess.Popen(command, **options)
        except OSError as error:
            # What another thread starts just now holds, for a moment, the file to which this one wrote the program.
            if error.errno != errno.ETXTBSY or time.monotonic() > end:
                raise
            time.sleep(0.005)


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and give its status and what it printed.

    timeout: seconds.  Raises OSError where it cannot be started, subprocess.TimeoutExpired where the time is over,
    with `check` subprocess.CalledProcessError where its status is not 0.  Nothing that it started is left in any case.
    """
    program = Program(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=env)
    try:
        output, errors = program.process.communicate(timeout=timeout)
    finally:
        program.end()
        with program.process:  # closes the pipes
            pass
    done = subprocess.CompletedProcess(program.process.args, program.process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


def kill_those_of(threads: Collection[int]) -> None:
    """End what these threads (by `threading.get_ident`) wait for."""
    with _lock:
        programs = [program for program in _living if program.thread in threads]
    for program in programs:
        program.kill()


def _forked() -> None:
    global _lock
    _lock = threading.Lock()
    for program in list(_living):
        program.let_go()
    _living.clear()


if hasattr(os, "register_at_fork"):
    # A fork that outlives this process must not keep the guards waiting.
    os.register_at_fork(after_in_child=_forked)
