"""The private name of Python's `importlib.metadata` that layerport uses.  For `packs`."""

from __future__ import annotations

from importlib import metadata
from typing import Any


def folder(distribution: metadata.Distribution) -> Any:
    """The folder of a distribution's metadata, a path; None where it is in no folder, or Python no longer tells it.

    `importlib.metadata` reads damaged files as if they were not there, so the folder is looked at.  Without it,
    packs are found by what it does read.
    """
    return getattr(distribution, "_path", None)
