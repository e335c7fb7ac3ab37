"""The native plugin's shape changes and launches, with the real kernels on the CPU, plain and under sanitizers.

Each run is a process of its own, because the stand-in for the driver would be found by other tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECKS = ("faults", "contexts", "numbers", "steps", "cases", "sizes", "tactics", "threads", "fields", "hostile")

pytest.importorskip("torch")


def run(folder: Path, *checks: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / "enqueue_checks.py"), str(folder), *checks],
        env={**os.environ, "PYTHONPATH": str(HERE.parent), **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_what_it_computes_and_says(compiled: Path) -> None:
    done = run(compiled)
    assert done.returncode == 0, done.stderr[-4000:]
    assert [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("passed")] == list(CHECKS)
    assert done.stderr == ""
