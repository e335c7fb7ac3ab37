"""Size expressions as TensorRT's: the same value at every size, and no step below zero where the size is none."""

from __future__ import annotations

import enum
import itertools
from typing import Any

import pytest

from layerport.engine.dim_expressions import lower
from layerport.errors import UsageError
from layerport.sizes.expressions import parse


class DimensionOperation(enum.Enum):
    """TensorRT's enumeration of this name; `lower` finds it beside the builder's class."""

    SUM, SUB, PROD, MAX, MIN, EQUAL, LESS, FLOOR_DIV, CEIL_DIV = range(9)


class Builder:
    """TensorRT's IExprBuilder on ints."""

    least = 0

    def constant(self, value: int) -> int:
        return value

    def operation(self, op: DimensionOperation, a: int, b: int) -> int:
        made = {
            "SUM": lambda: a + b,
            "SUB": lambda: a - b,
            "PROD": lambda: a * b,
            "MAX": lambda: max(a, b),
            "MIN": lambda: min(a, b),
            "EQUAL": lambda: int(a == b),
            "LESS": lambda: int(a < b),
            "FLOOR_DIV": lambda: a // b,
            "CEIL_DIV": lambda: -(-a // b),
        }[op.name]()
        self.least = min(self.least, made)
        return made


@pytest.mark.parametrize(
    "text",
    [
        "7",
        "a",
        "a + b + 3",
        "a - (a + 1)//2",
        "-a - b",
        "3 - 2*a + b",
        "a*b*2",
        "min(a, b, 3)",
        "max(a, b, 3)",
        "a//(b + 1)",
        "ceildiv(a, b + 1)",
        "a % 3",
        "a == b",
        "a != b",
        "a < b",
        "a <= b",
        "and(a < 3, b < 3, a < b)",
        "or(a == 1, b == 2, a == b)",
        "not(and(a < 3, b < 3))",
        "where(a < b, a + 5, b*b)",
    ],
)
def test_it_has_the_same_value(text: str) -> None:
    expression = parse(text)
    for a, b in itertools.product(range(5), repeat=2):
        sizes = {"a": a, "b": b}
        assert int(lower(expression, Builder(), sizes)) == int(expression.evaluate(sizes)), sizes


def test_what_is_added_comes_first() -> None:
    for text in ("a - (a + 1)//2", "-(a//2) + a", "2*a - a//3 - a//2"):
        builder = Builder()
        for a in range(1, 9):
            lower(parse(text), builder, {"a": a})
        assert builder.least == 0, text


def test_a_size_of_no_input() -> None:
    with pytest.raises(UsageError, match=r"the size c is no input of the plugin\n.*known sizes: a, b"):
        lower(parse("a + c"), Builder(), {"b": 1, "a": 1})
    env: dict[str, Any] = {}
    with pytest.raises(UsageError, match="known sizes: none"):
        lower(parse("c"), Builder(), env)
