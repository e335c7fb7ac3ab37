"""The field that a plugin keeps in a plan: its spec, and those of its kernels' images that no other plugin keeps.

TensorRT keeps each field twice.  So an image stands once in a plan, at a plugin that is chosen before the build, and
the others name it by its digest: see `images` for how they find it.  Specs and images are compressed.
It is read from files that nobody vouches for.  Fields of older plans, one whole `plugin_spec.to_bytes`, are read too.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerport.bundle.plugin_spec import PluginSpec, dump, format_of, from_bytes, spec_from_json
from layerport.errors import BuildError
from layerport.system.strict_json import read_json

MAGIC = b"layerport-plugin\0\2"
"""How a field begins; its last byte is the number of its format, 3 where the spec is of format 2."""

_NAME, _NUMBERS = MAGIC[:-1], {2, 3}
_MAGIC = re.compile(re.escape(_NAME) + b"[\2\3]")
SPEC_LIMIT = 1 << 22
IMAGE_LIMIT = 1 << 26
_HEAD = struct.Struct(
    "<18sI12sIIH"
)  # magic, bytes of it all, key, bytes of the spec raw and compressed, number of images
_IMAGE = struct.Struct("<32sII")  # digest, bytes raw and compressed
_REPAIR = "build the bundle again; this one is damaged"


def write_field(spec: PluginSpec, digests: Collection[str]) -> bytes:
    """The field of a plugin that keeps the images of these digests.  Equal arguments give equal bytes."""
    text = dump(spec.to_json())
    packed = zlib.compress(text, 9)
    chosen = sorted(digests)
    images = [zlib.compress(spec.images[digest], 9) for digest in chosen]
    entries = [
        _IMAGE.pack(bytes.fromhex(digest), len(spec.images[digest]), len(image))
        for digest, image in zip(chosen, images, strict=True)
    ]
    body = b"".join([*entries, packed, *images])
    magic = _NAME + bytes([format_of(spec) + 1])
    head = _HEAD.pack(magic, _HEAD.size + len(body), bytes.fromhex(spec.key), len(text), len(packed), len(images))
    return head + body


def read_field(data: bytes) -> PluginSpec:
    """The spec of a field, with those images that the field keeps.  Raises BuildError where it is damaged.

    data: as `write_field` gave it, or with the NUL after it with which an ONNX parser ends a text.
    """
    if not data.startswith(_NAME):
        specs = from_bytes(data).specs
        if len(specs) != 1:
            raise BuildError(f"a plugin's field holds {len(specs)} specs", _REPAIR)
        return next(iter(specs.values()))
    number = data[len(_NAME) : len(MAGIC)]
    if number and number[0] not in _NUMBERS:
        raise BuildError(
            f"a plugin's field has format {number[0]}, this layerport reads {max(_NUMBERS)}",
            "install the layerport that built the plan, or a newer one",
        )
    try:
        return _parse(data)
    except BuildError:
        raise
    except Exception as error:
        raise BuildError(f"a plugin's field cannot be read: {type(error).__name__}: {error}", _REPAIR) from error


@dataclass(frozen=True)
class PlanFields:
    """What the plugins' fields in a plan hold.  count: of fields.  missing: images that none keeps, digest -> layer."""

    count: int
    missing: Mapping[str, str]


class Search:
    """Where fields begin in a plan that comes piece by piece."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self._end = b""
        self._before = 0

    def feed(self, piece: bytes | memoryview) -> None:
        """Look through the next piece."""
        overlap = len(MAGIC) - 1
        head, tail = bytes(piece[:overlap]), bytes(piece[-overlap:])
        # One that begins in the piece before shows in the seam.
        seam = self._end + head
        for data, start in ((seam, self._before - len(self._end)), (piece, self._before)):
            self.places += [start + match.start() for match in _MAGIC.finditer(data)]
        self._end = (self._end + tail)[-overlap:]
        self._before += len(piece)


def read_plan(plan: Path, places: Iterable[int]) -> PlanFields:
    """The plugins' fields in a plan, which begin at these places.  Raises BuildError where one cannot be read."""
    count, wanted, kept = 0, dict[str, str](), set[str]()
    with plan.open("rb") as file:
        for place in places:
            file.seek(place)
            head = file.read(_HEAD.size)
            length = _HEAD.unpack(head)[1] if len(head) == _HEAD.size else 0
            spec = read_field(head + file.read(max(0, length - len(head))))
            count += 1
            kept |= spec.images.keys()
            wanted |= dict.fromkeys(spec.digests, spec.layer)
    return PlanFields(count, {digest: layer for digest, layer in wanted.items() if digest not in kept})


def _parse(data: bytes) -> PluginSpec:
    _, length, key, raw, packed, count = _HEAD.unpack_from(data)
    if data[length:] == b"\0":
        data = data[:length]
    if length != len(data):
        raise BuildError(f"a plugin's field has {len(data)} bytes, its head says {length}", _REPAIR)
    place = _HEAD.size
    entries = []
    for _ in range(count):
        entries.append(_IMAGE.unpack_from(data, place))
        place += _IMAGE.size
    text = _unpack(data[place : place + packed], packed, raw, SPEC_LIMIT, "spec")
    if hashlib.sha256(text).digest()[: len(key)] != key:
        raise BuildError(f"plugin spec {key.hex()} has another content", _REPAIR)
    value: Mapping[str, Any] = read_json(text, infinite=True)  # an attribute may be -inf
    place += packed
    images = {}
    for digest, image_raw, image_packed in entries:
        image = _unpack(data[place : place + image_packed], image_packed, image_raw, IMAGE_LIMIT, "image")
        place += image_packed
        if hashlib.sha256(image).digest() != digest:
            raise BuildError(f"image {digest.hex()[:12]} does not have the content it is named after", _REPAIR)
        images[digest.hex()] = image
    if place != len(data):
        raise BuildError(f"a plugin's field has {len(data)} bytes, of which {place} are accounted for", _REPAIR)
    return spec_from_json(value, images, complete=False)


def _unpack(data: bytes, packed: int, raw: int, limit: int, what: str) -> bytes:
    """The decompressed bytes, never more than the head says."""
    if raw > limit:
        raise BuildError(f"a plugin's {what} has {raw} bytes, at most {limit} are read", _REPAIR)
    if len(data) != packed:
        raise BuildError(f"a plugin's {what} is cut short: {len(data)} of {packed} bytes are there", _REPAIR)
    stream = zlib.decompressobj()
    found = stream.decompress(data, raw + 1)
    if len(found) != raw or not stream.eof or stream.unused_data:
        raise BuildError(f"a plugin's {what} does not have the {raw} bytes that its head says", _REPAIR)
    return found
