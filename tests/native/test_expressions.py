"""Size expressions in C++ against those in Python: values, refusals, and what TensorRT's builder is asked for."""

from __future__ import annotations

import math
import random
from enum import IntEnum
from typing import Any

import pytest

import layerport.sizes  # noqa: F401
from layerport.engine.dim_expressions import lower
from layerport.errors import UsageError
from layerport.sizes.expressions import Const, Expr, Operation, Symbol, cdiv, maximum, minimum, parse, where
from native.probe import Probe

NAMES = ("x.0", "x.1", "y.0", "u0")
LARGEST = 2**127 - 1
RUNS = 1000


class DimensionOperation(IntEnum):
    """TensorRT's, as `lower` finds them beside the builder's class."""

    SUM, PROD, MAX, MIN, SUB, EQUAL, LESS, FLOOR_DIV, CEIL_DIV = range(9)


class Builder:
    """Stands in for TensorRT's builder: writes down what it is asked to make."""

    def __init__(self) -> None:
        self.made = 0
        self.lines: list[str] = []

    def _note(self, line: str) -> str:
        self.made += 1
        self.lines.append(line)
        return f"#{self.made - 1}"

    def constant(self, value: int) -> str:
        return self._note(f"constant {value}")

    def operation(self, operation: DimensionOperation, a: str, b: str) -> str:
        return self._note(f"{int(operation)} {a} {b}")


def expression(dice: random.Random, depth: int) -> Expr:
    """A random expression, with constants that make overflow and zero divisors likely."""
    if depth == 0 or dice.random() < 0.15:
        if dice.random() < 0.6:
            return Symbol(dice.choice(NAMES))
        return Const(dice.choice((0, 1, -1, 2, 3, -7, 256, 2**31, 2**62, -(2**63) + 1, dice.randrange(-99, 99))))
    a, b = (expression(dice, depth - 1) for _ in range(2))
    made: Any = dice.choice(
        (
            lambda: a + b,
            lambda: a - b,
            lambda: a * b,
            lambda: a // b,
            lambda: a % b,
            lambda: cdiv(a, b),
            lambda: minimum(a, b),
            lambda: maximum(a, b),
            lambda: a == b,
            lambda: a < b,
            lambda: (a < b) & (a != 3),
            lambda: (a == b) | (b >= 2),
            lambda: ~(a == b),
            lambda: where(a < b, a, b),
            lambda: where(a, b, 1 - b),
        )
    )()
    assert isinstance(made, Expr)
    return made


def random_expression(dice: random.Random) -> Expr:
    while True:
        try:
            return expression(dice, dice.randrange(1, 7))
        except UsageError:  # too large, or a constant that is
            continue


def exact(one: Expr, sizes: dict[str, int]) -> int | str:
    """The value, unless a part of it is beyond 127 bits or a divisor is zero; the parts' values are Python's own."""
    if isinstance(one, Operation):
        for arg in one.args:
            if isinstance(exact(arg, sizes), str):
                return "no value"
        values = [arg.evaluate(sizes) for arg in one.args]
        if one.op in ("add", "mul"):  # one after another, as they are added
            total = values[0]
            for value in values[1:]:
                total = total + value if one.op == "add" else math.prod((total, value))
                if abs(total) > LARGEST:
                    return "no value"
    try:
        return one.evaluate(sizes)
    except UsageError:
        return "no value"


def random_sizes(dice: random.Random) -> dict[str, int]:
    return {name: dice.choice((0, 1, 2, 7, 255, 4096, 2**31, 2**40, dice.randrange(1, 10**6))) for name in NAMES}


def test_values_are_those_of_python(probe: Probe) -> None:
    dice = random.Random(20)
    without = 0
    for _ in range(RUNS):
        one, sizes = random_expression(dice), random_sizes(dice)
        wanted = exact(one, sizes)
        assert probe.evaluate(one.text, sizes) == wanted, (one.text, sizes)
        without += isinstance(wanted, str)
    assert 0 < without < RUNS // 2


