"""JSON from strangers: nothing in it that another reader would read otherwise, and nothing that costs much."""

from __future__ import annotations

import json
import resource
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerport.system.strict_json import read_json
from small_setup import python

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_what_json_holds_is_read(value: object, ascii_only: bool) -> None:
    assert read_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    "data, fault",
    [
        (b"", "it is no JSON: Expecting value at character 0"),
        (b"{} x", "it is no JSON: Extra data at character 3"),
        (b"\xef\xbb\xbf{}", "it is no JSON: "),
        ('{"a": "é"}'.encode("latin-1"), "byte 7 is no UTF-8"),
        ("{}".encode("utf-16"), "byte 0 is no UTF-8"),
        (b'{"a": 1, "a": 1}', "one name twice: 'a'"),
        (b'[{"b": {"a": 1, "a": 2}}]', "one name twice: 'a'"),
        (b'{"a": 1, "\\u0061": 2}', "one name twice: 'a'"),
        (b"[NaN]", "NaN is no number of JSON"),
        (b"[-Infinity]", "-Infinity is no number of JSON"),
        (b"[1e999]", "the number 1e999 is too large or too long"),
        (b"[" + b"1" * 41 + b"]", "a number of 41 digits"),
        (b"[" + b"1" * 10**6 + b"]", "a number of 1000000 digits"),
        (b"[0." + b"1" * 10**6 + b"]", "is too large or too long"),
        (b"[" * 41 + b"]" * 41, "it is more than 40 levels deep"),
        (b"[" * 900 + b"]" * 900, "it is more than 40 levels deep"),
        (b"[" * 500_000, "it is more than 40 levels deep"),
        (b'{"a":' * 100_000, "it is more than 40 levels deep"),
        (b'["\\ud800"]', "a text has half of a surrogate pair"),
        (b'{"\\uDfff": 1}', "a text has half of a surrogate pair"),
        (b"[" + b"[],[]," * 600_000 + b"0]", "it has about 2400001 values, at most 1000000 are read"),
    ],
)
def test_what_is_refused(data: bytes, fault: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=".") as caught:
        read_json(data)
    assert fault in str(caught.value) and time.monotonic() - began < 2


def test_infinities_where_they_are_asked_for() -> None:
    assert read_json(b"[Infinity, -Infinity]", infinite=True) == [float("inf"), float("-inf")]
    with pytest.raises(ValueError, match="too large"):
        read_json(b"[1e999]", infinite=True)


def test_a_pair_is_no_half() -> None:
    assert read_json(b'["\\ud83d\\ude00"]') == ["\U0001f600"]


@pytest.mark.skipif(sys.platform != "linux", reason="its unit of memory is another elsewhere")
def test_the_most_values_take_little_memory() -> None:
    """The worst shapes in as many bytes as a manifest may have."""
    code = (
        "import resource, sys\n"
        "from layerport.system.strict_json import read_json\n"
        "pieces = {'lists': b'[],', 'objects': b'{},', 'keys': None}\n"
        "if sys.argv[1] == 'keys':\n"
        "    data = b'{' + b','.join(b'\"%d\":\"%d\"' % (n, n) for n in range(990_000)) + b'}'\n"
        "else:\n"
        "    data = b'[' + pieces[sys.argv[1]] * 490_000 + b'0]'\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "read_json(data)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
    for shape in ("lists", "objects", "keys"):
        done = python(code, shape)
        assert done.returncode == 0 and int(done.stdout) < 500, (shape, done.stdout, done.stderr)
