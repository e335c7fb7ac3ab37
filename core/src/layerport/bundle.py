"""The bundle: the folder that a build writes.  Written atomically, read with trust in nothing; imports no framework."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from layerport import staging
from layerport.bundle_names import FORMAT, MANIFEST, MANIFEST_LIMIT, MODEL, MODEL_DATA, PLUGINS, SAMPLES
from layerport.conditions import LIMIT, Condition
from layerport.dims import DimRange, Port, follows_from
from layerport.dtypes import DType
from layerport.errors import BuildError, UsageError
from layerport.replacing import is_whole, put_in_place, recover, require_replaceable, set_aside

_SIDE_BY_SIDE = 1 << 20
__all__ = [
    "FORMAT",
    "MANIFEST",
    "MODEL",
    "MODEL_DATA",
    "PLUGINS",
    "SAMPLES",
    "Bundle",
    "DamagedFile",
    "HashedFile",
    "check_output",
    "digest",
    "write_hashed",
    "write_manifest",
    "writing",
]
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}")


@contextmanager
def writing(out: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends well, and is gone otherwise.

    Raises UsageError where `out` exists and `force` is not set, or is no bundle, BuildError where the disk does not
    take it.
    """
    check_output(out, force=force)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(staging.folder_for(out))
        except OSError as error:
            raise BuildError(f"cannot write beside {out}: {error.strerror}", "choose another place with -o") from error
        try:
            yield folder
            check_output(out, force=force)  # another build may have been quicker
            put_in_place(folder, out)
        except OSError as error:
            raise BuildError(
                f"writing {out} failed: {error.strerror or error}; nothing was written",
                "free some space, or choose another place with -o",
            ) from error


def check_output(out: Path, *, force: bool = False) -> None:
    """Raise UsageError where a bundle cannot be written to `out`; cheap enough to ask before a long build.

    An older bundle that a killed replacement left beside `out` is put back first.
    """
    if not out.parent.is_dir():
        raise UsageError(f"there is no folder {out.parent}", "make it first, or choose another place with -o")
    if not os.access(out.parent, os.W_OK):
        raise BuildError(f"cannot write beside {out}: permission denied", "choose another place with -o")
    recover(out)
    if not os.path.lexists(out):
        return
    if not force:
        raise UsageError(f"{out} exists and was kept", "choose another name with -o, or overwrite it with --force")
    require_replaceable(out)


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HashedFile:
    """A file of a bundle that is hashed while it is written, so that nobody reads it again."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._digest = hashlib.sha256()
        self._file = path.open("wb", buffering=0)

    def write(self, data: bytes | memoryview) -> None:
        """Write all of it."""
        # Neither holds Python's lock for long pieces, so they run side by side.
        hashing = threading.Thread(target=self._digest.update, args=(data,)) if len(data) >= _SIDE_BY_SIDE else None
        if hashing is None:
            self._digest.update(data)
        else:
            hashing.start()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        finally:
            if hashing is not None:
                hashing.join()
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """The digest of what was written, in hex."""
        return self._digest.hexdigest()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def write_hashed(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Write a file in pieces; its SHA-256."""
    with HashedFile(path) as file:
        for piece in pieces:
            file.write(piece)
    return file.sha256


