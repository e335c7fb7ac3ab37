"""Builds the source distribution and the wheels for both kinds of machine: `python wheels.py FOLDER`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TARGETS = ("x86_64", "aarch64")


def main(folder: Path) -> None:
    """Raises CalledProcessError where one cannot be built."""
    build = [sys.executable, "-m", "build", "-q", "--no-isolation", "--outdir", str(folder), str(Path(__file__).parent)]
    subprocess.run([*build, "--sdist"], check=True)
    for target in TARGETS:
        environment = {**os.environ, "LAYERPORT_NATIVE_TARGET": target}
        subprocess.run([*build, "--wheel"], check=True, env=environment)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
