"""Imports a Python file by its path: a pack in one file, a model's source, the file of a Triton function.

Imports nothing of the project but its errors; anyone may import it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import linecache
import os
import sys
from importlib.abc import SourceLoader
from pathlib import Path
from types import ModuleType

from layerport.errors import UsageError

_FILE_MODULE = "layerport_file_"
_DIGEST = "__layerport_digest__"


def import_file(path: str | os.PathLike[str]) -> ModuleType:
    """Import a Python file by its path, once per process and content; raises UsageError where there is no such file.

    What the file raises comes out as it is.  The module stays in `sys.modules`, named after the path; an edited file
    is read anew, into a new module.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UsageError(f"there is no file {str(path)!r}", "give the path of a Python file")
    name = f"{_FILE_MODULE}{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or not isinstance(spec.loader, SourceLoader):
        raise UsageError(f"{str(path)!r} is not a Python file", "give a file that ends in .py")
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    known = sys.modules.get(name)
    if known is not None and getattr(known, _DIGEST, None) == digest:
        return known
    module = importlib.util.module_from_spec(spec)
    setattr(module, _DIGEST, digest)
    linecache.updatecache(str(file))
    sys.modules[name] = module
    try:
        # Compiled from what was read: Python's own cache takes an edit within the same second for no edit.
        exec(spec.loader.source_to_code(content, str(file)), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def is_file_module(name: str) -> bool:
    """Whether a module of this name was made by `import_file`."""
    return name.startswith(_FILE_MODULE)
