"""A zoo of wrong Triton kernels: each has one fault that `run_kernel` must name, and a twin without it that must pass;
and the narrow floating types, which Triton's interpreter alone computes wrongly.
"""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

import layerport as lp
from layerport.testing import run_kernel
from triton_setup import TESTS

pytest.importorskip("triton")

FUNCTIONS = TESTS / "packs" / "triton_wrong.py"
NUMBERS = TESTS / "packs" / "triton_numbers.py"
_numbers = itertools.count()


def layer_of(name: str, wrong: bool) -> lp.Layer:
    def copied(x: Tensor) -> Tensor:
        return x.clone()

    layer = lp.layer(f"wrong_triton::layer_{next(_numbers)}")(copied)
    source = lp.triton(f"{FUNCTIONS}:{name}", constexprs={"WRONG": wrong, "BLOCK": 64})

    @layer.kernel(source, dtypes=("float32",), name=name)
    def launch(x: Any, y: Any) -> lp.Launch:
        return lp.Launch(grid=lp.cdiv(x.numel(), 64), args=(x, y, x.numel()))

    return layer


def line_of(name: str, line: str) -> int:
    lines = FUNCTIONS.read_text().splitlines()
    return lines.index(line, lines.index(f"def {name}(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):")) + 1


ZOO = {
    "load_past_the_end": "reads 28 elements out of bounds, the first at x[100], which has 100 elements",
    "load_before_the_start": "reads 1 elements out of bounds, the first at x[-1]",
    "load_far_away": "reads 64 elements out of bounds, the first at x[1073741824]",
    "store_past_the_end": "writes 1 elements out of bounds, the first at output[100], which has 100 elements",
    "store_before_the_start": "writes 1 elements out of bounds, the first at output[-1]",
    "store_to_an_input": "writes its input x[0]",
    "add_to_an_input": "writes its input x[0]",
    "leave_the_last_one": "output: 1 of 100 elements, the first at [99]",
    "sum_over_undefined": "depend on memory that nothing has written",
    "two_programs_write_one": "program 1 writes output[0], where program 0 writes another value",
    "read_of_another_program": "program 1 reads output[0], which program 0 writes: programs run in any order",
    "add_to_an_output": "reads output[0], which nothing has written",
    "atomic_on_an_output": "adds to output[0], which nothing has written",
    "block_pointer": "reads 28 elements out of bounds, the first at x[100]",
    "never_ends": "kernel never_ends did not end within 1 s",
    "lanes_write_one": "writes different values to output[0] at once",
}
SMALL = {"sum_over_undefined": 50}


def values(name: str) -> np.ndarray[Any, Any]:
    return np.arange(1, SMALL.get(name, 100) + 1, dtype=np.float32)


@pytest.mark.parametrize("name", ZOO)
def test_the_fault_is_named(name: str) -> None:
    with pytest.raises(lp.PackError) as caught:
        run_kernel(layer_of(name, True), values(name), time_limit=1.0 if name == "never_ends" else None)
    assert ZOO[name] in str(caught.value)


@pytest.mark.parametrize("name", ZOO)
def test_its_right_twin_passes(name: str) -> None:
    x = values(name)
    wanted = np.full_like(x, x.sum()) if name == "sum_over_undefined" else x
    for order in ("forward", "backward", 1):
        assert np.array_equal(run_kernel(layer_of(name, False), x, order=order), wanted)


def test_the_line_of_a_fault_is_told() -> None:
    for name, line in (
        ("two_programs_write_one", "    tl.store(y, first + WRONG * tl.program_id(0))"),
        ("never_ends", "        count += 1 - WRONG"),
    ):
        with pytest.raises(lp.PackError) as caught:
            run_kernel(layer_of(name, True), values(name), time_limit=1.0)
        lines = {line_of(name, line), line_of(name, line) - 1}
        assert any(f"{FUNCTIONS}:{number}" in str(caught.value) for number in lines)


