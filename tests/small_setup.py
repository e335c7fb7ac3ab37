"""Where the small pack and the small models are, what a shared bundle is, and how a test runs layerport apart."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
SMALL = str(TESTS / "packs" / "small.py")
MODELS = TESTS / "small_models.py"
ENGINE = "rtx:sm_89"


@dataclass(frozen=True)
class Built:
    """A bundle that one test process made for all: read it, never change it; `copy` gives one to break."""

    path: Path
    report: dict[str, Any]
    build_modules: list[str]

    def copy(self, to: Path) -> Path:
        """A copy of the bundle at `to`."""
        return Path(shutil.copytree(self.path, to))


def python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, with the tests' folder importable; warnings are errors there too."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS), **options.pop("environment", {})}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=options.pop("timeout", 120),
        check=False,
        **options,
    )
