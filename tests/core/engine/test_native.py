"""Where the native plugin library is found, and what happens where TensorRT does not take it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from layerport.engine import native
from layerport.errors import BuildError


class Registry:
    def __init__(self, *, takes: bool, has: bool = False) -> None:
        self.takes, self.has = takes, has
        self.loaded: list[str] = []

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        assert (name, version, namespace) == ("Kernel", "1", "layerport")
        return object() if self.has else None

    def load_library(self, path: str) -> Any:
        self.loaded.append(path)
        self.has = self.takes
        return object() if self.takes else None


def tensorrt(registry: Registry) -> Any:
    return SimpleNamespace(__version__="99.1", get_plugin_registry=lambda: registry)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `layerport_native` that is installed, with a library that nobody opens."""
    package = tmp_path / "layerport_native"
    package.mkdir()
    (package / "__init__.py").touch()
    library = package / "liblayerport_plugins.so"
    library.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    return library


def test_it_is_loaded_once(installed: Path) -> None:
    registry = Registry(takes=True)
    assert native.library() == installed
    assert native.load(tensorrt(registry)) and native.load(tensorrt(registry))
    assert registry.loaded == [str(installed)]


def test_where_it_was_loaded_by_others(installed: Path) -> None:
    registry = Registry(takes=True, has=True)
    assert native.load(tensorrt(registry))
    assert registry.loaded == []


def test_a_tensorrt_that_does_not_take_it(installed: Path) -> None:
    with pytest.raises(BuildError) as caught:
        native.load(tensorrt(Registry(takes=False)))
    assert caught.value.fault == f"TensorRT 99.1 does not take the plugin library {installed}"
    assert caught.value.repair == "update layerport-native, or uninstall it: layerport then does the same in Python"


def test_without_the_library_python_stands_in(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed.unlink()  # the package of an editable install that was never compiled
    registry = Registry(takes=True)
    assert native.library() is None and not native.load(tensorrt(registry))
    monkeypatch.setattr(native, "PACKAGE", "layerport_native_that_nobody_installed")
    assert native.library() is None
    assert registry.loaded == []
