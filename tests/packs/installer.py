"""Installs fake packs into a folder of a test's own, as pip would, and hides every other pack."""

from __future__ import annotations

import importlib
import itertools
import types
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

import pytest

from layerport.packs import discovery as pack_discovery
from layerport.packs.discovery import PackInfo

HERE = Path(__file__).parent
_numbers = itertools.count()


class Site:
    """A folder of installed packs, each in a namespace of its own, because Torch operators outlive a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def install(
        self,
        source: str,
        *,
        name: str = "fake",
        distribution: str | None = None,
        version: str = "1.0",
        namespace: str | None = None,
        points: str | None = None,
    ) -> str:
        """Install a pack and return its namespace.

        source: a file of tests/packs without `.py`, or Python text.
        """
        number = next(_numbers)
        module = f"{name.replace('-', '_')}_pack_{number}"
        namespace = namespace or f"test_{name.replace('-', '_')}_{number}"
        text = source if "\n" in source else (HERE / f"{source}.py").read_text()
        (self.folder / f"{module}.py").write_text(text.replace("NAMESPACE", namespace))
        self.modules.append(module)
        distribution = distribution or f"{name}-layers"
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        points = points if points is not None else f"{name} = {module}"
        (info / "entry_points.txt").write_text(f"[console_scripts]\nx = y:z\n\n[layerport]\n{points}\n")
        importlib.invalidate_caches()
        return namespace

    def info(self, name: str) -> PackInfo:
        """What the metadata of an installed pack says."""
        return next(info for info in pack_discovery.discover(environ={}) if info.name == name)


def show_only(monkeypatch: pytest.MonkeyPatch, distributions: Callable[[], Iterable[metadata.Distribution]]) -> None:
    """Let discovery, and nobody else who reads metadata, see these distributions only."""
    names = {**vars(metadata), "distributions": distributions}
    monkeypatch.setattr(pack_discovery, "metadata", types.SimpleNamespace(**names))


def make_site(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site on `sys.path`; packs that the test environment itself has are out of sight."""
    site = Site(folder)
    monkeypatch.syspath_prepend(str(folder))
    show_only(monkeypatch, lambda: metadata.distributions(path=[str(folder)]))
    for variable in (
        pack_discovery.DISABLE_VARIABLE,
        pack_discovery.STRICT_VARIABLE,
        pack_discovery.TRACE_VARIABLE,
    ):
        monkeypatch.delenv(variable, raising=False)
    return site
