"""A build that is killed or interrupted: an error within a second, no process and no folder left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from layerport import building
from layerport.engine import child
from layerport.errors import BuildError
from small_models import net
from small_setup import ENGINE, MODELS, SMALL, TESTS

pytest.importorskip("tensorrt_rtx")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody waited for is dead too.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_builder_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []
    send = child.BuildProcess._send

    def send_and_kill(self: Any, message: Any) -> None:
        send(self, message)
        if message["command"] == "build":
            pids.append(self.pid)
            os.kill(self.pid, signal.SIGKILL)

    monkeypatch.setattr(child.BuildProcess, "_send", send_and_kill)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.raises(BuildError) as caught:
        building.build(net(), tmp_path / "a.lp", target=ENGINE, packs=[SMALL])
    assert not list(temporary.glob("layerport-*"))
    assert caught.value.fault == "the build process died with signal 9 (SIGKILL); nothing was written"
    assert "usually the system for want of memory" in str(caught.value.repair)
    assert list(tmp_path.iterdir()) == [temporary]
    assert not alive(pids[0])


# The worker is stopped before it is asked, which stands for a build of hours that answers nobody.
STOPPED = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from layerport.engine import child
send = child.BuildProcess._send
def stop_and_send(self, message):
    if message["command"] == "build":
        os.kill(self.pid, signal.SIGSTOP)
    send(self, message)
    if message["command"] == "build":
        print("engine", self.pid, flush=True)
child.BuildProcess._send = stop_and_send
from layerport.cli import main
main(["build", {f"{MODELS}:net"!r}, "-o", sys.argv[1], "--target", {ENGINE!r}, "--pack", {SMALL!r}])
"""


def test_ctrl_c_ends_a_build_within_a_second(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(tmp_path / "a.lp")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    assert process.stdout is not None
    line = process.stdout.readline().split()
    assert line[:1] == ["engine"], process.communicate()[1]
    worker = int(line[1])
    assert alive(worker)
    assert [path.name.startswith(".a.lp.") for path in tmp_path.iterdir()] == [True]
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    took = time.monotonic() - begin
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "error: interrupted; nothing was written"
    assert list(tmp_path.iterdir()) == []
    assert not alive(worker)
    # The promise is one second; a machine that is busy with other tests may give this one a part of a core only.
    assert took < (1 if os.getloadavg()[0] < (os.cpu_count() or 1) else 3), took


def test_a_worker_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from layerport.engine.child import BuildProcess\n"
        "process = BuildProcess('rtx'); print(process.pid, flush=True); sys.stdin.read()\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdin is not None
    worker = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    owner.stdin.close()
    limit = time.monotonic() + 20
    while alive(worker) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not alive(worker)
