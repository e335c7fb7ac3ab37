"""A plugin's field in a plan: what is written comes back, and anything else is a BuildError and nothing else."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from layerport.bundle.plugin_spec import PluginSet, dump, to_bytes
from layerport.engine import plan_fields
from layerport.engine.plan_fields import MAGIC, Search, read_field, read_plan, write_field
from layerport.errors import BuildError
from plugin_specs import FIRST, IMAGES, SECOND, spec

WHOLE = write_field(spec(), IMAGES)


def test_what_is_written_comes_back_with_the_images_that_were_kept() -> None:
    one = spec()
    for kept in ([], [SECOND], [SECOND, FIRST]):
        data = write_field(one, kept)
        read = read_field(data)
        assert (read.key, read.to_json()) == (one.key, one.to_json())
        assert dict(read.images) == {digest: IMAGES[digest] for digest in kept}
        assert write_field(one, reversed(kept)) == data  # type: ignore[arg-type]


def test_a_pack_s_own_class_has_no_images() -> None:
    own = spec(kernels=(), images={}, plugin_class="pack.plugins:Own")
    read = read_field(write_field(own, ()))
    assert read.plugin_class == "pack.plugins:Own" and read.digests == frozenset()


def test_fields_of_plans_of_before() -> None:
    one = spec()
    read = read_field(to_bytes(PluginSet({one.key: one}, {})))
    assert read.key == one.key and dict(read.images) == IMAGES
    with pytest.raises(BuildError, match="a plugin's field holds 0 specs"):
        read_field(to_bytes(PluginSet({}, {})))


def head(**changes: Any) -> bytes:
    """A field of the spec without images, with other numbers in its head."""
    text = dump(spec().to_json())
    values = {"raw": len(text), "text": zlib.compress(text), "count": 0, **changes}
    try:
        content = zlib.decompress(values["text"])
    except zlib.error:
        content = text
    values.setdefault("key", hashlib.sha256(content).digest()[:12])
    values = {"packed": len(values["text"]), "length": 44 + len(values["text"]), **values}
    numbers = (values[name] for name in ("length", "key", "raw", "packed", "count"))
    return struct.pack("<18sI12sIIH", MAGIC, *numbers) + values["text"]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (head(packed=5), "does not have the"),
        (head(packed=1 << 31), "a plugin's spec is cut short: "),
        (head(raw=1 << 31), f"a plugin's spec has {1 << 31} bytes, at most {plan_fields.SPEC_LIMIT} are read"),
        (head(raw=10), "a plugin's spec does not have the 10 bytes that its head says"),
        (head(raw=100_000), "a plugin's spec does not have the 100000 bytes that its head says"),
        (head(text=b"no zlib"), "a plugin's field cannot be read: error"),
        (head(text=zlib.compress(b"[]"), raw=2), "a plugin's field cannot be read: TypeError"),
        (head(text=zlib.compress(b"{}"), raw=2), "a plugin's field cannot be read: KeyError: 'layer'"),
        (head(key=b"\0" * 12), f"plugin spec {'0' * 24} has another content"),
        (head(count=65535), "a plugin's "),
        (head() + b"x", f"a plugin's field has {len(head()) + 1} bytes, its head says {len(head())}"),
        (head(length=len(head()) + 1) + b"x", f"of which {len(head())} are accounted for"),
        (MAGIC, "a plugin's field cannot be read: error: unpack_from requires"),
    ],
)
def test_a_head_that_is_not_true(data: bytes, fault: str) -> None:
    with pytest.raises(BuildError) as caught:
        read_field(data)
    assert fault in caught.value.fault and caught.value.repair


def test_nothing_is_unpacked_beyond_what_the_head_says(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zlib.compress(b" " * (50 << 20), 9)
    asked: list[int] = []
    real = zlib.decompressobj

    class Stream:
        def __init__(self) -> None:
            self.real = real()
            self.eof, self.unused_data = False, b""

        def decompress(self, data: bytes, most: int) -> bytes:
            found = self.real.decompress(data, most)
            asked.append(len(found))
            return found

    monkeypatch.setattr("layerport.engine.plan_fields.zlib.decompressobj", Stream)
    with pytest.raises(BuildError):
        read_field(head(text=bomb, raw=1000))
    assert asked == [1001]


def test_an_image_of_another_content() -> None:
    one = spec()
    wrong = spec(images={**IMAGES, FIRST: b"\x7fELF wrong"})
    data = write_field(wrong, [FIRST])
    with pytest.raises(BuildError) as caught:
        read_field(data)
    assert caught.value.fault == f"image {FIRST[:12]} does not have the content it is named after"
    assert wrong.key == one.key  # the key speaks of digests; each digest is checked by itself


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
@settings(max_examples=300)
def test_one_changed_byte_is_a_build_error_or_harmless(place: int, change: int) -> None:
    data = bytearray(WHOLE)
    data[place] ^= change
    try:
        read = read_field(bytes(data))
    except BuildError as error:
        assert str(error)
    else:  # a bit of zlib's own head, which says how hard it tried
        assert read.to_json() == spec().to_json() and dict(read.images) == IMAGES


@given(st.integers(0, len(WHOLE) - 1))
@settings(max_examples=100)
def test_a_cut_field_is_a_build_error(length: int) -> None:
    with pytest.raises(BuildError):
        read_field(WHOLE[:length])


@given(st.binary(max_size=200))
@settings(max_examples=150)
def test_noise_is_a_build_error(noise: bytes) -> None:
    for data in (noise, MAGIC + noise, WHOLE + noise + b"."):
        with pytest.raises(BuildError):
            read_field(data)


def found(path: Path, pieces: list[bytes]) -> plan_fields.PlanFields:
    search = Search()
    for piece in pieces:
        search.feed(piece)
    path.write_bytes(b"".join(pieces))
    return read_plan(path, search.places)


def test_what_a_plan_lacks(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    one, other = spec(), spec(attributes={})
    bare, first, second = write_field(one, ()), write_field(other, [FIRST]), write_field(one, [SECOND])
    for parts, count, missing in (
        ([bare, first, second], 3, {}),
        ([bare, first], 2, {SECOND: "pack::layer"}),
        ([bare, bare], 2, dict.fromkeys(IMAGES, "pack::layer")),
        ([], 0, {}),
    ):
        assert found(path, [b"begins", *parts, b"ends"]) == plan_fields.PlanFields(count, missing)
    with pytest.raises(BuildError, match="cannot be read|its head says"):
        found(path, [b"x" + WHOLE[:-3]])
    with pytest.raises(BuildError, match="cannot be read"):
        found(path, [b"x" + WHOLE[:30]])


@given(st.lists(st.integers(0, 3 * len(WHOLE)), max_size=60))
@settings(max_examples=200)
def test_fields_are_found_however_a_plan_is_cut(cuts: list[int]) -> None:
    data = b"l" + WHOLE + b"layerport-plugin" + WHOLE + WHOLE
    at = sorted(cuts)
    search = Search()
    for start, end in zip([0, *at], [*at, None], strict=True):
        search.feed(data[start:end])
    assert search.places == [1, 17 + len(WHOLE), 17 + 2 * len(WHOLE)]


def test_fields_are_found_byte_by_byte() -> None:
    search = Search()
    for byte in b"layer" + WHOLE + WHOLE:
        search.feed(bytes([byte]))
    assert search.places == [5, 5 + len(WHOLE)]


@pytest.mark.parametrize("raw", [0, 1, 99, 101, 102, 1000])
def test_a_head_that_lies_about_the_length(raw: int) -> None:
    data = zlib.compress(bytes(100))
    assert plan_fields._unpack(data, len(data), 100, 1000, "spec") == bytes(100)
    with pytest.raises(BuildError, match=f"does not have the {raw} bytes that its head says"):
        plan_fields._unpack(data, len(data), raw, 1000, "spec")
    with pytest.raises(BuildError, match="does not have the 100 bytes"):
        plan_fields._unpack(data + b"x", len(data) + 1, 100, 1000, "spec")
