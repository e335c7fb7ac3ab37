"""What must hold of a pack as a pip distribution: that others can install it, and that all it needs comes along."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from layerport.kernels.cuda_source import CudaSource
from layerport.kernels.toolchains.cuda_includes import local_headers
from layerport.packs.discovery import CORE_NAME
from layerport.packs.loading import Pack
from layerport.packs.metadata import canonical, editable_source
from layerport.testing.conformance.records import FoundFaultError

_FIELDS = {
    "Summary": 'description = "..."',
    "Requires-Python": 'requires-python = ">=3.11"',
}
_LICENSES = ("License-Expression", "License-File", "License")


def check_distribution(pack: Pack) -> list[str]:
    """The metadata says what is needed, and the kernels' files and py.typed belong to the distribution."""
    name = pack.info.distribution
    assert name is not None, "a file is no distribution"
    distribution = metadata.distribution(name)
    editable = editable_source(distribution)
    faults = _metadata_faults(distribution)
    package = sys.modules.get(pack.info.package)
    folder = Path(next(iter(getattr(package, "__path__", ())), "")).resolve()
    if hasattr(package, "__path__") and not (folder / "py.typed").is_file():
        faults.append(f"package {pack.info.package} has no file py.typed, so its types are lost: add an empty one")
    installed = None if editable else _installed(distribution)
    module = getattr(pack.plugin, "__file__", None)
    if module and installed is not None and Path(module).resolve() not in installed:
        faults.append(f"its entry point imports {module}, which the distribution has not installed: rename one of them")
    for layer, file in _kernel_files(pack):
        if installed is not None and file not in installed:
            faults.append(f"layer {layer}: the file {file} is not of the distribution: put it into the wheel")
        elif editable and folder not in file.parents:
            faults.append(f"layer {layer}: the file {file} lies outside the package {folder}: move it there")
    if faults:
        raise FoundFaultError(
            f"distribution {name} {distribution.version} is not complete", "correct its pyproject.toml", faults=faults
        )
    if editable:
        return ["installed in editable mode: what the wheel holds was not seen; check it installed from a wheel too"]
    return []


def _metadata_faults(distribution: metadata.Distribution) -> list[str]:
    said = distribution.metadata
    faults = [f"its metadata has no {field}: write {line}" for field, line in _FIELDS.items() if field not in said]
    if not any(field in said for field in _LICENSES):
        faults.append('its metadata has no licence: write license = "Apache-2.0", say')
    required = set()
    for text in distribution.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            faults.append(f"it requires {text!r}, which no installer reads")
            continue
        if requirement.marker is None or "extra" not in str(requirement.marker):
            required.add(canonical(requirement.name))
    if CORE_NAME not in required:
        faults.append(f'it does not require {CORE_NAME}: write dependencies = ["{CORE_NAME}>=..."]')
    return faults


def _installed(distribution: metadata.Distribution) -> set[Path]:
    return {Path(str(distribution.locate_file(file))).resolve() for file in distribution.files or ()}


def _kernel_files(pack: Pack) -> list[tuple[str, Path]]:
    """The layer and the path of each file that its kernels are compiled from."""
    found: dict[tuple[str, Path], None] = {}
    for layer in pack.layers:
        for source in (source for kernel in layer.kernels for source in kernel.sources):
            if not isinstance(source, CudaSource):
                continue  # a Python module, which was imported
            folder = os.path.abspath(source.folder or os.curdir if source.path is None else source.path.parent)
            if source.path is not None:
                found[layer.name, source.path.resolve()] = None
            include = [os.path.join(source.folder or os.curdir, one) for one in source.include]
            for header, _ in local_headers(source.read(), folder, include) or ():
                found[layer.name, Path(folder, header).resolve()] = None
    return list(found)
