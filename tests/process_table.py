"""Which processes of a test are alive: found by a mark in their environment, whoever has started them."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from pathlib import Path

from small_setup import TESTS

VARIABLE = "LAYERPORT_TEST_MARK"


def new_mark() -> str:
    return uuid.uuid4().hex


def marked(mark: str, *, cache: Path, temporary: Path) -> dict[str, str]:
    """The environment of a process with this mark, which finds the tests and has folders of its own.

    It computes as little as it can before it is ended: no search, no pack but those it names.
    """
    folders = {"LAYERPORT_CACHE_DIR": str(cache), "TMPDIR": str(temporary)}
    less = {"LAYERPORT_FIND": "0", "LAYERPORT_DISABLE_PACKS": "builtin_layers"}
    return {**os.environ, VARIABLE: mark, "PYTHONPATH": str(TESTS), **folders, **less}


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process that was started with pipes for its input and output, and close them."""
    process.kill()
    process.wait()
    assert process.stdout is not None and process.stdin is not None
    process.stdout.close()
    process.stdin.close()


def alive(mark: str) -> dict[int, str]:
    """Process id and command line of each process with this mark that is no zombie."""
    wanted = f"{VARIABLE}={mark}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0") and not _is_zombie(folder):
                found[int(folder.name)] = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
        except OSError:
            continue
    return found


def left_after(mark: str, seconds: float) -> dict[int, str]:
    """What is alive with this mark after so many seconds; it returns as soon as there is nothing."""
    end = time.monotonic() + seconds
    while (found := alive(mark)) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def wait_for(mark: str, part: str, seconds: float = 60) -> None:
    """Wait until a process with this mark has this text in its command line."""
    end = time.monotonic() + seconds
    while not any(part in command for command in alive(mark).values()):
        assert time.monotonic() < end, f"no process with {part!r} among {alive(mark)}"
        time.sleep(0.01)


def _is_zombie(folder: Path) -> bool:
    return (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
