"""What several tests of the core share: a small pack, and bundles that are built once per test session."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from layerport import building
from layerport.packs.host import Packs, load
from layerport.system.python_files import import_file
from small_models import net, net_fp16
from small_setup import ENGINE, SMALL, Built


@pytest.fixture(scope="session")
def small() -> ModuleType:
    """The small pack's module, the same one that `packs=[SMALL]` loads."""
    return import_file(SMALL)


@pytest.fixture(scope="session")
def small_packs(small: ModuleType) -> Packs:
    return load(SMALL)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], building.BuildReport]], Built]:
    """Build a named bundle once, whatever the number of test processes (pytest-xdist gives each its own session)."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def build(name: str, make: Callable[[Path], building.BuildReport]) -> Built:
        path, done = root / f"{name}.lp", root / f"{name}.json"
        try:
            (root / f"{name}.lock").mkdir()
        except FileExistsError:
            limit = time.monotonic() + 240
            while not done.exists():
                assert time.monotonic() < limit, f"the process that builds {name} did not end"
                time.sleep(0.05)
        else:
            told: Any = {"failed": f"building {name} failed in another test process"}
            try:
                report = make(path)
                told = {"report": report.to_json(), "modules": report.build_modules}
            finally:
                part = done.with_suffix(".part")
                part.write_text(json.dumps(told))
                part.rename(done)
        told = json.loads(done.read_text())
        assert "failed" not in told, told["failed"]
        return Built(path, told["report"], told["modules"])

    return build


@pytest.fixture(scope="session")
def engine_bundle(once: Any) -> Built:
    """The small net in float32 with an engine."""
    return once("net", lambda path: building.build(net(), path, target=ENGINE, packs=[SMALL]))


@pytest.fixture(scope="session")
def half_bundle(once: Any) -> Built:
    """The small net in float16, portable."""
    return once("net_fp16", lambda path: building.build(net_fp16(), path, target="portable", packs=[SMALL]))
