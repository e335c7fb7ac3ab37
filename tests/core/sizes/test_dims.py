"""Dynamic dims: ranges as the user writes them, and where they contradict themselves or the model."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from layerport.errors import UsageError
from layerport.sizes.dims import (
    DimRange,
    Sizes,
    apply_ranges,
    follows_from,
    parse_ranges,
    port,
    port_json,
    require_limits,
)
from layerport.sizes.tensors import TensorType


def test_ranges_with_and_without_a_usual_size() -> None:
    assert parse_ranges([" s=1..64..512 ", "batch=2..8"]) == {"s": (1, 64, 512), "batch": (2, None, 8)}


def test_all_unreadable_ranges_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse_ranges(["s=1-8", "=1..2", "s=1..2", "s=1..4", "s=-1..2"])
    assert caught.value.fault == "ranges cannot be read"
    assert caught.value.faults == (
        "'s=1-8' is not NAME=MIN..USUAL..MAX or NAME=MIN..MAX",
        "'=1..2' is not NAME=MIN..USUAL..MAX or NAME=MIN..MAX",
        "dim s is given twice",
        "'s=-1..2' is not NAME=MIN..USUAL..MAX or NAME=MIN..MAX",
    )
    assert caught.value.repair == "write them like --range sequence=1..64..512"


def test_ranges_by_name() -> None:
    texts = parse_ranges(["s=1..64..512", "batch=2..8"])
    assert parse_ranges({"s": (1, 64, 512), "batch": [2, 8]}) == texts
    assert parse_ranges({"s": (np.int64(1), 64, 512), "batch": (2, np.int32(8))}) == texts
    assert parse_ranges({}) == {} and parse_ranges("s=1..2") == {"s": (1, None, 2)}
    assert all(type(size) is int for size in parse_ranges({"s": (np.int64(1), np.int64(2))})["s"] if size is not None)


def test_all_faults_of_ranges_by_name_at_once() -> None:
    wrong = {"s": (1, 2, 3, 4), 3: (1, 2), "a-b": (1, 2), "t": "1..2", "u": (-2.5, 2.0), "v": (-1, 2), "w": (1, True)}
    with pytest.raises(UsageError) as caught:
        parse_ranges({**wrong, "x": 5, "y": (1, None, 3), "z": (9, 8), "good": (1, 2, 3)})  # type: ignore[dict-item]
    assert caught.value.fault == "ranges cannot be read"
    assert caught.value.faults == (
        "dim s: (1, 2, 3, 4) is not (MIN, USUAL, MAX) or (MIN, MAX)",
        "3 is not the name of a dim",
        "'a-b' is not the name of a dim",
        "dim t: '1..2' is not (MIN, USUAL, MAX) or (MIN, MAX)",
        "dim u: -2.5 is not a whole number from 0",
        "dim v: -1 is not a whole number from 0",
        "dim w: True is not a whole number from 0",
        "dim x: 5 is not (MIN, USUAL, MAX) or (MIN, MAX)",
        "dim y: None is not a whole number from 0",
        "range of dim z contradicts itself: min 9, usual 9, max 8",
    )
    assert caught.value.repair == 'write them like {"sequence": (1, 64, 512)}'
    with pytest.raises(UsageError, match=r"\('s', 1, 2\) is not NAME=MIN..USUAL..MAX"):
        parse_ranges([("s", 1, 2)])  # type: ignore[list-item]


@pytest.mark.parametrize("sizes", [(5, 4, 9), (1, 9, 8), (9, 9, 8), (-1, 1, 2)])
def test_a_range_that_contradicts_itself(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError) as caught:
        DimRange("s", *sizes)
    least, usual, greatest = sizes
    assert caught.value.fault == (f"range of dim s contradicts itself: min {least}, usual {usual}, max {greatest}")
    assert caught.value.repair == "write it as --range s=MIN..USUAL..MAX with MIN <= USUAL <= MAX"


DIMS = {"batch": DimRange("batch", 1, 2, 8), "s": DimRange("s", 4, 16, None)}


def test_ranges_narrow_the_models_own() -> None:
    result = apply_ranges(DIMS, {"batch": (1, 4, 4), "s": (8, None, 12)})
    assert result == {"batch": DimRange("batch", 1, 4, 4), "s": DimRange("s", 8, 12, 12)}
    assert DIMS["s"].max is None


def test_all_ranges_that_the_model_does_not_take() -> None:
    with pytest.raises(UsageError) as caught:
        apply_ranges(DIMS, {"batch": (0, 1, 16), "s": (9, 2, 30), "width": (1, 2, 3)})
    assert caught.value.faults == (
        "the model has no dynamic dim width; it has: batch, s",
        "dim batch: 0..16 goes beyond 1..8, which the model was exported for",
        "range of dim s contradicts itself: min 9, usual 2, max 30",
    )
    with pytest.raises(UsageError, match="it has: none"):
        apply_ranges({}, {"x": (1, 2, 3)})


def test_an_engine_needs_a_greatest_size() -> None:
    require_limits({"batch": DIMS["batch"]}, "rtx:sm_89")
    with pytest.raises(UsageError) as caught:
        require_limits(DIMS, "rtx:sm_89")
    assert caught.value.fault == ("target rtx:sm_89 needs a greatest size for every dynamic dim; none is known for s")
    assert (
        caught.value.repair
        == "add for example --range s=4..16..512, or state max in torch.export.Dim where the source is a Torch model"
    )


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_the_usual_size_is_always_inside(a: int, b: int, stated: int) -> None:
    least, greatest = sorted((a, b))
    dims = {"n": DimRange("n", 0, stated, None)}
    found = apply_ranges(dims, parse_ranges([f"n={least}..{greatest}"]))["n"]
    assert least == found.min <= found.opt <= found.max == greatest


def test_texts_of_a_port() -> None:
    x = port("x", "float32", ("batch", 16))
    assert str(x) == "x: float32[batch, 16]" and x.form == "float32[batch, 16]"
    assert port_json(x) == {"name": "x", "dtype": "float32", "dims": ["batch", 16]}


KNOWN = {"n": DimRange("n", 2, 4, 8), "m": DimRange("m", 1, 1, None)}


def gathered(*ports: tuple[TensorType, tuple[int, ...]]) -> tuple[dict[str, int], list[str]]:
    sizes = Sizes(KNOWN)
    for one, shape in ports:
        sizes.add(one, shape, f"float32{list(shape)}")
    return sizes.values(), sizes.faults


def test_sizes_are_read_from_shapes() -> None:
    x = port("x", "float32", ["n", 3, None, "m"])
    assert gathered((x, (2, 3, 99, 1))) == ({"n": 2, "m": 1}, [])
    assert gathered((x, (8, 3, 0, 10**6))) == ({"n": 8, "m": 10**6}, [])
    assert gathered((x, (8, 4, 0, 1)))[1] == ["x: axis 1 must be 3, got float32[8, 4, 0, 1]"]
    assert gathered((x, (1, 3, 0, 0)))[1] == ["x: dim n must be 2..8, got 1", "x: dim m must be 1..any, got 0"]
    assert gathered((x, (9, 3, 0, 1)))[1] == ["x: dim n must be 2..8, got 9"]


def test_one_dim_has_one_size() -> None:
    x, y = port("x", "float32", ["n"]), port("y", "float32", ["n", "n"])
    assert gathered((x, (4,)), (y, (4, 4))) == ({"n": 4}, [])
    assert gathered((x, (4,)), (y, (4, 5)))[1] == ["y: dim n is 5 here and 4 in x"]


def test_expressions_of_one_unknown_are_solved() -> None:
    assert gathered((port("x", "float32", ["2*n + 1"]), (7,))) == ({"n": 3}, [])
    assert gathered((port("x", "float32", ["2*n + 1"]), (8,)))[1] == ["x: dim 2*n + 1 cannot be 8"]
    assert gathered((port("x", "float32", ["2*n + 1"]), (19,)))[1] == ["x: dim n must be 2..8, got 9"]
    assert gathered((port("x", "float32", ["5 - n"]), (2,)))[1] == ["x: dim 5 - n cannot be 2"]
    # n is known from elsewhere, so the sum tells m; and one that holds no unknown must be right
    known, total = port("x", "float32", ["n"]), port("y", "float32", ["n + 3*m"])
    assert gathered((total, (10,)), (known, (4,))) == ({"n": 4, "m": 2}, [])
    assert gathered((known, (4,)), (port("y", "float32", ["n + 1"]), (5,))) == ({"n": 4}, [])
    assert gathered((known, (4,)), (port("y", "float32", ["n + 1"]), (6,)))[1] == ["y: dim n + 1 must be 5, got 6"]
    # two unknowns in one expression tell neither
    assert gathered((total, (10,))) == ({}, [])


def test_a_port_there_and_back() -> None:
    made = port("x", "float16", ["n", 2, "2*n", None])
    told = port_json(made)
    assert told == {"name": "x", "dtype": "float16", "dims": ["n", 2, "2*n", None]}
    assert port(**told) == made
    for name in ("", "a\n", "x" * 513):
        with pytest.raises(UsageError, match="cannot be the name of an input or output"):
            port(name, "float32", [])
    assert len(port("x" * 512, "float32", []).name) == 512


def test_what_follows_from_dims() -> None:
    assert follows_from("2*n + m", KNOWN) and follows_from("3", KNOWN)
    assert not follows_from("2*n + k", KNOWN) and not follows_from(None, KNOWN) and not follows_from("n +", KNOWN)
