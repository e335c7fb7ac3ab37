"""Nothing is written under the user's home, and nobody is told, when a bundle is opened, run and verified."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerport.system.disk_cache import default_folder
from small_setup import SMALL, Built, python

USE = """
import os, sys
import layerport as lp
before = dict(os.environ)  # but for what OpenMP sets there
with lp.load(sys.argv[1], device="cpu") as session:
    session.run(session.bundle.samples()[0])
assert lp.verify(sys.argv[1], packs=[sys.argv[2]]).passed
assert {name: value for name, value in os.environ.items() if name != "KMP_INIT_AT_FORK"} == {
    name: value for name, value in before.items() if name != "KMP_INIT_AT_FORK"
}
"""


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name in ("home", "temporary"):
        (tmp_path / name).mkdir()
    return {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "temporary"),
        "LAYERPORT_CACHE_DIR": str(default_folder()),  # what the tests have compiled before
    }


def test_a_bundle_that_is_run_and_verified_writes_nothing_under_the_home(
    engine_bundle: Built, tmp_path: Path, places: dict[str, str]
) -> None:
    done = python(USE, str(engine_bundle.path), SMALL, environment=places, timeout=280)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "home") == files(tmp_path / "temporary") == set()


IMPORT = """
import os
from layerport.session.onnxruntime_library import onnxruntime
print(os.environ.get("ORT_DISABLE_TELEMETRY"))
"""


@pytest.mark.parametrize("chosen", ["0", "1", "false"])
def test_what_the_user_has_set_stays(places: dict[str, str], chosen: str) -> None:
    done = python(IMPORT, environment={**places, "ORT_DISABLE_TELEMETRY": chosen})
    assert (done.returncode, done.stdout) == (0, f"{chosen}\n"), done.stderr


def test_the_environment_is_the_users_again(tmp_path: Path, places: dict[str, str]) -> None:
    done = python(IMPORT, environment=places)
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
    assert files(tmp_path / "home") == set()


def test_it_is_imported_in_one_place() -> None:
    root = Path(__file__).parents[3]
    found = [
        path.name
        for source in ("core/src", "builtin_layers/src")
        for path in (root / source).rglob("*.py")
        if any(
            line.strip().startswith(("import onnxruntime", "from onnxruntime"))
            for line in path.read_text().splitlines()
        )
    ]
    assert found == ["onnxruntime_library.py"]
