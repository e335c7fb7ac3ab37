"""The example packs, as a stranger's: each a wheel of its own in a fresh environment, where their own tests run.

All their checks take a minute; `LAYERPORT_TEST_PACKS=1`, as `tox run -e packs` sets it, runs them all, and
`layerport check` from the shell.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from layerport.system.disk_cache import default_folder

ROOT = Path(__file__).resolve().parents[1]
PACKS = sorted(path.parent for path in (ROOT / "examples" / "packs").glob("*/pyproject.toml"))
ALL = os.environ.get("LAYERPORT_TEST_PACKS") == "1"
SOME = "test_a_model or test_the or distribution or float32 and kernel"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the environment is made of links")


def run(folder: Path, *command: str | Path) -> str:
    """What a command prints, away from the packs' sources and from what this process has on its path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}
    environment |= {"LAYERPORT_CACHE_DIR": str(default_folder())}  # what the tests have compiled before
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with every library of this one, as links, and the packs' wheels."""
    folder = tmp_path_factory.mktemp("example_packs")
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check", "-q")
    run(folder, sys.executable, "-m", "pip", "wheel", *offline, "--no-build-isolation", "-w", folder, *PACKS)
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    for one in (Path(name) for name in sys.path if name.endswith("site-packages")):
        for entry in one.iterdir():
            if not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    wheels = sorted(folder.glob("*.whl"))
    assert len(wheels) == len(PACKS)
    run(folder, sys.executable, "-m", "pip", "--python", python, "install", *offline, *wheels)
    return python


def test_they_install_build_and_hold(fresh: Path) -> None:
    folder = fresh.parents[2]
    chosen = () if ALL else ("-k", SOME)
    plain = ("-c", os.devnull, "-p", "no:cacheprovider", "--import-mode=importlib")  # nothing of this repository's
    last = run(folder, fresh, "-m", "pytest", "-q", "-W", "error", *plain, *chosen, *PACKS).splitlines()[-1]
    # What says nothing about a pack is skipped: an own plugin class has no kernel.
    assert re.fullmatch(r"(\d+) passed, (1|8) skipped, .*|(\d+) passed, .*", last), last


def test_they_are_listed(fresh: Path) -> None:
    printed = run(fresh.parents[2], fresh, "-c", "from layerport.cli import main; main(['packs'])")
    for pack in PACKS:
        (module,) = pack.glob("*_pack")
        (line,) = (line for line in printed.splitlines() if line.startswith(module.name))
        assert line.split()[-1] == "installed"


@pytest.mark.skipif(not ALL, reason="a minute: tox run -e packs")
@pytest.mark.parametrize("pack", PACKS, ids=lambda path: path.name)
def test_layerport_check(pack: Path, fresh: Path) -> None:
    (module,) = pack.glob("*_pack")
    command = f"from layerport.cli import main; main(['check', {module.name!r}])"
    assert " 0 failed" in run(fresh.parents[2], fresh, "-c", command)
