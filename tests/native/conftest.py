"""The native library, compiled once per test session from its sources, and what tests call it through."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from native.native_parts import compile_all
from native.probe import Probe

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all that `compile_all` makes; whatever the number of test processes, it is made once."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to compile the native library with")
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / "native", root / "native.done"
    try:
        (root / "native.lock").mkdir()
    except FileExistsError:
        limit = time.monotonic() + 240
        while not done.exists():
            assert time.monotonic() < limit, "the process that compiles the native library did not end"
            time.sleep(0.05)
    else:
        try:
            compile_all(folder)
        finally:
            done.touch()
    assert (folder / "cuda" / "libcuda.so.1").exists(), "compiling the native library failed in another test process"
    return folder


@pytest.fixture(scope="session")
def probe(compiled: Path) -> Probe:
    return Probe(compiled / "probe.so")


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models with optional inputs, data-dependent sizes, several dtypes and kernels, each with its specs."""
    pytest.importorskip("torch")
    pytest.importorskip("tensorrt_rtx")
    from native.native_models import build_all

    return build_all(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def package(compiled: Path, tmp_path: Path) -> dict[str, Any]:
    """The environment of a process in which `layerport-native` is installed."""
    folder = tmp_path / "installed" / "layerport_native"
    shutil.copytree(HERE.parents[1] / "native" / "src" / "layerport_native", folder)
    for library in compiled.glob("liblayerport_plugins*.so"):
        (folder / library.name).symlink_to(library)
    return {"PYTHONPATH": os.pathsep.join([str(folder.parent), str(HERE.parent)])}
