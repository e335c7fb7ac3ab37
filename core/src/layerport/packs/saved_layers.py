"""How a layer is saved and found again: by identity and version, in the process, an installed pack, or its file.

`Layer.__reduce__` and what it pickles use this file.  A pickle that names an installed pack imports that pack and
no other code; so `installed_layer` may be allowed to `torch.load(..., weights_only=True)`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable
from typing import Any

import layerport.layers
from layerport.errors import UsageError
from layerport.layers.layer import Layer
from layerport.packs.discovery import PackInfo, discover
from layerport.packs.faults import missing_line
from layerport.packs.loading import load_pack
from layerport.packs.metadata import canonical
from layerport.system.python_files import import_file, is_file_module


def reduce_layer(layer: Layer) -> tuple[Callable[..., Layer], tuple[Any, ...]]:
    """What pickle stores of a layer."""
    module = layer.__module__
    package = module.partition(".")[0]
    for info in discover():
        if info.package == package:
            return installed_layer, (layer.name, layer.version, info.distribution, info.version)
    file = os.path.abspath(inspect.unwrap(layer.reference).__code__.co_filename)
    return local_layer, (layer.name, layer.version, module, file)


def installed_layer(name: str, version: int, distribution: str, release: str) -> Layer:
    """The layer of an installed pack; imports the pack where it is not imported yet.

    distribution, release: where the layer came from, when it was saved.
    Raises UsageError where no such layer is there, or one of another version.
    """
    source = f"it was saved with {distribution} {release}"
    found = _registered(name, version)
    faults = []
    if found is None:
        # The pack that it came from first: the others need not be imported then.
        infos = sorted(discover(), key=lambda info: canonical(info.distribution or "") != canonical(distribution))
        for info in infos:
            if (fault := _load(info)) is not None:
                faults.append(fault)
            if (found := _registered(name, version)) is not None:
                break
    if found is None:
        raise UsageError(
            f"layer {name} version {version} is not here: {source}", f"pip install {distribution}", faults=faults
        )
    return _of_version(found, version, source, f"install the release of {distribution} that has version {version}")


def local_layer(name: str, version: int, module: str, file: str) -> Layer:
    """The layer of a module or a file that belongs to no installed pack.

    Raises UsageError where no such layer is there, or one of another version.
    """
    source = f"it was saved from {file}"
    found = _registered(name, version)
    if found is None:
        if is_file_module(module):
            if os.path.isfile(file):
                import_file(file)
        elif module != "__main__" and _importable(module):
            importlib.import_module(module)
        found = _registered(name, version)
    if found is None:
        raise UsageError(
            f"layer {name} version {version} is not here: {source} (module {module})",
            "import the module that defines it first",
        )
    return _of_version(found, version, source, f"use the file as it was with version {version}")


def _registered(name: str, version: int) -> Layer | None:
    found = layerport.layers.operator.registered_layer(name, version)
    return found if isinstance(found, Layer) else None


def _load(info: PackInfo) -> str | None:
    """Import a pack; why it cannot be had."""
    pack = load_pack(info)
    return None if pack.status == "loaded" else missing_line(pack)


def _of_version(layer: Layer, version: int, source: str, repair: str) -> Layer:
    if layer.version != version:
        raise UsageError(
            f"layer {layer.name} is here with version {layer.version}, but version {version} is wanted: {source}",
            f"{repair}, or save the model again with version {layer.version}",
        )
    return layer


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
