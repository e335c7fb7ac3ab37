"""The bundle: the folder that a build writes.  Written atomically, read with trust in nothing; imports no framework."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, cast

import layerport.bundle
import layerport.parameters
from layerport.bundle import staging
from layerport.bundle.entries import Manifest
from layerport.bundle.manifest import dim_of, port_of, read_manifest
from layerport.bundle.names import FORMAT, MANIFEST, MANIFEST_LIMIT, MODEL, MODEL_DATA, PLUGINS, SAMPLES
from layerport.bundle.replacing import is_whole, put_in_place, recover, require_replaceable, set_aside
from layerport.errors import BuildError, UsageError
from layerport.parameters.comparison import Loss
from layerport.sizes.conditions import Condition
from layerport.sizes.dims import DimRange
from layerport.sizes.tensors import TensorType
from layerport.system import html
from layerport.system.plain_files import NotPlainError, identity, mentions, open_plain

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
# Beyond these the formats themselves end; each is read into memory.
_LARGEST_FILES = {MODEL: 2**31 - 1, PLUGINS: 1 << 30}


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
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


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
    text = json.dumps({"format": FORMAT, **content, "files": files}, indent=1, sort_keys=True) + "\n"
    # What would be refused when it is opened must not be written.
    manifest = read_manifest(text.encode(), MANIFEST)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    bundle = Bundle(folder, manifest)
    bundle.checked.update({path.name: identity(path.lstat()) for path in paths})
    return bundle


class DamagedFile(BuildError):
    """A file is not what the manifest says: never a reason to use something else instead."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.  Opened with `Bundle.open`; each file is checked against the manifest when it is asked for."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Read a bundle's manifest.  Raises UsageError where there is none, BuildError where it is damaged."""
        folder = Path(folder)
        path = folder / MANIFEST
        if not os.path.lexists(path):
            if not os.path.lexists(folder) and is_whole(aside := set_aside(folder)):
                raise UsageError(
                    f"{folder} is not there: a build was killed while it replaced it",
                    f"rename {aside} to {folder.name}, or build again, which does that first",
                )
            raise UsageError(
                f"{folder} is not a bundle: it has no {MANIFEST}", "name the folder that `layerport build -o` wrote"
            )
        try:
            with open_plain(path) as file:
                size = os.fstat(file.fileno()).st_size
                if size > MANIFEST_LIMIT:
                    raise BuildError(f"{path} has {size} bytes, at most {MANIFEST_LIMIT} are read", "build it again")
                data = _read_exactly(file, size)
        except (NotPlainError, OSError) as error:
            raise BuildError(f"{path} cannot be read: {error}", "copy the whole bundle again") from error
        return cls(folder, read_manifest(data, str(path)))

    def _repr_html_(self) -> str:
        manifest = self.manifest
        layers = Counter((one["layer"], one["version"], one["pack"], one["realised"]) for one in manifest["layers"])
        ports = [("input", one) for one in self.inputs] + [("output", one) for one in self.outputs]
        engines = ((one["target"], one["file"], one["plugins"], one["tensorrt"]) for one in manifest["targets"])
        return "".join(
            (
                html.line(f"bundle {self.folder}, written by layerport {manifest['layerport']}"),
                html.table(("port", "tensor"), ports),
                html.table(("dim", "min", "usual", "max"), ((d.name, d.min, d.opt, d.max) for d in self.dims.values())),
                html.table(("layer", "version", "pack", "realised", "nodes"), ((*k, n) for k, n in layers.items())),
                html.table(("engine for", "file", "plugins", "TensorRT"), engines) or html.line("no engine: portable"),
            )
        )

    @cached_property
    def inputs(self) -> tuple[TensorType, ...]:
        """The inputs of the model."""
        return tuple(map(port_of, self.manifest["inputs"]))

    @cached_property
    def outputs(self) -> tuple[TensorType, ...]:
        """The outputs of the model."""
        return tuple(map(port_of, self.manifest["outputs"]))

    @cached_property
    def dims(self) -> Mapping[str, DimRange]:
        """The dynamic dims by name."""
        return {one["name"]: dim_of(one) for one in self.manifest["dims"]}

    def require_engine(self) -> None:
        """Raise BuildError where the bundle holds no engine."""
        if not self.manifest["targets"]:
            raise BuildError(
                "the bundle holds no engine, it is portable", "build it with a target such as rtx:sm_89,sm_120"
            )

    @cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """What the sizes of the dims must fulfil beyond their ranges."""
        return tuple(Condition.read(one, self.dims) for one in self.manifest.get("conditions", []))

    @cached_property
    def checked(self) -> dict[str, tuple[int, ...]]:
        """What the files were when they were checked: their identity, which changes when they are written to."""
        return {}

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists, its size and digest checked.  Raises DamagedFile.

        Whoever opens the path opens it once more: `require_unchanged` afterwards says whether it was the same.
        """
        with self._opened(name) as (file, unseen):
            if unseen:
                try:
                    found = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
                except OSError as error:
                    raise self._damaged(name, f"cannot be read: {error}") from error
                self._require_digest(name, found)
                self._seen(name, file)
        return self.folder / name

    def read(self, name: str) -> bytearray:
        """The content of a file that the manifest lists, checked as it is read.  Raises DamagedFile."""
        with self._opened(name) as (file, unseen):
            try:
                data = _read_exactly(file, self.manifest["files"][name]["bytes"])
            except OSError as error:
                raise self._damaged(name, f"cannot be read: {error}") from error
            if unseen:
                self._require_digest(name, hashlib.sha256(data).hexdigest())
                self._seen(name, file)
        return data

    def require_unchanged(self) -> None:
        """Raise DamagedFile where a file is no longer the one that was checked, for who opens a path once more."""
        for name, seen in self.checked.items():
            try:
                same = seen == identity(os.lstat(self.folder / name))
            except OSError:
                same = False
            if not same:
                raise self._damaged(name, "was changed while it was opened")

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[BinaryIO, bool]]:
        """A listed file, opened, and whether its digest is still to be checked."""
        stated = self.manifest["files"].get(name)
        path = self.folder / name
        if stated is None:
            raise DamagedFile(f"{self.folder} does not list a file {name!r}", "build the bundle again")
        try:
            file = open_plain(path)
        except NotPlainError as error:
            raise self._damaged(name, f"is missing or not a plain file: {error}") from error
        with file:
            status = os.fstat(file.fileno())
            if status.st_size != stated["bytes"]:
                raise self._damaged(name, f"has {status.st_size} bytes, the manifest says {stated['bytes']}")
            if (most := _LARGEST_FILES.get(name, status.st_size)) < status.st_size:
                raise self._damaged(name, f"has {status.st_size} bytes, at most {most} are read")
            yield file, self.checked.get(name) != identity(status)

    def _require_digest(self, name: str, found: str) -> None:
        stated = self.manifest["files"][name]["sha256"]
        if found != stated:
            raise DamagedFile(
                f"{self.folder / name} has SHA-256 {found[:16]}..., the manifest says {stated[:16]}...",
                "copy the whole bundle again; if you did not change it, trust it no more",
            )

    def _seen(self, name: str, file: BinaryIO) -> None:
        self.checked[name] = identity(os.fstat(file.fileno()))

    def _damaged(self, name: str, fault: str) -> DamagedFile:
        return DamagedFile(f"{self.folder / name} {fault}", "copy the whole bundle again")

    def model(self) -> Path:
        """The portable model, checked together with the files that its tensors name: the listed ones only."""
        path = self.file(MODEL)
        # Each tensor with data elsewhere has this key, so most models need not be read twice, nor onnx be loaded.
        with self._opened(MODEL) as (file, _):
            elsewhere = mentions(file, b"location")
        if elsewhere:
            sizes = {name: entry["bytes"] for name, entry in self.manifest["files"].items()}
            for name in layerport.bundle.external_data.require_listed(path, sizes.get):
                self.file(name)
        self.require_unchanged()
        return path

    @property
    def losses(self) -> dict[str, Loss]:
        """What the model's lossy claims change, by the name of the output; empty without such claims."""
        samples = self.manifest.get("samples")
        entries = samples.get("losses", {}) if samples else {}
        return {name: Loss(one["error"], one["cosine"]) for name, one in entries.items()}

    @property
    def precisions(self) -> dict[str, str]:
        """The coarser dtype that an output was computed through, by its name; empty where none was."""
        samples = self.manifest.get("samples")
        return dict(samples.get("precisions", {})) if samples else {}

    def samples(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The example inputs and Torch's outputs for them, by name, as NumPy arrays."""
        stored = layerport.parameters.standard_form.Parameters.from_bytes(
            self.read(SAMPLES), where=str(self.folder / SAMPLES)
        )
        inputs = {name.removeprefix("input."): array for name, array in stored.items() if name.startswith("input.")}
        outputs = {name.removeprefix("output."): array for name, array in stored.items() if name.startswith("output.")}
        return inputs, outputs


def _read_exactly(file: BinaryIO, size: int) -> bytearray:
    """So many bytes, whatever was added meanwhile.  Raises OSError where there are fewer."""
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = cast(Any, file).readinto(rest)
        if not count:
            raise OSError(f"it ends at byte {size - len(rest)} of {size}")
        rest = rest[count:]
    return data
