"""Finding an author's Triton function, and saying where it is, so that another process finds it too.

The one place that imports what a pack's `lp.triton` names.  `triton` and `testing.triton_interpreter` use it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerport.errors import BuildError, PackError, UsageError
from layerport.kernels.triton_source import TritonSource
from layerport.system.python_files import import_file

_INSTALL = "pip install 'layerport[triton]'"


@dataclass(frozen=True)
class Place:
    """Where a function is: in a module that can be imported, or in a file."""

    module: str | None
    file: str | None
    name: str


def require_triton(label: str) -> Any:
    """Triton's module.  Raises BuildError where it is not installed."""
    try:
        return importlib.import_module("triton")
    except ImportError as error:
        raise BuildError(f"{label} is written in Triton, which cannot be imported: {error}", _INSTALL) from error


def find_function(source: TritonSource, label: str) -> Any:
    """The author's function.  Raises BuildError without Triton, PackError where the function is not there."""
    require_triton(label)
    fn = source.fn if source.home is None else _load(place_of(source, label), label)
    if type(fn).__name__ == "InterpretedFunction":
        raise BuildError(
            f"{label}: Triton is in interpreter mode, in which nothing is compiled",
            "unset TRITON_INTERPRET; layerport.testing.run_kernel sets it where it needs it",
        )
    if not hasattr(fn, "arg_names") or not inspect.isfunction(getattr(fn, "fn", None)):
        raise PackError(
            f"{label}: {source.home}:{source.name} is {type(fn).__name__}, no Triton function",
            "name a function decorated with @triton.jit, and nothing else",
        )
    return fn


def place_of(source: TritonSource, label: str) -> Place:
    """Where the function of a source is.  Raises PackError for one that only its own process can reach."""
    home = source.home
    if home is not None:
        if home.endswith(".py"):
            return Place(None, str(Path(source.folder or ".", home).resolve()), source.name)
        if home.startswith("."):
            if not source.package:
                raise PackError(
                    f"{label}: {home!r} is relative, and its launch rule is in no package",
                    'name a file: "kernel.py:function"',
                )
            return Place(source.package + home, None, source.name)
        return Place(home, None, source.name)
    function = source.fn.fn
    file, module = inspect.getsourcefile(function), function.__module__
    if "<locals>" in function.__qualname__ or file is None:
        raise PackError(
            f"{label}: {function.__qualname__} is made inside another function, where no other process finds it",
            "define it at the top of a module",
        )
    path = str(Path(file).resolve())
    return Place(module, None, source.name) if _importable(module, path) else Place(None, path, source.name)


def _importable(module: str, file: str) -> bool:
    """Whether importing a module by its name gives this file: not so for a script and a one-file pack."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None and str(Path(found.origin).resolve()) == file


def _load(place: Place, label: str) -> Any:
    where = place.module or place.file
    try:
        module = importlib.import_module(place.module) if place.module else import_file(str(place.file))
    except Exception as error:
        why = error.fault if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
        raise PackError(
            f"{label}: {where}, which has its Triton function, cannot be imported: {why}",
            "a file is relative to the launch rule; is it in the package?",
        ) from error
    if not hasattr(module, place.name):
        names = sorted(name for name, value in vars(module).items() if hasattr(value, "arg_names"))
        raise PackError(
            f"{label}: {where} has no {place.name}", f"its Triton functions are {', '.join(names) or 'none'}"
        )
    return getattr(module, place.name)
