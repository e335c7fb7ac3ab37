"""Packs are found where Python no longer tells the folder of a distribution's metadata."""

from __future__ import annotations

import pytest

from layerport.foreign import metadata_private
from layerport.packs.discovery import discover
from packs.installer import Site


def test_packs_are_found_without_the_folder(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("good", name="swishes")
    with_it = discover(environ={})
    monkeypatch.setattr(metadata_private, "folder", lambda distribution: None)
    without = discover(environ={})
    assert [(info.name, info.version, info.fault) for info in without] == [
        (info.name, info.version, info.fault) for info in with_it
    ]
    assert "swishes" in [info.name for info in without]
