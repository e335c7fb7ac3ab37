"""Launch rules evaluated, checked against compiled kernels, and read from files that nobody vouches for."""

from __future__ import annotations

import importlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerport.errors import BuildError, PackError, UsageError
from layerport.kernels.cubin import Cubin, Resources
from layerport.kernels.launch_rules import Geometry, LaunchRule, PointerArg, ScalarArg, check_fit, shared_limit
from layerport.sizes.expressions import Const, Expr, Symbol, cdiv

N, ROWS = Symbol("x.0"), Symbol("x.1")


def three(x: Any, y: Any = 1, z: Any = 1) -> tuple[Expr, Expr, Expr]:
    a, b, c = (size if isinstance(size, Expr) else Const(size) for size in (x, y, z))
    return a, b, c


RULE = LaunchRule(
    three(cdiv(N, 4), ROWS),
    three(64),
    N * 2,
    (
        PointerArg("x"),
        ScalarArg("int", N * ROWS),
        ScalarArg("float", 0.1),
        ScalarArg("bool", True),
        PointerArg(None),
    ),
)
CUBIN = Cubin("k", "sm_89", b"", (8, 4, 4, 1, 8), Resources(32, 0, 1024, 128))


def test_resolves_to_numbers() -> None:
    assert RULE.resolve({"x.0": 10, "x.1": 3}) == Geometry((3, 3, 1), (64, 1, 1), 20, (None, 30, 0.1, True, None))


@pytest.mark.parametrize("sizes", [{"x.0": 0, "x.1": 3}, {"x.0": 3, "x.1": 0}])
def test_something_empty_has_nothing_to_launch(sizes: dict[str, int]) -> None:
    assert RULE.resolve(sizes) is None


def test_a_kernel_over_something_empty_may_still_run() -> None:
    rule = replace(RULE, grid=three(ROWS))
    geometry = rule.resolve({"x.0": 0, "x.1": 3})
    assert geometry is not None
    assert geometry.grid == (3, 1, 1)


