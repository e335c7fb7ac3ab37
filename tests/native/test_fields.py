"""Plugin specs and their fields in C++ against Python's reader: both read the same ones and refuse the same ones."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import struct
import zlib
from typing import Any

import pytest

from layerport.bundle.plugin_spec import dump, spec_from_json
from layerport.engine.plan_fields import MAGIC, read_field, write_field
from layerport.errors import LayerportError
from layerport.system.strict_json import read_json
from native.probe import Probe
from plugin_specs import FIRST, IMAGES, SECOND, spec, stepped_spec

RUNS = 1000
WHOLE = write_field(spec(), IMAGES)
JUNK: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    7,
    64,
    65,
    2**31,
    2**63,
    2**70,
    1.0,
    1e300,
    float("nan"),
    float("-inf"),
    "",
    "x",
    "y",
    "u0",
    "x.0",
    "x.2",
    "w.0*2",
    "x.0 //0",
    "float16",
    "uint4",
    "null",
    "pointer",
    "int",
    "float",
    "bool",
    "True",
    "0.5",
    "0.50",
    "16",
    "sm_90",
    "sm_1234",
    "pack::layer",
    "a b",
    "é",
    "\0",
    "\ud800",
    "a" * 129,
    [],
    {},
    [1, 2, 3],
    ["x", "float16", 2, False],
    ["pointer", "x"],
    ["pointer", "x", "16"],
    ["null"],
)


def python_reads(text: bytes) -> bool:
    try:
        spec_from_json(read_json(text, infinite=True), {}, complete=False)
    except (LayerportError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return False
    return True


def changed(dice: random.Random, value: Any) -> Any:
    """The value with one part replaced, doubled, taken out or moved."""
    whole = copy.deepcopy(value)
    at, way = whole, []
    while isinstance(at, (dict, list)) and at and (not way or dice.random() < 0.8):
        way.append((at, dice.choice(list(at)) if isinstance(at, dict) else dice.randrange(len(at))))
        at = at[way[-1][1]]
    parent, key = way[-1]
    kind = dice.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif kind == 2 and isinstance(at, str) and at:
        place = dice.randrange(len(at))
        parent[key] = at[:place] + dice.choice("x0.,()*/+-<= _$\n") + at[place + dice.randrange(2) :]
    elif kind == 3 and isinstance(parent, dict):
        parent[dice.choice(("extra", "name", "x"))] = parent.pop(key)
    else:
        parent[key] = dice.choice(JUNK)
    return whole


def test_changed_specs_are_read_by_both_or_by_none(probe: Probe) -> None:
    dice = random.Random(30)
    good = [spec().to_json(), stepped_spec().to_json()]
    read = 0
    for run in range(RUNS):
        value = good[run % 2]
        for _ in range(dice.randrange(1, 3)):
            value = changed(dice, value)
        text = json.dumps(value, allow_nan=True, ensure_ascii=dice.random() < 0.5).encode(errors="surrogatepass")
        wanted = python_reads(text)
        refused = probe.spec(text)
        # Python folds what cancels out, such as an unknown size times 0, which no writer leaves; C++ refuses it.
        stricter = wanted and refused is not None and ", a size of no input" in refused
        assert (refused is None) == wanted or stricter, (text, refused)
        read += wanted and not stricter
    assert RUNS // 20 < read < RUNS


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"[" * 41 + b"]" * 41,
        b"[" * 100_000,
        b"[1" + b",1" * 1_000_001 + b"]",
    ],
)
def test_what_is_no_json_of_ours_is_refused(probe: Probe, text: bytes) -> None:
    assert not python_reads(text) and probe.spec(text) is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"version":2', b'"version":2,"version":2'),
        (b'"version":2', b'"version":2.0'),
        (b'"version":2', b'"version":-0'),
        (b'"version":2', b'"version":' + b"0" * 50),
        (b'"version":2', b'"version":2' + b"0" * 40),
        (b'"eps":1e-06', b'"eps":NaN'),
        (b'"eps":1e-06', b'"eps":-Infinity'),
        (b'"eps":1e-06', b'"eps":nan'),
        (b'"eps":1e-06', b'"eps":1e999'),
        (b'"eps":1e-06', b'"eps":1e-999'),
        (b'"eps":1e-06', b'"eps":0.' + b"1" * 38),
        (b'"eps":1e-06', b'"eps":0.' + b"1" * 39),
        (b'"eps":1e-06', b'"eps":"NaN \\" Infinity ' + b"1" * 60 + b'"'),
        (b'"eps":1e-06', b'"eps":"\\ud800"'),
        (b'"eps":1e-06', b'"eps":"\\ud83d\\ude00"'),
        (b'"eps":1e-06', b'"eps":"\x01"'),
        (b'"eps":1e-06', b'"eps":' + b"[" * 37 + b"]" * 37),
        (b'"eps":1e-06', b'"eps":' + b"[" * 38 + b"]" * 38),
        (b'"eps":1e-06', b'"eps":' + b"[" * 39 + b"]" * 39),
        (b'"eps":1e-06', b'"eps":1e-06,'),
        (b'"eps":1e-06', b'"eps":\x0c1'),
    ],
)
def test_the_finer_points_of_json(probe: Probe, old: bytes, new: bytes) -> None:
    text = dump(spec().to_json())
    assert old in text and probe.spec(text) is None
    text = text.replace(old, new)
    assert (probe.spec(text) is None) == python_reads(text)


def test_whole_fields(probe: Probe) -> None:
    for one in (spec(), stepped_spec()):
        assert probe.spec(dump(one.to_json())) is None
        for kept in ([], [FIRST], [FIRST, SECOND]):
            assert probe.field(write_field(one, kept)) is None
    assert probe.field(b"") and probe.field(MAGIC)


def test_damaged_fields_are_refused_by_both(probe: Probe) -> None:
    dice = random.Random(31)
    for _ in range(RUNS):
        data = bytearray(WHOLE)
        for _ in range(dice.randrange(1, 3)):
            place = dice.randrange(len(data))
            kind = dice.randrange(4)
            if kind == 0:
                data[place] ^= 1 << dice.randrange(8)
            elif kind == 1:
                del data[place : place + dice.randrange(1, 9)]
            elif kind == 2:
                data[place:place] = dice.randbytes(dice.randrange(1, 9))
            else:
                data[place : place + 4] = struct.pack("<I", dice.choice((0, 1, 2**31, 2**32 - 1)))
        try:
            read_field(bytes(data))
            wanted = True
        except LayerportError:
            wanted = False
        # What zlib's own head says of how hard it tried changes nothing; a damaged magic is an older format to Python.
        assert (probe.field(bytes(data)) is None) == wanted, bytes(data).hex()


def head(**changes: Any) -> bytes:
    text = dump(spec().to_json())
    values = {"key": hashlib.sha256(text).digest()[:12], "raw": len(text), "text": zlib.compress(text), "count": 0}
    values |= changes
    values = {"packed": len(values["text"]), "length": 44 + len(values["text"]), **values}
    numbers = (values[name] for name in ("length", "key", "raw", "packed", "count"))
    return struct.pack("<18sI12sIIH", MAGIC, *numbers) + values["text"]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (head(packed=5), "does not have the"),
        (head(packed=1 << 31), "a plugin's field is cut short"),
        (head(raw=1 << 31), f"a plugin's spec has {1 << 31} bytes, at most {1 << 22} are read"),
        (head(raw=10), "a plugin's spec does not have the 10 bytes that its head says"),
        (head(raw=0), "a plugin's spec does not have the 0 bytes that its head says"),
        (head(text=b"no zlib"), "a plugin's spec does not have"),
        (head(key=b"\0" * 12), f"plugin spec {'0' * 24} has another content"),
        (head(count=65535), "a plugin's field is cut short"),
        (head() + b"x", f"a plugin's field has {len(head()) + 1} bytes, its head says {len(head())}"),
        (head(length=len(head()) + 1) + b"x", f"of which {len(head())} are accounted for"),
        (MAGIC, "a plugin's field is cut short"),
        (MAGIC[:-1] + b"\4" + head()[18:], "a plugin's field has format 4, this library reads 3"),
        (b"layerport", "the node's field is no plugin spec of layerport"),
        (write_field(spec(images={**IMAGES, FIRST: b"\x7fELF wrong"}), [FIRST]), "does not have the content"),
    ],
)
def test_faults_are_named(probe: Probe, data: bytes, fault: str) -> None:
    refused = probe.field(data)
    assert refused is not None and fault in refused and ("; " in refused)
    with pytest.raises(LayerportError):
        read_field(data)


def test_digests(probe: Probe) -> None:
    dice = random.Random(32)
    for length in (*range(130), 1000, 65_537):
        data = dice.randbytes(length)
        assert probe.sha256(data) == hashlib.sha256(data).hexdigest()
