"""Installs the wheels of `dist/` into a fresh environment and asks them what they are: the last step of a release.

The core alone, which reads bundles, then the built-in pack without its dependencies, which Torch is among.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

BUNDLE = Path(__file__).parent / "formats" / "bundle_1"


def main(dist: Path) -> None:
    """Raises CalledProcessError or AssertionError where something does not hold."""
    (core,) = dist.glob("layerport-*.whl")
    (pack,) = dist.glob("layerport_builtin_layers-*.whl")
    version = core.name.split("-")[1]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        programs = Path(folder) / ("Scripts" if sys.platform == "win32" else "bin")

        def run(program: str, *arguments: str | Path) -> str:
            command = [programs / program, *arguments]
            return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder).stdout

        run("python", "-m", "pip", "install", "-q", core)
        run("python", "-m", "pip", "install", "-q", "--no-deps", pack)
        assert version in run("layerport", "--version")
        assert "builtin_layers" in run("layerport", "packs")
        assert "engine for rtx:sm_89" in run("layerport", "inspect", BUNDLE)
        assert "portable model: passed" in run("layerport", "verify", "--no-kernels", BUNDLE)
        typed = "import layerport, pathlib; assert pathlib.Path(layerport.__file__).with_name('py.typed').exists()"
        run("python", "-c", typed)
    print(f"layerport {version} and its pack install and read a bundle")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
