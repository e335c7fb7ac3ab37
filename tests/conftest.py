"""Fixtures that tests of every part share."""

from __future__ import annotations

from pathlib import Path

import pytest

from packs.installer import Site, make_site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A folder of installed fake packs, and no other pack in sight."""
    folder = tmp_path / "site"
    folder.mkdir()
    return make_site(folder, monkeypatch)
