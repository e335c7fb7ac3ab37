"""Fixtures that tests of every part share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from packs.installer import Site, make_site

# No test fails because a machine is slow.
settings.register_profile("layerport", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("layerport")


# Files of long tests: they run first, so that two processes end together.
LONG = {
    "test_examples.py",
    "test_example_packs.py",
    "test_random_moments.py",
    "test_zoo.py",
    "test_llama.py",
    "test_new_pack.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A folder of installed fake packs, and no other pack in sight."""
    folder = tmp_path / "site"
    folder.mkdir()
    return make_site(folder, monkeypatch)