def test_a_grid_of_nothing_though_nothing_is_empty() -> None:
    rule = replace(RULE, grid=three(N // 4))
    with pytest.raises(UsageError) as caught:
        rule.resolve({"x.0": 3, "x.1": 2}, label="layer p::l, kernel l_0")
    assert str(caught.value).startswith("layer p::l, kernel l_0 cannot be launched with x.0=3, x.1=2\n")
    assert "grid x is 0, allowed are 1 to 2147483647" in str(caught.value)
    assert "the rule is grid=(x.0//4, 1, 1), block=(64, 1, 1), shared=2*x.0" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sizes", "fault"),
    [
        ({"grid": three(N - 5)}, (1, 1), "grid x is -4, allowed are 1 to 2147483647"),
        ({"grid": three(N * 4)}, (2**29, 1), "grid x is 2147483648, allowed are 1 to 2147483647"),
        ({}, (4, 65536), "grid y is 65536, allowed are 1 to 65535"),
        ({"grid": three(1, 1, N)}, (65536, 1), "grid z is 65536, allowed are 1 to 65535"),
        ({"block": three(N)}, (1025, 1), "block x is 1025, allowed are 1 to 1024"),
        ({"block": three(1, 1, N)}, (65, 1), "block z is 65, allowed are 1 to 64"),
        ({"block": three(N, ROWS)}, (64, 17), "a block has 1088 threads (64 x 17 x 1), allowed are 1024"),
        ({"shared": N - 5}, (1, 1), "dynamic shared memory is -4 bytes"),
        (
            {"shared": N * 1024},
            (228, 1),
            "dynamic shared memory is 233472 bytes, no architecture has more than",
        ),
    ],
)
def test_limits_of_cuda(changes: dict[str, Any], sizes: tuple[int, int], fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        replace(RULE, **changes).resolve({"x.0": sizes[0], "x.1": sizes[1]})
    assert fault in str(caught.value)


def test_a_missing_size() -> None:
    with pytest.raises(UsageError, match="the size x.1 is not known"):
        RULE.resolve({"x.0": 3})


@pytest.mark.parametrize(
    ("architecture", "kib"), [("sm_75", 64), ("sm_80", 163), ("sm_90", 227), ("sm_90a", 227), ("sm_120", 99)]
)
def test_shared_memory_of_an_architecture(architecture: str, kib: int) -> None:
    assert shared_limit(architecture) == kib * 1024


def test_shared_memory_is_as_cuda_s_own_headers_say() -> None:
    folders = importlib.import_module("nvidia.cu13").__path__
    files = [Path(folder, "include/cccl/cuda/__device/arch_traits.h") for folder in folders]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        pytest.skip("these headers of CUDA do not state it; those of a newer one do")
    text = file.read_text()
    bodies = dict(re.findall(r"arch_traits<arch_id::sm_(\d+)>\(\) noexcept\n{(.*?)\n}", text, re.DOTALL))

    def per_multiprocessor(number: str) -> int:
        body = bodies[number]
        stated = re.search(r"max_shared_memory_per_multiprocessor += (\d+) \* 1024", body)
        inherited = re.search(r"= ::cuda::arch_traits<arch_id::sm_(\d+)>", body)
        return int(stated[1]) if stated else per_multiprocessor(inherited[1])  # type: ignore[index]

    assert {"75", "80", "86", "87", "89", "90", "100", "120"} < bodies.keys()
    for number in bodies:
        if int(number) >= 75:
            reserved = 1 if int(number) >= 80 else 0
            assert shared_limit(f"sm_{number}") == (per_multiprocessor(number) - reserved) * 1024, number


def test_texts_of_a_rule_have_a_limit() -> None:
    data = RULE.to_json()
    longest = "x.0" + " " * (20_000 - 3)
    assert LaunchRule.from_json({**data, "shared": longest}).shared == Symbol("x.0")
    with pytest.raises(BuildError, match="shared is no text of at most 20000 characters"):
        LaunchRule.from_json({**data, "shared": longest + " "})


def test_an_architecture_of_the_future_has_no_known_limit() -> None:
    assert shared_limit("sm_999") is None


def test_a_rule_that_fits() -> None:
    check_fit(RULE, CUBIN, label="layer p::l, kernel l_0")


@pytest.mark.parametrize(
    ("rule", "cubin", "faults"),
    [
        ({"args": RULE.args[:-1]}, {}, ["passes 4 arguments, but k takes 5", "passed: tensor x, int"]),
        (
            {},
            {"parameter_sizes": (4, 2, 2, 2, 4)},
            [
                "argument 0 is tensor x, which takes 8 bytes; the kernel's parameter has 4",
                "argument 1 is int x.0*x.1, which takes 4 or 8 bytes; the kernel's parameter has 2",
                "argument 2 is float 0.1, which takes 4 or 8 bytes; the kernel's parameter has 2",
                "argument 3 is bool True, which takes 1 or 4 or 8 bytes; the kernel's parameter has 2",
                "argument 4 is None (a null pointer), which takes 8 bytes; the kernel's parameter has 4",
            ],
        ),
        (
            {"args": (ScalarArg("int", Const(2**31)),)},
            {"parameter_sizes": (4,)},
            ["argument 0 is int 2147483648, which does not fit the parameter of 4 bytes"],
        ),
        (
            {"block": three(256), "shared": Const(0)},
            {},
            ["a block of 256 threads, but __launch_bounds__ of the kernel allows 128"],
        ),
        (
            {"shared": Const(99 * 1024)},
            {},
            ["102400 bytes of shared memory (1024 static, 101376 dynamic), but sm_89 has 101376 for one"],
        ),
    ],
)
def test_a_rule_that_does_not_fit(rule: dict[str, Any], cubin: dict[str, Any], faults: list[str]) -> None:
    with pytest.raises(PackError) as caught:
        check_fit(replace(RULE, **rule), replace(CUBIN, **cubin), label="layer p::l, kernel l_0")
    assert str(caught.value).startswith("layer p::l, kernel l_0: the launch rule ")
    for fault in faults:
        assert fault in str(caught.value)


def test_rules_are_equal_by_content() -> None:
    again = LaunchRule.from_json(json.loads(json.dumps(RULE.to_json())))
    assert again == RULE
    assert hash(again) == hash(RULE)
    assert again != replace(RULE, shared=Const(1))
    assert again != "rule"


@given(st.floats(), st.integers(1 - 2**63, 2**63 - 1), st.booleans())
def test_values_survive_json(number: float, whole: int, flag: bool) -> None:
    args = (ScalarArg("float", number), ScalarArg("int", Const(whole)), ScalarArg("bool", flag))
    again = LaunchRule.from_json(json.loads(json.dumps(replace(RULE, args=args).to_json()))).args
    assert isinstance(again[0], ScalarArg)
    assert isinstance(again[0].value, float)
    assert again[0].value == number or (math.isnan(number) and math.isnan(again[0].value))
    assert [str(arg) for arg in again[1:]] == [f"int {whole}", f"bool {flag}"]


def test_sizes_that_disagree_with_the_rule_stay_out() -> None:
    assert RULE.pointers == ("x",)
    assert RULE.symbols() == {"x.0", "x.1"}


@pytest.mark.parametrize(
    "change",
    [
        {"grid": ["1", "1"]},
        {"grid": "1"},
        {"grid": [1, 1, 1]},
        {"grid": ["1", "1", "1 +"]},
        {"grid": ["__import__('os')", "1", "1"]},
        {"grid": ["-1", "1", "1"]},
        {"block": ["2048", "1", "1"]},
        {"block": ["0", "1", "1"]},
        {"shared": "999999999"},
        {"shared": "1" * 30_000},
        {"shared": None},
        {"args": {}},
        {"args": [["pointer", "x"]] * 1025},
        {"args": [["pointer", "../x"]]},
        {"args": [["pointer", "x" * 129]]},
        {"args": [["pointer"]]},
        {"args": [["pointer", 3]]},
        {"args": [["float", "1"]]},
        {"args": [["float", "one"]]},
        {"args": [["bool", "true"]]},
        {"args": [["code", "x"]]},
        {"args": [["null", "x"]]},
        {"extra": 1},
    ],
)
def test_other_data_is_no_rule(change: dict[str, Any]) -> None:
    with pytest.raises(BuildError, match=r"a launch rule cannot be read: .*\n.*build again"):
        LaunchRule.from_json(RULE.to_json() | change)


@pytest.mark.parametrize("data", [None, [], "rule", {}, {"grid": ["1", "1", "1"]}])
def test_what_is_no_object_is_no_rule(data: object) -> None:
    with pytest.raises(BuildError, match="it is no object with exactly args, block, grid, shared"):
        LaunchRule.from_json(data)
