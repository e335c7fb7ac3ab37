"""Which versions of the core a pack takes: what its distribution requires of `layerport`.  For `loading` only."""

from __future__ import annotations

from importlib import metadata

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement

from layerport import __version__
from layerport.packs.discovery import CORE_NAME, PackInfo
from layerport.packs.metadata import canonical
from layerport.system.foreign_text import shown


def core_fault(info: PackInfo) -> str | None:
    """Why a pack cannot be used with this core; None where it can, and where it says nothing of that."""
    if info.distribution is None:
        return None
    try:
        lines = metadata.requires(info.distribution) or []
    except Exception:  # whatever importlib.metadata trips over in damaged files, which `discovery` tells
        return None
    for line in lines:
        if not canonical(line).startswith(CORE_NAME):
            continue
        try:
            wanted = Requirement(line)
            applies = wanted.marker is None or wanted.marker.evaluate()
        except (InvalidRequirement, UndefinedComparison, UndefinedEnvironmentName):
            return f"it requires '{shown(line)}', which is no requirement; correct it in its pyproject.toml"
        if canonical(wanted.name) != CORE_NAME or not applies:
            continue
        if not wanted.specifier.contains(__version__, prereleases=True):
            return (
                f"{info.distribution} {info.version} takes layerport {wanted.specifier}, and here is {__version__}; "
                f"pip install 'layerport{wanted.specifier}', or --upgrade {info.distribution}"
            )
    return None
