"""What a Triton kernel is made of, told without Triton: for the name by which a machine without it finds the kernel.

Triton knows a function by its own intermediate form; here it is the file of the function, with the files of its package
or folder that these import.  A file too many costs a compilation, one too few would run old code: what is imported by a
computed name is not seen, and of other packages the version.  `compilation` uses it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from layerport.kernels.toolchains.triton_functions import Place

# What a kernel calls of these is compiled by Triton or runs on the host.
_NO_CODE_OF = sys.stdlib_module_names | {"triton", "torch", "numpy", "layerport"}


def files_digest(place: Place) -> str | None:
    """A digest of the files that a function is made of, and of the versions of what else they import.

    None where its file is not found.
    """
    first, root = _start(place)
    if first is None:
        return None
    seen: dict[str, str] = {}
    waiting = [first]
    while waiting:
        file = waiting.pop()
        name = file.relative_to(root).as_posix()
        if name in seen:
            continue
        data = file.read_bytes()
        seen[name] = hashlib.sha256(data).hexdigest()
        for module in _imported(data, file.relative_to(root).parent.parts):
            local = [path for path in _files_of(root, module) if path.is_file()]
            waiting += local
            if not local and module[0] not in _NO_CODE_OF:
                seen[module[0]] = _version(module[0])
    return hashlib.sha256(repr(sorted(seen.items())).encode()).hexdigest()


def _start(place: Place) -> tuple[Path | None, Path]:
    """The file of a function, and the folder that absolute imports of its package start from."""
    if place.file is not None:
        return Path(place.file), Path(place.file).parent
    assert place.module is not None
    try:
        found = importlib.util.find_spec(place.module)
    except ImportError:  # its package needs what is not here
        found = None
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        return None, Path()
    file = Path(found.origin)
    above = place.module.count(".") + (file.name == "__init__.py")
    return file, file.parents[above]


def _imported(data: bytes, package: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The modules that a file imports, and those that it may: of `from a import b`, b is one or is not."""
    for node in ast.walk(ast.parse(data)):
        if isinstance(node, ast.Import):
            yield from (tuple(name.name.split(".")) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = tuple(package[: len(package) + 1 - node.level]) if node.level else ()
            base = start + (tuple(node.module.split(".")) if node.module else ())
            if base:
                yield base
            yield from ((*base, name.name) for name in node.names)


def _files_of(root: Path, module: Sequence[str]) -> Iterator[Path]:
    for depth in range(1, len(module) + 1):
        path = root.joinpath(*module[:depth])
        yield path / "__init__.py"
        yield path.with_suffix(".py")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
