"""The figures of a comparison, against values worked out by hand."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from layerport.parameters.comparison import (
    KERNEL_TOLERANCES,
    TOLERANCES,
    OutputCheck,
    compare,
    errors_within,
    magnitude,
    refused,
)


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


# What the comment above the table says, worked out for a tensor of ones: both shares apply to 1.
@pytest.mark.parametrize(
    ("dtype", "outputs", "kernels"),
    [
        ("float64", 1e-9 + 1e-7, 2e-12),
        ("float32", 1.1e-3, 2e-4),
        ("float16", 2e-2, 1e-2),
        ("bfloat16", 0.1, 0.06),
        ("float8_e4m3fn", 0.15, 0.15),
        ("float8_e5m2", 0.30, 0.30),
    ],
)
def test_where_a_type_stops_to_pass(dtype: str, outputs: float, kernels: float) -> None:
    want = np.ones(4)
    for tolerances, limit in ((TOLERANCES, outputs), (KERNEL_TOLERANCES, kernels)):
        for part in (0.9, 1.1):
            near, _ = errors_within(want + part * limit, want, dtype, tolerances)
            assert near.tolist() == [part < 1] * 4, (limit, part)


def test_an_error_of_just_what_is_allowed_passes() -> None:
    want = array(1, 2, 4)
    assert compare("y", want + 0.5, want, atol=0.5, rtol=0).passed
    assert compare("y", want * 1.5, want, atol=0, rtol=0.5).passed
    assert not compare("y", want + 0.5, want, atol=0.25, rtol=0.0625).passed


def test_both_tolerances_count_together() -> None:
    want = array(4, 4)
    assert compare("y", want + 1.5, want, atol=0.5, rtol=0.25).passed
    assert not compare("y", want + 1.75, want, atol=0.5, rtol=0.25).passed


def test_one_wrong_element_of_many_fails() -> None:
    want = np.ones(1000, np.float32)
    got = want.copy()
    got[17] = 1.5
    check = compare("y", got, want)
    assert (check.passed, check.max_abs, check.fault) == (False, 0.5, None)


def test_how_far_each_element_is() -> None:
    inf, nan = float("inf"), float("nan")
    want = np.array([2.0, 2.0, inf, nan, 2.0, inf])
    got = np.array([2.0, 3.0, inf, nan, nan, 1.0])
    near, far = errors_within(got, want, "float32", TOLERANCES)
    assert near.tolist() == [True, False, True, True, False, False]
    # |got - want| / (|want| + the magnitude), which is 2 here
    assert far.tolist()[:4] == [0.0, 0.25, 0.0, 0.0] and far[4] == inf and far[5] == inf


def test_remains_where_zeros_are_wanted() -> None:
    want = np.zeros(3)
    for dtype, limit in (("float64", 1e-15), ("float32", 1e-7), ("bfloat16", 1e-7)):
        assert errors_within(want + limit / 2, want, dtype, TOLERANCES)[0].all()
        assert not errors_within(want + limit * 2, want, dtype, TOLERANCES)[0].any()


def test_the_least_value_of_a_narrow_type_is_near_zero() -> None:
    for dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)):
        least = ml_dtypes.finfo(dtype).smallest_subnormal
        want, got = np.zeros(2, dtype), np.array([0, least], dtype)
        assert compare("y", got, want).passed
        assert not compare("y", np.array([0, 3 * least], np.float64).astype(dtype), want).passed


def test_a_type_without_a_tolerance_has_to_be_met() -> None:
    want = np.array([1.0, 2.0], ml_dtypes.float8_e4m3b11fnuz)
    assert compare("y", want.copy(), want).passed
    assert not compare("y", np.array([1.0, 2.25], want.dtype), want).passed


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], 0.0),
        ([0, 0], 0.0),
        ([1, -3], 2.0),
        ([0, 0, 3, 3], 1.5),
        ([float("inf"), float("nan"), -4], 4.0),
        ([1, 1, 1, 4997], 250.75),  # cut at 1000 medians of 1
        ([2, 2, 4, 4, 1e9], 802.4),  # the median of an odd number: 4
        ([1, 3, 1e9], 1001.3333333333334),
        ([1, 3, 5, 1e9], 1002.25),  # of an even number: half of 3 + 5
    ],
)
def test_the_magnitude_of_a_tensor(values: list[float], expected: float) -> None:
    assert magnitude(np.array(values, np.float64)) == pytest.approx(expected)


def test_the_cosine_decides_at_its_limit_and_for_whole_numbers_too() -> None:
    want = array(1, 0)
    passing, failing = (array(cosine, math.sqrt(1 - cosine**2)) for cosine in (0.991, 0.989))
    assert compare("y", passing, want, atol=1).passed
    assert compare("y", failing, want, atol=1).fault == "the cosine is 0.9890, at least 0.99 is wanted"
    assert compare("y", array(0, 0, dtype="int32"), array(3, 4, dtype="int32")).cosine == 0.0
    assert compare("y", array(4, 3, dtype="int32"), array(3, 4, dtype="int32")).cosine == pytest.approx(0.96)
    # A tensor of zeros has no direction, so the errors alone decide.
    assert compare("y", array(1e-3, 0), array(0, 0), atol=1e-2).passed


def test_the_figures_of_whole_numbers() -> None:
    check = compare("y", array(0, 5, 8, dtype="int32"), array(0, 2, 8, dtype="int32"))
    assert (check.max_abs, check.max_rel, check.fault) == (3.0, 1.5, "1 of 3 values differ")
    assert compare("y", array(3, dtype="int32"), array(0, dtype="int32")).max_rel == 3.0


def test_what_cannot_be_compared_is_as_far_as_can_be() -> None:
    check = refused("y", array(1, 2), "gone")
    assert (check.max_abs, check.max_rel, check.cosine, check.passed) == (math.inf, math.inf, 0.0, False)
    assert check.answer == "FAIL: gone" and (check.dtype, check.shape) == ("float32", (2,))
    told = check.to_json()
    assert (told["max_abs"], told["max_rel"], told["cosine"], told["shape"]) == (None, None, 0.0, [2])


def test_an_answer_counts_what_was_not_compared() -> None:
    check = OutputCheck("y", "float32", (3,), 0.0, 0.0, 1.0, True)
    assert check.answer == "pass"
    assert (
        compare("y", array(float("inf"), 1), array(float("inf"), 1)).answer == "pass where finite; 1 infinite in both"
    )
    failed = compare("y", array(float("nan"), 2), array(float("nan"), 1))
    assert (failed.answer, failed.nan, failed.infinite) == ("FAIL", 0, 0)
