"""What several tests of the core share: a small pack, and bundles that are built once per test session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from layerport import building
from layerport.packs.host import Packs, load
from layerport.system.python_files import import_file
from made_once import made_once
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
    """Build a named bundle once, whatever the number of test processes."""

    def build(name: str, make: Callable[[Path], building.BuildReport]) -> Built:
        def told(path: Path) -> Any:
            report = make(path)
            return {"report": report.to_json(), "modules": report.build_modules}

        path, made = made_once(tmp_path_factory, f"{name}.lp", told)
        return Built(path, made["report"], made["modules"])

    return build


@pytest.fixture(scope="session")
def engine_bundle(once: Any) -> Built:
    """The small net in float32 with an engine."""
    return once("net", lambda path: building.build(net(), path, target=ENGINE, packs=[SMALL]))


@pytest.fixture(scope="session")
def half_bundle(once: Any) -> Built:
    """The small net in float16, portable."""
    return once("net_fp16", lambda path: building.build(net_fp16(), path, target="portable", packs=[SMALL]))
