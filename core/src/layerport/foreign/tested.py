"""The newest versions that the tests have run with, of libraries whose private names are used.  Imports no library.

A newer one is no error: `layerport doctor` says so, and which private names it lacks.
"""

from __future__ import annotations

from importlib import metadata

# The same as in constraints.txt; a test compares them.
NEWEST = {"torch": "2.13", "triton": "3.7"}


def newer_than_tested(library: str, version: str | None = None) -> str | None:
    """The version, as "2.14.0", where it is newer than the tested ones; None where it is not, or is not installed.

    version: that of the installed distribution, if None.
    """
    if version is None:
        try:
            version = metadata.version(library)
        except metadata.PackageNotFoundError:
            return None
    return version if _release(version) > _release(NEWEST[library]) else None


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers: what counts as one version of these libraries."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
