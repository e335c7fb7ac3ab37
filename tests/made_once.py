"""What one test process makes for all of them: bundles, the native library."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def made_once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any], seconds: float = 280
) -> tuple[Path, Any]:
    """Where `make` has put it, and what it told, of JSON's types; the first process that asks makes it, others wait."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a session and a folder of its own
        root = root.parent
    path, done = root / name, root / f"{name}.done"
    try:
        (root / f"{name}.lock").mkdir()
    except FileExistsError:
        limit = time.monotonic() + seconds
        while not done.exists():
            assert time.monotonic() < limit, f"the process that makes {name} did not end"
            time.sleep(0.05)
    else:
        told: Any = {"failed": f"making {name} failed in another test process"}
        try:
            told = {"told": make(path)}
        finally:
            part = done.with_suffix(".part")
            part.write_text(json.dumps(told))
            part.rename(done)
    told = json.loads(done.read_text())
    assert "failed" not in told, told["failed"]
    return path, told["told"]
