"""The standard form: equality, digest, files, and files that lie."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from hypothesis import given

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.parameters.arrays import describe, standard_fault
from layerport.parameters.standard_form import Parameters


@st.composite
def any_array(draw: st.DrawFn) -> Any:
    dtype = draw(st.sampled_from(list(DType)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    values = draw(hnp.arrays(np.int8, shape, elements=st.integers(-8, 7)))
    return (values if dtype.is_signed else np.asarray(np.abs(values))).astype(dtype.to_numpy())


text = st.text('ab_.é"\\\n日', max_size=4)
names = text.filter(bool)
attributes = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.booleans(),
    text,
    st.lists(st.integers(), max_size=3).map(tuple),
    st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
    st.lists(text, max_size=3).map(tuple),
)
parameters = st.builds(
    Parameters,
    st.dictionaries(names, any_array(), max_size=4),
    st.dictionaries(names, attributes, max_size=4),
)


def _same(a: Parameters, b: Parameters) -> None:
    assert list(a) == list(b) and list(a.attributes) == list(b.attributes)
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
        assert a[name].tolist() == b[name].tolist()
    for name, value in a.attributes.items():
        assert value == b.attributes[name] and type(value) is type(b.attributes[name])
        if isinstance(value, tuple):
            assert [type(v) for v in value] == [type(v) for v in b.attributes[name]]  # type: ignore[union-attr]
    assert a == b and a.digest == b.digest and hash(a) == hash(b)


@given(parameters)
def test_bytes_there_and_back(one: Parameters) -> None:
    data = one.to_bytes()
    _same(one, Parameters.from_bytes(data))
    assert data == Parameters.from_bytes(data).to_bytes()
    _same(one, pickle.loads(pickle.dumps(one)))
    assert copy.deepcopy(one) is one and copy.copy(one) is one


@given(parameters, parameters)
def test_the_digest_tells_contents_apart(one: Parameters, other: Parameters) -> None:
    def content(p: Parameters) -> Any:
        arrays = {n: (a.dtype.name, a.shape, a.astype(np.float64).tobytes()) for n, a in p.items()}
        return arrays, {n: (type(v), repr(v)) for n, v in p.attributes.items()}

    assert (one == other) is (content(one) == content(other))


def test_order_does_not_count_but_is_kept() -> None:
    a, b = np.zeros(2, np.float32), np.ones(3, np.int8)
    one, other = (
        Parameters({"a": a, "b": b}, {"x": 1, "y": 2}),
        Parameters({"b": b, "a": a}, {"y": 2, "x": 1}),
    )
    assert one == other and list(other) == ["b", "a"]
    assert list(Parameters.from_bytes(other.to_bytes())) == ["b", "a"]
    assert list(Parameters.from_bytes(other.to_bytes()).attributes) == ["y", "x"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"x": 1}, {"x": 1.0}),
        ({"x": 1}, {"x": True}),
        ({"x": 0.0}, {"x": -0.0}),
        ({"x": ()}, {"x": None}),
        ({}, {"x": None}),
    ],
)
def test_attributes_that_python_calls_equal(one: Any, other: Any) -> None:
    assert Parameters({}, one) != Parameters({}, other)


def test_infinities_and_nan_survive() -> None:
    back = Parameters.from_bytes(Parameters({}, {"a": math.inf, "b": math.nan, "c": (-math.inf, 1.0)}).to_bytes())
    assert back.attributes["a"] == math.inf and math.isnan(back.attributes["b"])  # type: ignore[arg-type]
    assert back.attributes["c"] == (-math.inf, 1.0)


def test_the_digest_is_the_same_in_every_process() -> None:
    code = (
        "import numpy as np; from layerport.parameters.standard_form import Parameters;"
        "w = np.arange(6, dtype=np.float32).reshape(2, 3);"
        "p = Parameters({'w': w}, {'eps': 1e-5, 'mode': 'é', 'axes': (1, 2)});"
        "print(p.digest, p.to_bytes().hex())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
    (run,) = runs
    # Written down: a digest that changes makes every cache and bundle out there stale.
    assert run.split()[0] == b"2fa987b51a7f7b83e0ada8521067642b63d6a71acead170eee5fd95554310c6a"


def test_upper_halves_of_4_bit_elements_mean_nothing() -> None:
    clean = np.array([1, -8, 7], ml_dtypes.int4)
    dirty = (clean.view(np.uint8) & 0xF | 0x50).view(ml_dtypes.int4)
    assert clean.tolist() == dirty.tolist() and clean.tobytes() != dirty.tobytes()
    assert Parameters({"w": clean}) == Parameters({"w": dirty})
    assert Parameters({"w": clean}).to_bytes() == Parameters({"w": dirty}).to_bytes()


def test_it_is_frozen_and_shares_memory() -> None:
    array = np.zeros(3, np.float32)
    one = Parameters({"w": array}, {"axes": [1, 2]})  # type: ignore[dict-item]
    assert one["w"] is array and one.attributes["axes"] == (1, 2) and one.nbytes == 12
    with pytest.raises(TypeError):
        one["w"] = array  # type: ignore[index]
    with pytest.raises(TypeError):
        one.attributes["axes"] = 1  # type: ignore[index]
    assert repr(one) == "Parameters(w: float32[3], axes=(1, 2))"
    assert one != 3


def test_replace() -> None:
    a, b = np.zeros(2, np.float32), np.ones(2, np.float32)
    one = Parameters({"a": a, "b": a}, {"x": 1})
    changed = one.replace(a=b, x=2, c=a, y=None)
    assert list(changed) == ["a", "b", "c"] and changed["a"] is b and dict(changed.attributes) == {"x": 2, "y": None}
    assert one["a"] is a and dict(one.attributes) == {"x": 1}
    moved = one.replace(a=3, x=b)
    assert list(moved) == ["b", "x"] and dict(moved.attributes) == {"a": 3}


def test_what_is_not_standard_is_refused_all_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        Parameters(
            {
                "strided": np.zeros((2, 3), np.float32).T,
                "big": np.zeros(2, ">f4"),
                "text": np.array(["a"]),
                "tensor": torch.zeros(2),  # type: ignore[dict-item]
                "": np.zeros(1),
                "__metadata__": np.zeros(1),
                "odd": np.zeros(9, np.uint8)[1:].view(np.float32),
                "fine": np.zeros(1),
            },
            {"mixed": (1, "a"), "object": object(), "scalar": np.float32(1), "fine": 1},  # type: ignore[dict-item]
        )
    assert caught.value.fault == "10 parameters not in the standard form"
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "strided", "big", "text", "tensor", "'' cannot be the name of a parameter",
        "'__metadata__' cannot be the name of a parameter", "odd", "mixed", "object", "scalar",
    ]  # fmt: skip
    assert "strided: float32[3, 2] with strides (4, 12) is not C-contiguous and aligned" in str(caught.value)
    assert "tensor: expected a numpy.ndarray, got torch.Tensor" in str(caught.value)
    assert standard_fault(np.zeros(2, ">f4")) == "byte order of >f4 is not the machine's"
    assert describe(np.zeros((), np.float32)) == "float32[]"


def test_files_are_safetensors_for_everyone(tmp_path: Path) -> None:
    one = Parameters(
        {
            "h": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
            "b": np.array([True]),
            "w": np.array(3.0),
        },
        {"e": 1},
    )
    path = tmp_path / "p.safetensors"
    one.save(path)
    assert path.read_bytes() == one.to_bytes()
    with safetensors.safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("h"), torch.arange(6, dtype=torch.bfloat16).reshape(2, 3))
        assert file.get_tensor("w") == 3.0 and file.get_tensor("b").tolist() == [True]
        assert list(file.metadata()) == ["layerport.parameters"]
    _same(one, Parameters.load(path))
    safetensors.numpy.save_file({"x": np.arange(3, dtype=np.int16)}, path, metadata={"by": "someone"})
    foreign = Parameters.load(path)
    assert foreign["x"].tolist() == [0, 1, 2] and not foreign.attributes


def test_loading_maps_and_writing_changes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    Parameters({"w": np.zeros(4, np.float32)}).save(path)
    before = path.read_bytes()
    loaded = Parameters.load(path)
    assert not loaded["w"].flags.owndata and loaded["w"].flags.writeable
    loaded["w"][:] = 1
    assert path.read_bytes() == before
    data = bytearray(before)
    view = Parameters.from_bytes(data)
    view["w"][0] = 5
    assert bytes(data) != before
    assert not Parameters.from_bytes(before)["w"].flags.writeable


def test_saving_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    Parameters({"w": np.zeros(2)}).save(path)
    before = path.read_bytes()
    broken = Parameters({"w": np.ones(2)})
    broken._arrays["bad"] = object()  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        broken.save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["p.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _file(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def _entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"abc", "3 bytes, the length of the header alone takes 8"),
        ((2**62).to_bytes(8, "little"), "a header of 4611686018427387904 bytes in a file of 8"),
        ((93).to_bytes(8, "little") + bytes(92), "a header of 93 bytes in a file of 100"),
        (_file(b"\xff"), "not a sound safetensors file"),
        (_file(b"{"), "not a sound safetensors file"),
        (_file(b"[]"), "not a sound safetensors file"),
        (_file(b"[" * 100_000), "not a sound safetensors file"),
        (_file(b'{"a":1,"a":2}'), "one name twice"),
        (_file({"__metadata__": {"a": 1}}), "metadata that is no text"),
        (_file({"__metadata__": 3}), "not a sound safetensors file"),
        (_file({"w": {}}), "not a sound safetensors file"),
        (_file({"w": _entry("F4")}, b"1234"), "w: dtype 'F4' is not one of F64, F32"),
        (_file({"w": _entry(shape=(-1,))}, b"1234"), "are no natural numbers"),
        (_file({"w": _entry(shape=(True,))}, b"1234"), "are no natural numbers"),
        (_file({"w": _entry(shape=(2,))}, b"1234"), "w: bytes 0 to 4 of 4 for F32 of shape"),
        (_file({"w": _entry(offsets=(0, 8), shape=(2,))}, b"1234"), "w: bytes 0 to 8 of 4"),
        (_file({"w": _entry(shape=(2**40, 2**40), offsets=(0, 4))}, b"1234"), "w: bytes 0 to 4"),
        (_file({"v": _entry(), "w": _entry()}, b"1234"), "a gap or an overlap at byte 0"),
        (_file({"w": _entry(offsets=(4, 8))}, b"12345678"), "a gap or an overlap at byte 0"),
        (_file({"w": _entry()}, b"12345678"), "4 bytes that belong to no tensor"),
        (_file({"w": _entry("BOOL", (1,), (0, 1))}, b"\2"), "w: a byte above 1 in a BOOL tensor"),
    ],
)
def test_files_that_lie_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="p.safetensors: not a sound safetensors file") as caught:
        Parameters.load(path)
    assert message in caught.value.fault
    with pytest.raises(UsageError, match="the data: not a sound"):
        Parameters.from_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "parameters of format 99, this layerport reads 1"),
        ({"order": ["v"]}, "it describes ['w'], but holds ['w']"),
        ({"dtypes": {"w": "float16"}}, "w is described as float16, but stored as int8"),
        ({"dtypes": {"w": "float3"}}, "'float3' is not a valid DType"),
        ({"dtypes": {"w": "int4"}}, "w is described as int4, but holds values beyond -8..7"),
        ({"attributes": {"a": 1}}, "attributes ['a'], but an order of []"),
        ({"attributes": {"a": {"x": 1}}, "attribute_order": ["a"]}, "is not sound"),
        ({"attributes": 3}, "is not sound"),
    ],
)
def test_descriptions_that_lie_are_refused(change: Any, message: str) -> None:
    described = {
        "version": 1,
        "order": ["w"],
        "dtypes": {"w": "int8"},
        "attributes": {},
        "attribute_order": [],
    }
    metadata = {"layerport.parameters": json.dumps({**described, **change})}
    data = safetensors.numpy.save({"w": np.array([100], np.int8)}, metadata)
    with pytest.raises(UsageError, match="the data: ") as caught:
        Parameters.from_bytes(data)
    assert message in caught.value.fault and caught.value.repair


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none.safetensors: cannot be read .No such file"):
        Parameters.load(tmp_path / "none.safetensors")
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="empty: not a sound safetensors file .0 bytes"):
        Parameters.load(tmp_path / "empty")