def write_manifest(folder: Path, content: Mapping[str, Any], known: Mapping[str, str] = MappingProxyType({})) -> Bundle:
    """Write `manifest.json` over the files that are in the folder by now, and return it as a bundle.

    known: the digests of files by name, from those who wrote them; the others are read.  All files count as checked.
    """
    from concurrent.futures import ThreadPoolExecutor

    paths = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST]
    with ThreadPoolExecutor() as pool:  # hashing does not hold Python's lock
        digests = list(pool.map(lambda path: known.get(path.name) or digest(path), paths))
    files = {
        path.name: {"sha256": sha256, "bytes": path.stat().st_size} for path, sha256 in zip(paths, digests, strict=True)
    }
    text = json.dumps({"format": FORMAT, **content, "files": files}, indent=1, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    bundle = Bundle(folder, json.loads(text))
    bundle.checked.update({name: folder / name for name in files})
    return bundle


class DamagedFile(BuildError):
    """A file is not what the manifest says: never a reason to use something else instead."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.  Opened with `Bundle.open`; each file is checked against the manifest when it is asked for."""

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Read a bundle's manifest.  Raises UsageError where there is none, BuildError where it is damaged."""
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            if not os.path.lexists(folder) and is_whole(aside := set_aside(folder)):
                raise UsageError(
                    f"{folder} is not there: a build was killed while it replaced it",
                    f"rename {aside} to {folder.name}, or build again, which does that first",
                )
            raise UsageError(
                f"{folder} is not a bundle: it has no {MANIFEST}", "name the folder that `layerport build -o` wrote"
            )
        if path.stat().st_size > MANIFEST_LIMIT:
            raise BuildError(
                f"{path} has {path.stat().st_size} bytes, at most {MANIFEST_LIMIT} are read", "build it again"
            )
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                raise BuildError(
                    f"{folder} has format {manifest['format']!r}, this layerport reads {FORMAT}",
                    "build it again, or install the layerport that wrote it",
                )
            bundle = cls(folder, manifest)
            _check_shape(bundle)
        except BuildError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
            raise BuildError(
                f"{path} cannot be read: {type(error).__name__}: {error}", "build the bundle again"
            ) from error
        return bundle

    @cached_property
    def inputs(self) -> tuple[Port, ...]:
        """The inputs of the model."""
        return tuple(_port(value, self.dims) for value in self.manifest["inputs"])

    @cached_property
    def outputs(self) -> tuple[Port, ...]:
        """The outputs of the model."""
        return tuple(_port(value, self.dims) for value in self.manifest["outputs"])

    @cached_property
    def dims(self) -> Mapping[str, DimRange]:
        """The dynamic dims by name."""
        return {one["name"]: DimRange(one["name"], one["min"], one["opt"], one["max"]) for one in self.manifest["dims"]}

    def require_engine(self) -> None:
        """Raise BuildError where the bundle holds no engine."""
        if not self.manifest["targets"]:
            raise BuildError(
                "the bundle holds no engine, it is portable", "build it with a target such as rtx:sm_89,sm_120"
            )

    @cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """What the sizes of the dims must fulfil beyond their ranges."""
        stated = self.manifest.get("conditions", [])
        if not isinstance(stated, list) or len(stated) > LIMIT:
            raise ValueError(f"the conditions are no list of at most {LIMIT}")
        return tuple(Condition.read(one, self.dims) for one in stated)

    @cached_property
    def checked(self) -> dict[str, Path]:
        """The files that were checked already."""
        return {}

    def file(self, name: str) -> Path:
        """The path of a file that the manifest names, its size and digest checked.  Raises DamagedFile."""
        if name in self.checked:
            return self.checked[name]
        stated = self.manifest["files"].get(name)
        path = self.folder / name
        if stated is None or not _FILE_NAME.fullmatch(name):
            raise DamagedFile(f"{self.folder} does not list a file {name!r}", "build the bundle again")
        if path.is_symlink() or not path.is_file():
            raise DamagedFile(f"{path} is missing or not a plain file", "copy the whole bundle again")
        if path.stat().st_size != stated["bytes"]:
            raise DamagedFile(
                f"{path} has {path.stat().st_size} bytes, the manifest says {stated['bytes']}",
                "copy the whole bundle again",
            )
        if (found := digest(path)) != stated["sha256"]:
            raise DamagedFile(
                f"{path} has SHA-256 {found[:16]}..., the manifest says {str(stated['sha256'])[:16]}...",
                "copy the whole bundle again; if you did not change it, trust it no more",
            )
        self.checked[name] = path
        return path

    def model(self) -> Path:
        """The portable model, checked together with its external weights."""
        if MODEL_DATA in self.manifest["files"]:
            self.file(MODEL_DATA)
        return self.file(MODEL)

    def samples(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The example inputs and Torch's outputs for them, by name, as NumPy arrays."""
        from layerport.parameters import Parameters

        stored = Parameters.load(self.file(SAMPLES))
        inputs = {name.removeprefix("input."): array for name, array in stored.items() if name.startswith("input.")}
        outputs = {name.removeprefix("output."): array for name, array in stored.items() if name.startswith("output.")}
        return inputs, outputs


def _check_shape(bundle: Bundle) -> None:
    manifest = bundle.manifest
    bundle.inputs, bundle.outputs, bundle.dims, bundle.conditions  # noqa: B018 - each reads and checks its part
    for name, entry in manifest["files"].items():
        if not _FILE_NAME.fullmatch(name):
            raise ValueError(f"file name {name!r} leads out of the bundle")
        if not isinstance(entry["bytes"], int) or not re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]):
            raise ValueError(f"file {name!r} has no size and digest")
    for one in manifest["targets"]:
        if one["file"] not in manifest["files"]:
            raise ValueError(f"plan {one['file']!r} is not among the files")
    for one in manifest["layers"]:
        if not isinstance(one["layer"], str) or not isinstance(one["realised"], str):
            raise ValueError("a layer has no name or realisation")


def _port(value: Mapping[str, Any], known: Collection[str]) -> Port:
    name, dims = value["name"], tuple(value["dims"])
    for dim in dims:
        if not ((type(dim) is int and dim >= 0) or dim is None or (type(dim) is str and follows_from(dim, known))):
            raise ValueError(f"input or output {name!r} has dims {dims!r:.80}")
    if not isinstance(name, str):
        raise ValueError(f"input or output {name!r} has no name")
    return Port(name, DType(value["dtype"]).value, dims)