@pytest.mark.parametrize("name", ["two_programs_write_one", "read_of_another_program", "lanes_write_one"])
def test_what_depends_on_the_order_is_let_pass_on_request(name: str) -> None:
    assert run_kernel(layer_of(name, True), values(name), strict=False).shape == (100,)


def test_what_no_gpu_lets_pass_is_an_error_all_the_same() -> None:
    for name in ("load_past_the_end", "store_to_an_input"):
        with pytest.raises(lp.PackError) as caught:
            run_kernel(layer_of(name, True), values(name), strict=False)
        assert ZOO[name] in str(caught.value)


def test_the_next_run_after_one_that_was_stopped_is_right() -> None:
    with pytest.raises(lp.PackError, match="did not end"):
        run_kernel(layer_of("never_ends", True), values(""), time_limit=0.3)
    assert np.array_equal(run_kernel(layer_of("never_ends", False), values("")), values(""))


# --- narrow floating types ---------------------------------------------------------------------------------------

TORCH = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


def numbers(function: str, x: np.ndarray[Any, Any], target: str) -> np.ndarray[Any, Any]:
    def reference(x: Tensor) -> Tensor:
        return x.to(TORCH[target])

    layer = lp.layer(f"narrow_triton::layer_{next(_numbers)}")(reference)
    source = lp.triton(f"{NUMBERS}:{function}", constexprs={"BLOCK": 256})

    @layer.kernel(source, dtypes=({"x": x.dtype.name, "*": target},), name=function)
    def launch(x: Any, y: Any) -> lp.Launch:
        return lp.Launch(grid=lp.cdiv(x.numel(), 256), args=(x, y, x.numel()))

    got: np.ndarray[Any, Any] = run_kernel(layer, x)
    return got


def everything(dtype: Any) -> np.ndarray[Any, Any]:
    """Every value of 16 bits."""
    return np.arange(1 << 16, dtype=np.uint16).view(dtype)


def test_a_carry_is_not_lost_where_float8_is_rounded() -> None:
    got = numbers("cast", np.array([125.97, 127.89, 124.1, 1.96], np.float32), "float8_e4m3fn")
    assert got.astype(np.float32).tolist() == [128.0, 128.0, 128.0, 2.0]


@pytest.mark.parametrize("target", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16"])
@pytest.mark.parametrize("source", ["float32", "float16", "bfloat16"])
def test_conversions_round_to_the_nearest_even(source: str, target: str) -> None:
    if source == target:
        return
    with np.errstate(all="ignore"):
        wide = everything(ml_dtypes.bfloat16).astype(np.float32) * np.float32(1.0 + 2.0**-9)
        x = wide.astype(np.dtype(getattr(ml_dtypes, source, source)))
    got = numbers("cast", x, target).astype(np.float64)
    wanted = torch.from_numpy(x.astype(np.float32)).to(TORCH[target]).float().numpy().astype(np.float64)
    if target.startswith("float8"):  # a GPU saturates
        greatest = float(ml_dtypes.finfo(target).max)
        over = (np.abs(x.astype(np.float64)) > greatest) & ~np.isnan(x.astype(np.float64))
        wanted[over] = np.copysign(greatest, x.astype(np.float64)[over])
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("target", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_is_read_exactly(target: str) -> None:
    x = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, target))
    np.testing.assert_array_equal(numbers("cast", x, "float32"), x.astype(np.float32))


def test_arithmetic_in_bfloat16_is_arithmetic() -> None:
    x = np.linspace(-3, 3, 200).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(numbers("arithmetic", x, "bfloat16"), x * x + x)


def test_rounding_towards_zero() -> None:
    x = np.linspace(-300, 300, 999).astype(np.float32)
    got = numbers("cast_towards_zero", x, "bfloat16").astype(np.float32)
    assert (np.abs(got) <= np.abs(x)).all()
    np.testing.assert_array_equal(got, (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))
