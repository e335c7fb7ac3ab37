"""The native library, compiled once per test session from its sources, and what tests call it through."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from made_once import made_once
from native.native_parts import compile_all
from native.probe import Probe

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all that `compile_all` makes; whatever the number of test processes, it is made once."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to compile the native library with")
    return made_once(tmp_path_factory, "native", compile_all)[0]


@pytest.fixture(scope="session")
def probe(compiled: Path) -> Probe:
    return Probe(compiled / "probe.so")


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models with optional inputs, data-dependent sizes, several dtypes and kernels, each with its specs."""
    pytest.importorskip("torch")
    pytest.importorskip("tensorrt_rtx")
    from native.native_models import build_all

    def build(folder: Path) -> list[str]:
        folder.mkdir()
        return [path.name for path in build_all(folder)]

    folder, names = made_once(tmp_path_factory, "native bundles", build)
    return [folder / name for name in names]


@pytest.fixture
def package(compiled: Path, tmp_path: Path) -> dict[str, Any]:
    """The environment of a process in which `layerport-native` is installed."""
    folder = tmp_path / "installed" / "layerport_native"
    shutil.copytree(HERE.parents[1] / "native" / "src" / "layerport_native", folder)
    for library in compiled.glob("liblayerport_plugins*.so"):
        (folder / library.name).symlink_to(library)
    return {"PYTHONPATH": os.pathsep.join([str(folder.parent), str(HERE.parent)])}
