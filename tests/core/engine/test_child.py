"""The build process: what it says, how its death is told, and that it ends with its owner."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from layerport.engine import child
from layerport.engine.child import BuildProcess
from layerport.engine.progress import ProgressEvent
from layerport.errors import BuildError
from layerport.system import interrupts


def fake_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a worker in the real one's place; `body` runs at the build request."""
    file = tmp_path / "worker.py"
    file.write_text(
        "import json, os, signal, sys, time\n"
        "tell = lambda **event: print(json.dumps(event), flush=True)\n"
        "for line in sys.stdin:\n    request = json.loads(line)\n    if request['command'] == 'warm':\n"
        "        tell(event='ready')\n        continue\n" + "".join(f"    {line}\n" for line in body.splitlines())
    )
    monkeypatch.setattr(child, "COMMAND", (sys.executable, "-S", str(file)))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_events_and_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_worker(
        tmp_path,
        monkeypatch,
        "tell(event='progress', stage='engine', kind='step', phase='ü', step=request['n'])\n"
        "tell(event='result', bytes=5)",
    )
    events: list[ProgressEvent] = []
    with BuildProcess("rtx") as process:
        assert process.build({"n": 3}, events.append) == {"bytes": 5}
        pid = process.pid
    assert events == [ProgressEvent("engine", "step", phase="ü", step=3)]
    assert not alive(pid)


def test_a_failure_is_raised_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_worker(tmp_path, monkeypatch, "tell(event='failure', fault='no', repair='do', faults=['a', 'b'])")
    with BuildProcess("rtx") as process, pytest.raises(BuildError) as caught:
        process.build({}, lambda event: None)
    assert str(caught.value) == "no\n  - a\n  - b\n  to repair: do"


@pytest.mark.parametrize(
    ("body", "fault", "repair"),
    [
        ("os.kill(os.getpid(), 9)", "signal 9 (SIGKILL)", "usually the system for want of memory"),
        ("os.kill(os.getpid(), 11)", "signal 11 (SIGSEGV)", "--decompose LAYER"),
        ("print('last words', file=sys.stderr)\nos.abort()", "signal 6 (SIGABRT)", "--decompose LAYER"),
        ("sys.exit(3)", "exit code 3", "--decompose LAYER"),
    ],
)
def test_a_death_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, fault: str, repair: str) -> None:
    fake_worker(tmp_path, monkeypatch, body)
    with BuildProcess("rtx") as process, pytest.raises(BuildError) as caught:
        process.build({}, lambda event: None)
    assert caught.value.fault == f"the build process died with {fault}; nothing was written"
    assert repair in str(caught.value.repair)
    assert ("last words" in caught.value.faults) == ("last words" in body)


def test_a_worker_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "COMMAND", (sys.executable, "-c", "import sys; sys.exit('no such library')"))
    with pytest.raises(BuildError) as caught, BuildProcess("rtx") as process:
        deadline = time.monotonic() + 10
        while alive(process.pid) and time.monotonic() < deadline and process._process.poll() is None:
            time.sleep(0.01)
        process.build({"x": "y" * 100_000}, lambda event: None)
    assert "the build process died with exit code 1; nothing was written" in caught.value.fault
    assert caught.value.faults == ("no such library",)


def test_a_death_in_the_middle_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_worker(tmp_path, monkeypatch, """os.write(1, b'{"event": "st'); os.kill(os.getpid(), 9)""")
    with BuildProcess("rtx") as process, pytest.raises(BuildError, match="died with signal 9"):
        process.build({}, lambda event: None)


def test_it_ends_with_its_owner_whatever_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_worker(
        tmp_path,
        monkeypatch,
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "tell(event='progress', stage='engine', kind='note', text='started')\ntime.sleep(600)",
    )

    class Stop(Exception):
        pass

    def stop(event: ProgressEvent) -> None:
        if event.text == "started":
            raise Stop

    with pytest.raises(Stop), BuildProcess("rtx") as process:
        pid = process.pid
        process.build({}, stop)
    assert not alive(pid)


def test_it_is_out_of_reach_of_the_terminal() -> None:
    with BuildProcess("rtx") as process:
        assert os.getpgid(process.pid) != os.getpgid(0)
    process.close()


def test_a_closed_process_stays_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_worker(tmp_path, monkeypatch, "pass")
    process = BuildProcess("rtx")
    process.close()
    process.close()
    assert process._process.returncode == -signal.SIGKILL


def test_ctrl_c_within_a_finaliser_is_not_lost() -> None:
    class Interrupted:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            sum(range(1000))  # time for the signal to come in

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt), interrupts.put_off():
            Interrupted()  # nothing holds it, so it is finalised here
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
