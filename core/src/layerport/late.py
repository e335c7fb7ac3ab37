"""The one device for late imports: a room loads its files when they are first named.

`import layerport.front` loads nothing; `layerport.front.pipeline.prepare` loads `front/pipeline.py`.  So code that must
start without Torch, NumPy or TensorRT names in full what it needs, where it needs it, and what it depends on still
stands at the top of its file.  Imports nothing of the project.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def parts(room: str) -> Callable[[str], Any]:
    """The `__getattr__` of a room: imports the file of this name; AttributeError where there is none."""

    def load(name: str) -> Any:
        whole = f"{room}.{name}"
        try:
            return importlib.import_module(whole)
        except ModuleNotFoundError as error:
            if error.name != whole:
                raise
            raise AttributeError(f"module {room!r} has no attribute {name!r}") from None

    return load
