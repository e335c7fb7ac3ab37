"""Conditions on sizes: how they are written, read from strangers, and said when a size breaks one."""

from __future__ import annotations

from typing import Any

import pytest

from layerport.errors import UsageError
from layerport.sizes.conditions import Condition, first_faults, readable
from layerport.sizes.expressions import parse

EVEN = Condition("n % 2 == 0", "pack::halves", "model.halves")


def test_what_a_broken_condition_says() -> None:
    assert EVEN.fault({"n": 4}) is None
    assert EVEN.fault({"n": 5, "m": 1}) == "layer pack::halves (model.halves) is right only where n % 2 == 0, got n=5"
    both = Condition("n < m", "", "")
    assert both.fault({"m": 2, "n": 2}) == "the model is right only where n < m, got m=2, n=2"
    assert both.fault({"n": 9}) is None  # nothing is known of m
    assert Condition("8 // n == 2", "", "").fault({"n": 0}) == "the model is right only where 8 // n == 2, got n=0"


def test_the_first_fault_of_each_layer() -> None:
    again = Condition("n < 3", "pack::halves", "model.halves")
    elsewhere = Condition("n < 3", "pack::halves", "model.other")
    assert first_faults([EVEN, again, elsewhere], {"n": 5}) == [
        "layer pack::halves (model.halves) is right only where n % 2 == 0, got n=5",
        "layer pack::halves (model.other) is right only where n < 3, got n=5",
    ]
    assert first_faults([EVEN, again], {"n": 4}) == [
        "layer pack::halves (model.halves) is right only where n < 3, got n=4"
    ]
    assert first_faults([EVEN, again], {"n": 2}) == []


def test_there_and_back() -> None:
    told = EVEN.to_json()
    assert told == {"condition": "n % 2 == 0", "layer": "pack::halves", "module": "model.halves"}
    assert Condition.read(told, {"n": 1}) == EVEN


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"condition": 3}, ValueError, "a condition is no text"),
        ({"layer": None}, ValueError, "a condition is no text"),
        ({"module": "m" * 10_001}, ValueError, "a condition is no text"),
        ({"condition": "k == 1"}, ValueError, "condition 'k == 1' names a size that is no dim"),
        ({"condition": "n =="}, UsageError, "ends too early"),
    ],
)
def test_what_is_no_condition(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Condition.read(EVEN.to_json() | change, {"n": 1})
    assert Condition.read(EVEN.to_json() | {"module": "m" * 10_000}, {"n": 1}).module[-1] == "m"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("n - 2*(n//2) == 0", "n % 2 == 0"),
        ("n - m*(n//m) == 0", "n % m == 0"),
        ("x.0 - 3*(x.0//3) < 1", "x.0 % 3 < 1"),
        ("n - 2*(m//2) == 0", None),
        ("n - 2*(n//3) == 0", None),
    ],
)
def test_remainders_are_written_as_people_write_them(text: str, shown: str | None) -> None:
    expression = parse(text)
    made = readable(expression)
    assert made == (expression.text if shown is None else shown)
    assert parse(made).structurally_equals(expression)
