"""Hides private names of other libraries, as if a newer version had them no more.

As a pytest plugin (`-p hidden_names`) it hides those of Torch from the start, all that something is done in place of.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from layerport.foreign import names


def hide(monkeypatch: pytest.MonkeyPatch, paths: Collection[str]) -> None:
    """Let these names be gone, with all that lies in them."""
    found = {"look_up": names.look_up, "attribute": names.attribute}

    def is_hidden(path: str) -> bool:
        return any(path == one or path.startswith(f"{one}.") for one in paths)

    def look_up(path: str) -> Any:
        if is_hidden(path):
            raise LookupError(path)
        return found["look_up"](path)

    def attribute(instance: Any, path: str) -> Any:
        if is_hidden(path):
            raise LookupError(path)
        return found["attribute"](instance, path)

    monkeypatch.setattr(names, "look_up", look_up)
    monkeypatch.setattr(names, "attribute", attribute)


def pytest_configure(config: pytest.Config) -> None:
    from layerport.foreign import torch_private

    hide(pytest.MonkeyPatch(), {name.path for name in torch_private.NAMES if name.falls_back})
