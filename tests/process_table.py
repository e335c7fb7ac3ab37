"""Which processes of a test are alive: found by a mark in their environment, whoever has started them."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

VARIABLE = "LAYERPORT_TEST_MARK"


def new_mark() -> str:
    return uuid.uuid4().hex


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
