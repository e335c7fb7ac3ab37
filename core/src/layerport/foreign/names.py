"""A private name of another library, looked up when it is needed.  For the files beside this one."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from layerport.errors import BuildError
from layerport.foreign.tested import NEWEST


@dataclass(frozen=True)
class Name:
    """One private name.

    path: dotted, as Python finds it.  use: what it is for.  gone: what is done where the library has it no more.
    falls_back: whether everything still works then.  of_instances: it is an attribute that only instances have.
    """

    path: str
    use: str
    gone: str
    falls_back: bool = False
    of_instances: bool = False


class Names:
    """The private names of one library."""

    def __init__(self, library: str, names: Iterable[Name]) -> None:
        self._library = library
        self._names = {name.path: name for name in names}

    def __iter__(self) -> Iterator[Name]:
        return iter(self._names.values())

    def find(self, path: str) -> Any:
        """What has this name; None where it is gone and something else is done in its place.

        Raises BuildError that names it where nothing can be done in its place.
        """
        name = self._names[path]
        try:
            return look_up(path)
        except LookupError:
            if name.falls_back:
                return None
            raise self.error(path) from None

    def of(self, instance: Any, path: str) -> Any:
        """As `find`, for an attribute of instances."""
        try:
            return attribute(instance, path)
        except LookupError:
            if self._names[path].falls_back:
                return None
            raise self.error(path) from None

    def error(self, path: str) -> BuildError:
        """That this name is gone."""
        name = self._names[path]
        try:
            version = metadata.version(self._library)
        except metadata.PackageNotFoundError:
            version = "of an unknown version"
        return BuildError(
            f"{self._library} {version} has no {path}, which layerport needs for this: {name.use}",
            f"{name.gone}; layerport is tested with {self._library} up to {NEWEST[self._library]}",
        )

    def missing(self) -> list[Name]:
        """Those that the installed library lacks.  Imports it."""
        found = []
        for name in self:
            if name.of_instances:
                continue
            try:
                look_up(name.path)
            except LookupError:
                found.append(name)
        return found


def attribute(instance: Any, path: str) -> Any:
    """The attribute of an instance that a path ends with.  Raises LookupError."""
    try:
        return getattr(instance, path.rpartition(".")[2])
    except AttributeError:
        raise LookupError(path) from None


def look_up(path: str) -> Any:
    """The object of a dotted path, whose modules are imported as far as needed.  Raises LookupError."""
    first, *parts = path.split(".")
    found: Any = importlib.import_module(first)
    walked = first
    for part in parts:
        walked += f".{part}"
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = importlib.import_module(walked)
            except ImportError:
                raise LookupError(path) from None
    return found


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """A block in which a module or class has another thing by this name."""
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
