"""`layerport new`: writes a new pack from the template in `templates/`, offline, all of it or nothing.

`cli` uses this file.  A template's name gives the path: `_pack_` and `_layer_` are the names, `dot_` stands for a dot.
"""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import string
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import layerport
import layerport.layers
from layerport.commands.tables import say
from layerport.errors import BuildError, UsageError
from layerport.layers.written import RESERVED_NAMESPACES
from layerport.packs.discovery import discover
from layerport.packs.metadata import canonical
from layerport.system.records import Record
from layerport.system.renames import rename_new

KERNEL_FILES = {"cuda": "kernel.cu", "triton": "kernel.py"}
_EXTRAS = {"cuda": "build", "triton": "build,triton"}
_SUFFIX = ".template"
_IDENTIFIER = re.compile(r"[a-z](?:[a-z0-9_]*[a-z0-9])?")
_LONGEST = 64
# What the generated modules import or define beside the layer.
_TAKEN_IN_MODULES = frozenset({"lp", "torch", "launch", "plugin", "x", "scale", "beta", "values", "wide"})


@dataclass(frozen=True)
class NewPack(Record):
    """The pack that was written: its folder, and its files in it."""

    name: str
    layer: str
    toolchain: str
    folder: str
    files: tuple[str, ...]


def new_pack(name: str, *, toolchain: str = "cuda", layer: str = "scaled_swish", folder: Path | None = None) -> NewPack:
    """Write the pack `name` into the folder of this name in `folder` (default: the working folder).

    Raises UsageError with all that is wrong with the names at once, or where something has the folder's name already;
    BuildError where the disk does not take it.  Then nothing was written.
    """
    place = (folder or Path()) / name
    faults = [*_name_faults(name), *_layer_faults(layer)]
    if toolchain not in KERNEL_FILES:
        faults.append(f"there is no toolchain {toolchain!r}; choose one of {', '.join(KERNEL_FILES)}")
    if _fits(name) and os.path.lexists(place):
        faults.append(f"{place} is there already, kept; choose another name or another folder")
    if faults:
        raise UsageError(f"a pack {name!r} cannot be made", "nothing was written; call it otherwise", faults=faults)

    files = dict(_filled(toolchain, _values(name, layer, toolchain)))
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=place.parent, ignore_cleanup_errors=True) as outer:
            part = Path(outer, name)
            for path, text in files.items():
                file = part / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8", newline="\n")
            rename_new(part, place)
    except FileExistsError as error:  # somebody was faster
        raise UsageError(f"{place} is there already, kept", "choose another name or another folder") from error
    except OSError as error:
        raise _failed(place, error) from error
    return NewPack(name, layer, toolchain, str(place), tuple(sorted(files)))


def render_new_pack(made: NewPack) -> None:
    """Print what was written, and the next commands."""
    say(f"{made.folder}: pack {made.name} with layer {made.name}::{made.layer} and a {made.toolchain} kernel")
    for file in made.files:
        say(f"  {file}")
    say(f"next: cd {made.folder} && pip install -e . pytest && layerport check {made.name} && pytest")


def _fits(name: str) -> bool:
    return _IDENTIFIER.fullmatch(name) is not None and len(name) <= _LONGEST


def _identifier_faults(what: str, name: str) -> list[str]:
    if not _fits(name):
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")[:_LONGEST]
        hint = f", as in {near!r}" if near else ""
        return [
            f"the {what}'s name {name!r} is no identifier of at most {_LONGEST} lower-case letters, digits and _ that "
            f"begins with a letter and does not end with _{hint}"
        ]
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        return [f"the {what}'s name {name!r} is a word of Python's own"]
    return []


def _name_faults(name: str) -> Iterator[str]:
    if faults := _identifier_faults("pack", name):
        yield from faults
        return
    if name in RESERVED_NAMESPACES or canonical(name).startswith("layerport"):
        yield f"the name {name!r} is reserved"
    if name in sys.stdlib_module_names:
        yield f"the name {name!r} is a module of Python's own"
    rivals = [
        info
        for info in discover(environ={})
        if canonical(name) in map(canonical, (info.name, info.distribution or "", info.package))
    ]
    if rivals:
        yield f"the name {name!r} is taken by the installed pack {rivals[0].label}"
    elif name not in sys.stdlib_module_names and _is_importable(name):
        yield f"the name {name!r} is taken by an installed package"


def _is_importable(name: str) -> bool:
    """Whether a package or module has the name; a folder without code, such as one left here, has not."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return True
    return found is not None and found.origin is not None


def _layer_faults(layer: str) -> Iterator[str]:
    if faults := _identifier_faults("layer", layer):
        yield from faults
    elif layer in _TAKEN_IN_MODULES:
        yield f"the layer's name {layer!r} is used in the template itself"


def _values(name: str, layer: str, toolchain: str) -> dict[str, str]:
    major, minor = layerport.__version__.split(".")[:2]
    return {
        "pack": name,
        "layer": layer,
        "distribution": name.replace("_", "-"),
        "class_name": "".join(part.capitalize() for part in layer.split("_")),
        "kernel_file": KERNEL_FILES[toolchain],
        "extras": _EXTRAS[toolchain],
        "range": f">={major}.{minor},<{major}.{int(minor) + 1}",
    }


def _filled(toolchain: str, values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    root = resources.files(layerport) / "templates"
    for part in ("pack", toolchain):
        for path, file in _templates(root / part):
            path = path.replace("_pack_", values["pack"]).replace("_layer_", values["layer"]).replace("dot_", ".")
            yield path, string.Template(file.read_text(encoding="utf-8")).substitute(values)


def _templates(folder: Traversable, within: str = "") -> Iterator[tuple[str, Traversable]]:
    for one in folder.iterdir():
        if one.is_dir():
            yield from _templates(one, f"{within}{one.name}/")
        elif one.name.endswith(_SUFFIX):
            yield within + one.name.removesuffix(_SUFFIX), one


def _failed(place: Path, error: OSError) -> BuildError:
    return BuildError(
        f"the pack cannot be written to {place}: {error.strerror or error}", "go to a folder that you may write to"
    )
