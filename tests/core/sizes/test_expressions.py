"""Size expressions: the same value as ints, as TensorRT expressions and after a round trip through text."""

from __future__ import annotations

import copy
import enum
import math
import operator
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerport.engine.dim_expressions import lower
from layerport.errors import UsageError
from layerport.sizes.expressions import (
    MAX_DEPTH,
    MAX_NODES,
    Const,
    Expr,
    NoNumberYetError,
    Operation,
    Symbol,
    cdiv,
    maximum,
    minimum,
    next_power_of_2,
    parse,
    where,
)

NAMES = ("x.0", "x.1", "gate.10", "u0")
X, Y, Z = Symbol("x.0"), Symbol("x.1"), Symbol("gate.10")


class DimensionOperation(enum.Enum):
    """What TensorRT's enumeration of this name means, on ints; `lower` finds it beside the builder's class."""

    SUM = "+"
    SUB = "-"
    PROD = "*"
    MAX = "max"
    MIN = "min"
    EQUAL = "=="
    LESS = "<"
    FLOOR_DIV = "//"
    CEIL_DIV = "ceil"


class FakeBuilder:
    def __init__(self) -> None:
        self.calls = 0

    def constant(self, value: int) -> int:
        return value

    def operation(self, op: DimensionOperation, a: int, b: int) -> int:
        self.calls += 1
        functions: dict[DimensionOperation, Callable[[int, int], int]] = {
            DimensionOperation.SUM: operator.add,
            DimensionOperation.SUB: operator.sub,
            DimensionOperation.PROD: operator.mul,
            DimensionOperation.MAX: max,
            DimensionOperation.MIN: min,
            DimensionOperation.EQUAL: lambda a, b: int(a == b),
            DimensionOperation.LESS: lambda a, b: int(a < b),
            DimensionOperation.FLOOR_DIV: operator.floordiv,
            DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
        }
        return functions[op](a, b)


# A tree is (function over values, subtrees): it is applied to ints and to expressions alike.
BINARY: tuple[Callable[[Any, Any], Any], ...] = (
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, cdiv, minimum, maximum,
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
)  # fmt: skip
Tree = Any
leaves = st.sampled_from(NAMES) | st.integers(-20, 20)
trees: st.SearchStrategy[Tree] = st.recursive(
    leaves,
    lambda inner: (
        st.tuples(st.sampled_from(BINARY), inner, inner)
        | st.tuples(st.just(where), inner, inner, inner)
        | st.tuples(st.just(lambda a: -a), inner)
    ),
    max_leaves=12,
)
sizes = st.fixed_dictionaries({name: st.integers(0, 60) for name in NAMES})


def apply(tree: Tree, values: dict[str, Any]) -> Any:
    if isinstance(tree, str):
        return values[tree]
    if isinstance(tree, tuple):
        return tree[0](*(apply(sub, values) for sub in tree[1:]))
    return tree


