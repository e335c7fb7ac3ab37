"""`layerport.lock`: the packs of an environment and what each of their layers is, so that a build can hold to them.

`layerport lock` writes it, `layerport build --locked` compares.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerport.errors import BuildError, PackError, UsageError
from layerport.kernels.cuda_source import CudaSource
from layerport.kernels.toolchains.cuda_includes import local_headers
from layerport.system.records import Record

if TYPE_CHECKING:
    from layerport.kernels.triton_source import TritonSource
    from layerport.layers.layer import Layer
    from layerport.packs.host import Packs

FILE = "layerport.lock"
_FORMAT = 1
_AGAIN = "run `layerport lock` again where this is what you want, or install what was locked"


@dataclass(frozen=True)
class LockedPack(Record):
    """A pack as it was locked.  layers: the digest of each, by `name version N`; distribution: None for a file."""

    name: str
    distribution: str | None
    version: str | None
    layers: Mapping[str, str]


@dataclass(frozen=True)
class Lock(Record):
    """Every pack of an environment, sorted by name."""

    packs: tuple[LockedPack, ...]


def lock_of(packs: Packs) -> Lock:
    """What the loaded packs are.  Raises PackError where one has failed to load, so that nobody knows its layers."""
    if packs.failed:
        raise PackError(
            "packs that do not load cannot be locked",
            "repair or uninstall them, or block them with LAYERPORT_DISABLE_PACKS",
            faults=[f"{one.info.label}: {one.failure}" for one in packs.failed],
        )
    locked = [
        LockedPack(
            one.info.name,
            one.info.distribution,
            one.info.version,
            {f"{layer.name} version {layer.version}": digest_of(layer) for layer in one.layers},
        )
        for one in packs
    ]
    return Lock(tuple(sorted(locked, key=lambda one: (one.name, one.distribution or ""))))


def digest_of(layer: Layer) -> str:
    """SHA-256 of what a layer is made from: its schema, the file of its reference, its kernels' sources and headers."""
    made: dict[str, Any] = {
        "schema": layer.signature.schema(layer.name),
        "version": layer.version,
        "reference": _file_digest(layer.reference),
        "kernels": [],
    }
    for name, source in ((kernel.name, source) for kernel in layer.kernels for source in kernel.sources):
        if not isinstance(source, CudaSource):
            made["kernels"].append([name, *_triton_parts(source)])
            continue
        text = source.read()
        base = source.folder or os.curdir
        folder = os.path.abspath(base if source.path is None else source.path.parent)
        headers = local_headers(text, folder, [os.path.join(base, one) for one in source.include])
        parts = [name, source.entry, list(source.options), text, headers]
        made["kernels"].append(parts)
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def write_lock(lock: Lock, path: Path) -> None:
    """Write a lock, in place of an older one.  Raises BuildError where the file cannot be written."""
    try:
        path.write_text(json.dumps({"format": _FORMAT, **lock.to_json()}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise BuildError(f"{path} cannot be written: {error.strerror}", "choose another folder") from error


def require_locked(packs: Packs, path: Path | None) -> None:
    """Raise UsageError, with every difference, unless the loaded packs are those of a lock; None: of the one here."""
    path = path or Path(FILE)
    before = {(one.name, one.distribution): one for one in _read(path).packs}
    now = {(one.name, one.distribution): one for one in lock_of(packs).packs}
    faults = [f"pack {_label(before[key])} is not here" for key in before.keys() - now.keys()]
    faults += [f"pack {_label(now[key])} was not locked" for key in now.keys() - before.keys()]
    for key in before.keys() & now.keys():
        old, new = before[key], now[key]
        if old.version != new.version:
            faults.append(f"pack {old.name}: version {new.version} is here, {old.version} was locked")
        for layer in sorted({*old.layers, *new.layers}):
            if layer not in new.layers:
                faults.append(f"layer {layer} of pack {old.name} is not here")
            elif layer not in old.layers:
                faults.append(f"layer {layer} of pack {old.name} was not locked")
            elif old.layers[layer] != new.layers[layer]:
                faults.append(f"layer {layer} of pack {old.name} is another one than was locked")
    if faults:
        raise UsageError(f"the packs here are not those of {path}", _AGAIN, faults=sorted(faults))


def _read(path: Path) -> Lock:
    """The lock of a file.  Raises UsageError where there is none, or where it is no lock."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["format"] != _FORMAT:
            raise ValueError(f"its format is {said['format']!r}, not {_FORMAT}")
        packs = tuple(LockedPack(**one) for one in said["packs"])
        if not all(isinstance(one.name, str) and isinstance(one.layers, dict) for one in packs):
            raise ValueError("a pack in it has no name or no layers")
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}", "run `layerport lock` in this folder, and keep the file") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read as a lock: {error}", "run `layerport lock` again") from error
    return Lock(packs)


def _label(pack: LockedPack) -> str:
    return f"{pack.name} ({pack.distribution} {pack.version})" if pack.distribution else pack.name


def _triton_parts(source: TritonSource) -> list[Any]:
    """The function's file, and the options that are values; those that are functions stand in the reference's file."""
    plain = {name: value for name, value in source.constexprs.items() if not callable(value)}
    plain |= {one: getattr(source, one) for one in ("num_warps", "num_stages") if not callable(getattr(source, one))}
    if not isinstance(source.fn, str):
        function = getattr(source.fn, "fn", source.fn)
        return [function.__name__, _file_digest(function), repr(sorted(plain.items()))]
    place, _, name = source.fn.rpartition(":")
    if place.endswith(".py"):
        file = Path(source.folder or os.curdir, place)
    else:
        spec = importlib.util.find_spec(place, source.package)
        file = Path(spec.origin) if spec is not None and spec.origin else Path(place)
    return [name, hashlib.sha256(file.read_bytes()).hexdigest(), repr(sorted(plain.items()))]


def _file_digest(function: Any) -> str:
    """Of the file, since a reference calls helpers; of the code alone where there is no file."""
    code = inspect.unwrap(function).__code__
    try:
        data = Path(code.co_filename).read_bytes()
    except OSError:
        data = code.co_code + repr(code.co_consts).encode()
    return hashlib.sha256(data).hexdigest()
