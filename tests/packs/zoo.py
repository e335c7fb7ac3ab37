"""The zoo of broken packs: what one is, how its wheel is made, and how wheels are installed.

The records stand in `zoo_metadata`, `zoo_imports` and `zoo_hooks`.  A wheel is a real one, with RECORD; installing it
is unpacking it, as pip does for pure wheels.  What only a broken installation has, `after` does to the folder.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

VERSION = "1.0"


@dataclass(frozen=True)
class BrokenPack:
    """One pack with a fault, and what has to be said of it.

    name: its entry point; the distribution is called the same, with hyphens, and the module too.
    source: the module's text, in which NAMESPACE stands for the namespace of its layers; None for no module.
    said: its line in `layerport packs --load`.  status: what stands in the table there.
    is_listed: whether `layerport packs` says it already, from the metadata alone.
    build: what a build that does not need the pack says of it; "" where it says nothing, None where it says `said`.
    needed: what a build that needs it says before it ends with exit code 3; None where it says `said`.
    layer: the layer by which a build asks for it.  ends: whether it ends, or keeps busy, every process that imports it.
    in_the_way: whether Torch itself cannot be imported beside it.  target: for what such a build is.
    points, metadata: files of the dist-info, bytes as they are.
    files: further files.  rows: how many lines it has in the table.
    """

    name: str
    source: str | None
    said: str
    status: str = "failed"
    is_listed: bool = False
    build: str | None = None
    needed: str | None = None
    layer: str = "NAMESPACE::plain"
    exit_code: int = 3
    ends: bool = False
    target: str = "portable"
    in_the_way: bool = False
    points: str | bytes | None = None
    metadata: str | bytes | None = None
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    after: Callable[[Path, Path], None] | None = None
    distribution: str | None = None
    shown_name: str | None = None

    @property
    def called(self) -> str:
        """The distribution's name."""
        return self.distribution or self.name.replace("_", "-")

    @property
    def row(self) -> str:
        """The pack's name in the table."""
        return self.name if self.shown_name is None else self.shown_name

    def text(self, text: str) -> str:
        """A text of the record with its namespace in it."""
        return text.replace("NAMESPACE", self.name).replace("VERSION", VERSION)


def make_wheel(pack: BrokenPack, folder: Path) -> Path:
    """Write the wheel of a pack; returns its path."""
    stem = f"{pack.called.replace('-', '_')}-{VERSION}"
    info = f"{stem}.dist-info"
    points = f"[layerport]\n{pack.name} = {pack.name}\n" if pack.points is None else pack.points
    metadata = f"Metadata-Version: 2.1\nName: {pack.called}\nVersion: {VERSION}\n"
    files: dict[str, str | bytes] = {
        **({f"{pack.name}.py": pack.text(pack.source)} if pack.source is not None else {}),
        **{name: pack.text(text) if isinstance(text, str) else text for name, text in pack.files.items()},
        f"{info}/METADATA": metadata if pack.metadata is None else pack.metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: zoo\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": pack.text(points) if isinstance(points, str) else points,
    }
    path = folder / f"{stem}-py3-none-any.whl"
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.writerow((name, f"sha256={digest}", len(data)))
            wheel.writestr(name, data)
        rows.writerow((f"{info}/RECORD", "", ""))
        wheel.writestr(f"{info}/RECORD", record.getvalue())
    return path


def install(packs: Iterable[BrokenPack], folder: Path, wheels: Path) -> None:
    """Make the wheel of each pack and unpack it into one folder, as an installer does."""
    for pack in packs:
        wheel = make_wheel(pack, wheels)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        if pack.after is not None:
            pack.after(folder, folder / f"{pack.called.replace('-', '_')}-{VERSION}.dist-info")


PLAIN = """
import torch
from torch import Tensor

import layerport as lp


@lp.layer("NAMESPACE::plain")
def plain(x: Tensor) -> Tensor:
    return x * 3.0


@lp.hookimpl
def layerport_layers():
    return (plain,)
"""

HOOK = "import layerport as lp\n\n\n@lp.hookimpl\n"