@settings(deadline=None, max_examples=400)
@given(trees, sizes)
def test_every_form_has_the_same_value(tree: Tree, env: dict[str, int]) -> None:
    try:
        value = int(apply(tree, env))
    except (ZeroDivisionError, UsageError):
        return
    try:
        expr = apply(tree, {name: Symbol(name) for name in NAMES})
    except UsageError as error:
        # Folded to a division by zero that the ints met as 0 // 0 only at other sizes.
        assert "division by zero" in str(error)
        return
    expr = expr if isinstance(expr, Expr) else Const(expr)
    assert expr.evaluate(env) == value
    again = parse(str(expr))
    assert again.structurally_equals(expr)
    assert again.evaluate(env) == value
    assert int(lower(expr, FakeBuilder(), env)) == value
    assert expr.symbols() <= set(NAMES)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (X - (X + 1) // 2, "x.0 - (x.0 + 1)//2"),
        ((X - 3) // 2 + 1, "(x.0 + 1)//2 - 1"),
        (-(-X // 4), "ceildiv(x.0, 4)"),
        (X % 4, "x.0 - 4*(x.0//4)"),
        (X % 4 == 0, "x.0 - 4*(x.0//4) == 0"),
        (Y + X, "x.0 + x.1"),
        (Z * X * 2, "2*gate.10*x.0"),
        (Symbol("x.10") + Symbol("x.2"), "x.2 + x.10"),
        (X * 0, "0"),
        (X - X, "0"),
        ((X * 6) // 3, "2*x.0"),
        ((X * 4 + 3) // 6, "(2*x.0 + 1)//3"),
        (X // 2 // 3, "x.0//6"),
        (cdiv(cdiv(X, 2), 3), "ceildiv(x.0, 6)"),
        (X // -2, "-ceildiv(x.0, 2)"),
        (100 - X, "100 - x.0"),
        (-X - Y, "-x.0 - x.1"),
        (2 * (X + Y) * Z, "2*gate.10*(x.0 + x.1)"),
        ((-X - Y) * Z, "-gate.10*(x.0 + x.1)"),
        (X**2 // Y, "x.0*x.0//x.1"),
        (X // (Y * 2), "x.0//(2*x.1)"),
        (maximum(3, maximum(X, maximum(5, X + 1))), "max(5, x.0 + 1)"),
        (minimum(X, X), "x.0"),
        (where(X < Y, X, Y + 1), "where(x.0 < x.1, x.0, x.1 + 1)"),
        (where(X, 1, 2), "where(x.0 != 0, 1, 2)"),
        (where(X == Y, X, X), "x.0"),
        (where(X == Y - Y + X, 1, 2), "1"),
        ((X == 3) & (Y < 2) & (X == 3), "and(x.0 == 3, x.1 < 2)"),
        ((X == 3) | ~(Y < 2), "or(1 < x.1, x.0 == 3)"),
        (X + 1 <= 4, "x.0 < 4"),
        (X + 1 < Y + 3, "x.0 < x.1 + 2"),
        (X + 1 == 3, "x.0 == 2"),
        (~((X == 3) | (Y == 3)), "not(or(x.0 == 3, x.1 == 3))"),
        (~~(X == 3), "x.0 == 3"),
        ((X < 3) & (X + 1 < X), "0"),
        (X + 1 > X, "1"),
        (X != Y, "x.0 != x.1"),
        ((X == 1) + (X < 2), "(x.0 < 2) + (x.0 == 1)"),
        (divmod(X, 3)[1], "x.0 - 3*(x.0//3)"),
        (-Const(7) // X, "-ceildiv(7, x.0)"),
    ],
)
def test_texts_are_canonical(expr: Expr, text: str) -> None:
    assert str(expr) == text
    assert parse(text).structurally_equals(expr)


def test_functions_of_ints_give_ints() -> None:
    values = [cdiv(7, 2), minimum(3, 4), maximum(3, 4), where(True, 5, 6), where(0, 5, 6)]
    assert values == [4, 3, 4, 5, 6]
    assert all(type(value) is int for value in values)


def test_expressions_hash_copy_and_pickle_by_their_text() -> None:
    expr = X // 3 + Y
    assert {expr: 1}[Y + X // 3] == 1
    for other in (copy.deepcopy(expr), pickle.loads(pickle.dumps(expr))):
        assert other.structurally_equals(expr)
    assert not expr.structurally_equals(X)
    assert not expr.structurally_equals(3)
    assert repr(expr) == "Expr('x.1 + x.0//3')"
    assert X not in [None, "x.0"]
    with pytest.raises(AttributeError, match="an expression cannot be changed: x.0"):
        X.name = "y.0"


@pytest.mark.parametrize(
    "use",
    [bool, int, iter, list, range, operator.index, lambda e: 1 if e < 3 else 2, lambda e: min(e, 3)],
)
def test_a_value_wanted_too_early_shows_the_ways_out(use: Callable[[Expr], Any]) -> None:
    with pytest.raises(UsageError) as caught:
        use(X + Y)
    assert "x.0 + x.1" in str(caught.value)
    for way in ("lp.where", "lp.minimum", "lp.maximum", "several kernels"):
        assert way in str(caught.value)


@pytest.mark.parametrize("use", [float, math.sqrt, math.log2, lambda e: e**-0.5, lambda e: e / 2, lambda e: e * 1.5])
def test_a_float_of_a_size_that_is_not_known_says_what_to_do(use: Callable[[Expr], Any]) -> None:
    with pytest.raises(NoNumberYetError) as caught:
        use(X + Y)
    assert "x.0 + x.1" in caught.value.fault and "would be a float" in caught.value.fault
    assert "static in the export; or pass the sizes as arguments of the kernel" in str(caught.value.repair)


def test_known_numbers_have_a_value() -> None:
    assert int(Const(3)) == 3
    assert float(Const(3)) == 3.0
    assert list(range(Const(2))) == [0, 1]
    assert not Const(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: X / 2, "x.0 / 2 would be a float, and its sizes are no numbers yet"),
        (lambda: 2 / X, "2 / x.0 would be a float"),
        (lambda: X // 0, "division by zero: x.0 over 0"),
        (lambda: X % 0, "division by zero: x.0 over 0"),
        (lambda: cdiv(3, 0), "division by zero: 3 over 0"),
        (lambda: (X // Y).evaluate({"x.0": 4, "x.1": 0}), "division by zero: x.0//x.1 with x.1 = 0"),
        (lambda: (X + Y).evaluate({"x.0": 4}), "the size x.1 is not known"),
        (lambda: X**-1, r"x.0 \*\* -1 would be a float"),
        (lambda: X**17, r"x.0 \*\* 17 is not a size"),
        (lambda: 2**X, r"2 \*\* x.0 would be a float"),
        (lambda: X * 0.5, "a size computed from x.0 and 0.5 would be a float"),
        (lambda: ~X, "~ is 'not' of a condition, and x.0 is a number"),
        (lambda: X & (Y == 3), "'and' joins conditions, and x.0 is a number"),
        (lambda: maximum(X, cast(Any, 1.5)), "a size is a whole number or an expression, got float 1.5"),
        (lambda: Const(2**63), "a size of 9223372036854775808 does not fit 64 bits"),
        (lambda: Symbol("x-1"), "'x-1' is no name of a size"),
        (lambda: lower(X + Y, FakeBuilder(), {"x.0": 1}), "the size x.1 is no input of the plugin"),
    ],
)
def test_wrong_uses_are_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_strangers_are_no_operands() -> None:
    with pytest.raises(TypeError):
        X + "1"


def test_expressions_are_limited_in_depth_and_size() -> None:
    deep: Expr = X
    with pytest.raises(UsageError, match=f"too large: depth {MAX_DEPTH + 1}"):
        for _ in range(MAX_DEPTH):
            deep = where(deep == Y, Y, X) // Y
    assert parse(str(deep)).structurally_equals(deep)
    wide: Expr = X
    with pytest.raises(UsageError, match="nodes"):
        for _ in range(20):
            wide = (wide // Y) * (wide // Z)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the expression ends too early"),
        ("x.0 +", "the expression ends too early"),
        ("x..0", "nothing of an expression"),
        ("x.0 x.1", "more text after the end"),
        ("x.0 < x.1 < 3", "more text after the end"),
        ("min()", r"expected a number, a size or '\(', got '\)'"),
        ("where(1, 2)", "where takes 3 values, got 2"),
        ("ceildiv(1, 2, 3)", "ceildiv takes 2 values, got 3"),
        ("__import__(os)", "unknown function '__import__'"),
        ("x.0.real", "nothing of an expression"),
        ("min(x.0; 1)", "nothing of an expression"),
        ("(x.0", "the expression ends too early"),
        ("(x.0]", "nothing of an expression"),
        ("9" * 5000, "does not fit 64 bits"),
        ("(" * 5000 + "1", "nesting deeper than"),
        ("min(" * 5000 + "1", "nesting deeper than"),
        ("1" + " " * 500_000, "a size expression of 500001 characters"),
        ("x.0 // 0", "division by zero"),
        ("x" * 200, "is no name of a size"),
    ],
)
def test_a_wrong_text_is_an_error(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text)


@given(st.text(alphabet="x.019 +-*/%<>=!(),minwhere", max_size=40))
def test_any_text_is_an_expression_or_an_error(text: str) -> None:
    try:
        expr = parse(text)
    except UsageError:
        return
    assert parse(str(expr)).structurally_equals(expr)


def test_text_is_read_as_python_reads_it() -> None:
    names = {"a": 7, "b": 3}
    for text in (
        "a - b - 1",
        "-a // b",
        "a // b * b",
        "a * b // 2 % 4",
        "a - -b",
        "--a",
        "-(a + b) * 2",
        "a % b == 1",
    ):
        assert parse(text).evaluate(names) == int(eval(text, {}, names)), text


def test_a_shared_part_is_lowered_once() -> None:
    part = (X + 1) // 2
    builder = FakeBuilder()
    assert lower(where(part < 4, part, part * 2), builder, {"x.0": 20}) == 20
    # +, //, <, *2, 1-c, c*a, (1-c)*b, +
    assert builder.calls == 8


def test_importing_expressions_imports_nothing_foreign() -> None:
    code = (
        "import sys, layerport.sizes.expressions as e; e.parse('x.0//2')\n"
        "print([m for m in ('torch', 'numpy', 'sympy', 'onnx', 'tensorrt_rtx') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_next_power_of_2() -> None:
    assert [next_power_of_2(size) for size in (0, 1, 2, 3, 64, 65, 1000)] == [1, 1, 2, 4, 64, 128, 1024]
    assert next_power_of_2(Const(9)) == 16
    with pytest.raises(UsageError, match=r"-1 has no next power of 2"):
        next_power_of_2(-1)


def test_an_expression_counts_the_nodes_of_all_its_parts() -> None:
    assert (X.nodes, (X * Y).nodes, (X * Y + cdiv(Z, 7)).nodes) == (1, 3, 7)
    most = [Symbol(f"x.{axis}") for axis in range(MAX_NODES - 1)]
    assert Operation("add", most).nodes == MAX_NODES
    with pytest.raises(UsageError, match=rf"depth 2 .*, {MAX_NODES + 1} nodes \(limit {MAX_NODES}\)"):
        Operation("add", [*most, X])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("or(1 < 2, a < 3)", "1"),
        ("or(a < 3, 2 < 1)", "a < 3"),
        ("or(2 < 1, 3 < 1)", "0"),
        ("and(1 < 2, a < 3)", "a < 3"),
        ("and(a < 3, 2 < 1)", "0"),
        ("and(1 < 2, 1 < 3)", "1"),
    ],
)
def test_conditions_that_are_decided_fall_away(text: str, value: str) -> None:
    assert str(parse(text)) == value