def test_tensorrt_is_asked_for_the_same_dimensions(probe: Probe) -> None:
    dice = random.Random(21)
    for _ in range(RUNS // 4):
        one = random_expression(dice)
        builder = Builder()
        names = list(dict.fromkeys(name for name in _in_order(one.text) if name in one.symbols()))
        env = {name: builder._note(name) for name in names}
        builder.lines.clear()
        lower(one, builder, env)
        assert probe.lower(one.text).splitlines() == builder.lines, one.text


def _in_order(text: str) -> list[str]:
    import re

    return re.findall(r"[A-Za-z_]\w*(?:\.\d+)?", text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x.0 +",
        "(x.0",
        "x.0)",
        "x.0 x.1",
        "x.0 == x.1 == 2",
        "x.12345",
        "1x",
        "f(x.0)",
        "min()",
        "where(1, 2)",
        "ceildiv(x.0)",
        "not(x.0)",
        "and(x.0, x.1 == 2)",
        "x.0 // 0",
        "ceildiv(x.0, 0)",
        "9223372036854775808",
        "-9223372036854775808",
        "9" * 39,
        "9" * 41,
        "x.0 ** 2",
        "x.0 & x.1",
        "x.0; x.1",
        "\u0661 + x.0",
        "(" * 111 + "1" + ")" * 111,
        "a" * 129,
        "x.0 @ 1",
        "min(1, 2",
        "*",
    ],
)
def test_what_python_refuses_is_refused(probe: Probe, text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)
    assert probe.evaluate(text, dict.fromkeys(NAMES, 1)) == "unread"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-7 // 2", -4),
        ("7 // -2", -4),
        ("-7 % 3", 2),
        ("7 % -3", -2),
        ("ceildiv(-7, 2)", -3),
        ("--x.0", 5),
        ("- -x.0 * -2", -10),
        (" x.0\t+\n1 ", 6),
        ("x.0 <= 5", 1),
        ("x.0 >= 6", 0),
        ("x.0 != 5", 0),
        ("1 < x.0", 1),
        ("min(9, x.0, 7)", 5),
        ("or(x.0 == 4, x.0 == 5)", 1),
        ("where(x.0, 2, 3)", 2),
        ("(" * 110 + "x.0" + ")" * 110, 5),
        ("9223372036854775807 - x.0", 2**63 - 6),
    ],
)
def test_values_of_any_text(probe: Probe, text: str, value: int) -> None:
    assert parse(text).evaluate({"x.0": 5}) == value
    assert probe.evaluate(text, {"x.0": 5}) == value


def test_a_size_that_is_not_given_has_no_value(probe: Probe) -> None:
    assert probe.evaluate("x.0 + z.0", {"x.0": 1}) == "no value"


def test_texts_that_nobody_would_write_take_little(probe: Probe) -> None:
    for text, value in (
        ("1" + "+x.0" * 90_000, 90_001),
        ("-" * 390_000 + "1", 1),
        ("min(" * 100 + "1" + ")" * 100, 1),
        ("x.0," * 90_000, "unread"),
        ("(" * 390_000, "unread"),
        ("+".join(f"a{place}" for place in range(50_000)), "unread"),
    ):
        assert probe.evaluate(text, {"x.0": 1}) == value


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-6, 1e-5, 1e16, 123456789012345680.0, 0.1, 1 / 3, 5e-324, 1.7e308])
def test_floats_are_read_as_repr_writes_them(probe: Probe, value: float) -> None:
    for one in (value, -value):
        read = probe.number(repr(one))
        assert read is not None and (read, math.copysign(1, read)) == (one, math.copysign(1, one))


def test_random_floats_and_what_is_none(probe: Probe) -> None:
    dice = random.Random(22)
    for _ in range(RUNS):
        value = dice.choice(
            (dice.random(), dice.uniform(-1e20, 1e20), math.ldexp(dice.random(), dice.randrange(-1070, 1020)))
        )
        assert probe.number(repr(value)) == value
    assert probe.number("inf") == math.inf and probe.number("-inf") == -math.inf
    assert math.isnan(probe.number("nan") or 0)
    for text in (
        "",
        "1",
        "1.",
        "01.0",
        "1e5",
        "1.0 ",
        " 1.0",
        "+1.0",
        "0x1p3",
        "1e+16x",
        "1E+16",
        "1.00",
        "infinity",
        "-nan",
    ):
        assert probe.number(text) is None, text
