"""The figures of a comparison, against values worked out by hand."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from layerport.checks.verification import Verification
from layerport.parameters.comparison import compare


def array(*values: float, dtype: str = "float32") -> np.ndarray:
    return np.array(values, dtype=dtype)


def test_the_figures() -> None:
    check = compare("y", array(1, 2.5, -4), array(1, 2, -4))
    assert (check.max_abs, check.max_rel, check.passed) == (0.5, 0.25, False)
    assert check.cosine == pytest.approx((1 + 5 + 16) / math.sqrt((1 + 6.25 + 16) * 21))
    assert (check.dtype, check.shape, check.fault) == ("float32", (3,), None)
    assert check.to_json()["shape"] == [3]


@pytest.mark.parametrize(
    ("off", "dtype", "passed"),
    [
        (9e-5, "float32", True),
        (3e-3, "float32", False),
        (9e-3, "float16", True),
        (5e-2, "float16", False),
        (0.06, "bfloat16", True),
        (0.2, "bfloat16", False),
        (1e-8, "float64", True),
        (1e-5, "float64", False),
    ],
)
def test_each_type_has_its_tolerance(off: float, dtype: str, passed: bool) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    want = np.array([0.5, 1.0], dtype=kind)
    assert compare("y", (want.astype(np.float64) + off).astype(kind), want).passed is passed


def test_a_tolerance_of_the_callers() -> None:
    want = array(1, 2)
    assert compare("y", want + 0.5, want, atol=0.6, rtol=0).passed
    assert not compare("y", want + 0.5, want, atol=0.4, rtol=0).passed
    assert compare("y", want * 1.5, want, atol=0, rtol=0.6).passed


def test_infinities_and_nan_in_the_same_place_agree() -> None:
    want = array(float("inf"), float("nan"), 1)
    check = compare("y", want.copy(), want)
    assert (check.passed, check.max_abs, check.max_rel) == (True, 0.0, 0.0)
    assert (check.nan, check.infinite, check.answer) == (1, 1, "pass where finite; 1 NaN and 1 infinite in both")
    for got in (array(float("-inf"), float("nan"), 1), array(float("inf"), 1, 1), array(float("inf"), 1, float("nan"))):
        check = compare("y", got, want)
        assert not check.passed and check.max_abs == float("inf")


def test_a_signalling_nan_is_a_nan_and_no_warning() -> None:
    want = np.array([0x7FA00000, 0x3F800000], np.uint32).view(np.float32)
    assert compare("y", want.copy(), want).passed
    assert not compare("y", np.ones(2, np.float32), want).passed


def test_wrong_type_shape_and_nothing() -> None:
    want = array(1, 2)
    assert compare("y", None, want).fault == "expected float32[2], got nothing"
    assert compare("y", array(1, 2, dtype="float64"), want).fault == "expected float32[2], got float64[2]"
    assert compare("y", array(1), want).fault == "expected float32[2], got float32[1]"
    assert not compare("y", None, want).passed


def test_whole_numbers_and_bools_must_be_equal() -> None:
    for dtype in ("int64", "bool", "uint8"):
        want = array(0, 1, dtype=dtype)
        assert compare("y", want.copy(), want).passed
        assert not compare("y", ~want if dtype == "bool" else want + 1, want).passed


def test_nothing_to_compare() -> None:
    empty = np.empty((0, 3), np.float32)
    check = compare("y", empty, empty)
    assert (check.passed, check.max_abs, check.cosine) == (True, 0.0, 1.0)
    assert not Verification((), "here").passed


def test_nothing_finite_is_no_pass() -> None:
    for value in (float("nan"), float("inf")):
        check = compare("y", array(value, value), array(value, value))
        assert not check.passed
        assert check.answer == "FAIL: every value is NaN or infinite, so nothing was compared"


def test_whole_numbers_beyond_what_float64_tells_apart() -> None:
    want = np.array([2**53, 7], np.int64)
    check = compare("y", want + np.array([1, 0]), want)
    assert not check.passed and check.max_abs == 1.0
    assert check.answer == "FAIL: 1 of 2 values differ"
    assert not compare("y", np.array([2**64 - 2], np.uint64), np.array([2**64 - 1], np.uint64)).passed


@pytest.mark.parametrize("size", [2e-5, 1.0, 1e12, 2e-12])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tolerances_go_with_the_magnitude(size: float, dtype: str) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    want = (np.linspace(0.5, 1.5, 50) * size).astype(kind)
    assert compare("y", want.copy(), want).passed
    assert not compare("y", np.zeros_like(want), want).passed
    assert not compare("y", (want.astype(np.float64) * 1.2).astype(kind), want).passed
    assert not compare("y", want[::-1].copy(), want).passed


def test_a_mask_of_huge_values_allows_nothing_elsewhere() -> None:
    want = np.array([1.0, 2.0, 3.0, np.finfo(np.float32).min], np.float32)
    assert compare("y", want.copy(), want).passed
    assert not compare("y", want + array(0, 0.5, 0, 0), want).passed


def test_a_low_cosine_fails_whatever_tolerance_the_caller_gives() -> None:
    check = compare("y", array(0, 0, 0), array(1e-3, 2e-3, 1e-3), atol=1.0)
    assert not check.passed and check.answer == "FAIL: the cosine is 0.0000, at least 0.99 is wanted"


def test_float8_has_a_tolerance_of_its_own() -> None:
    want = np.array([1.0, 2.0, 4.0, 0.5], ml_dtypes.float8_e4m3fn)
    near = np.array([1.125, 2.0, 4.5, 0.5], ml_dtypes.float8_e4m3fn)  # a unit in the last place
    far = np.array([1.25, 2.0, 5.0, 0.5], ml_dtypes.float8_e4m3fn)
    assert compare("y", near, want).passed and not compare("y", far, want).passed


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20))
def test_a_tensor_equals_itself(values: list[float]) -> None:
    check = compare("y", array(*values), array(*values))
    assert check.passed and check.max_abs == 0.0
    assert check.cosine == pytest.approx(1.0)
