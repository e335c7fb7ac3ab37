"""Which versions are newer than those that the tests have run with."""

from __future__ import annotations

from importlib import metadata

import pytest

from layerport.foreign.tested import NEWEST, newer_than_tested


@pytest.mark.parametrize(
    ("version", "newer"),
    [
        ("2.13.0", False),
        ("2.13.5+cu130", False),
        ("2.9.1", False),
        ("1.99", False),
        ("2.14.0", True),
        ("2.14.0a0+git123", True),
        ("2.100.0", True),
        ("3.0", True),
    ],
)
def test_a_release_counts_by_its_first_two_numbers(version: str, newer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NEWEST, "torch", "2.13")
    assert newer_than_tested("torch", version) == (version if newer else None)


def test_what_is_installed_here_is_not_newer() -> None:
    assert [newer_than_tested(library) for library in NEWEST] == [None, None]


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert newer_than_tested("torch") is None
