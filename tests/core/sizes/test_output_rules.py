"""Written shape rules: what they are given, what becomes of their answer, and every fault of a wrong one."""

from __future__ import annotations

from typing import Any

import pytest

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.sizes.expressions import Symbol, minimum
from layerport.sizes.output_rules import RuleAnswer, SizeSymbol, by_first_place, from_rule, output_name
from layerport.sizes.tensors import TensorType

ROWS = Symbol("rows")
X = TensorType("x", DType.FLOAT32, (ROWS, 4))
Y = TensorType("y", DType.FLOAT16, (ROWS, None, 2 * ROWS))


def answer(rule: Any, **attributes: Any) -> RuleAnswer:
    return from_rule(rule, {"x": X, "y": Y, "z": None}, attributes, "pack::layer")


def faults(rule: Any) -> tuple[str, ...]:
    with pytest.raises(UsageError, match="pack::layer: its shape rule gave a wrong answer") as caught:
        answer(rule)
    return caught.value.faults


def test_a_rule_gets_what_it_asks_for() -> None:
    seen: dict[str, Any] = {}

    def some(y: Any, groups: int, z: Any, left: int = 7) -> Any:
        seen.update(y=y, groups=groups, z=z, left=left)
        return y.dtype, (groups,)

    def everything(**given: Any) -> Any:
        seen.update(given=sorted(given))
        return "float32", ()

    answer(some, groups=3, other=5)
    assert (str(seen["y"]), seen["groups"], seen["z"], seen["left"]) == ("y: float16[x.0, y.1, y.2]", 3, None, 7)
    answer(everything, groups=3)
    assert seen["given"] == ["groups", "x", "y", "z"]
    with pytest.raises(UsageError, match=r"asks for k, m, no argument of the layer\n.*use names from x, y, z"):
        answer(lambda x, k, m: (x.dtype, ()))


def test_equal_dims_are_the_place_that_has_them_first() -> None:
    made = by_first_place({"x": X, "z": None, "y": Y, "w": TensorType("w", DType.INT64, (2 * ROWS, ROWS))})
    assert [str(one) for one in made.values()] == [
        "x: float32[x.0, 4]",
        "None",
        "y: float16[x.0, y.1, y.2]",
        "w: int64[y.2, x.0]",
    ]


def test_one_output_and_several() -> None:
    one = answer(lambda x: (x.dtype, (x.shape[0], 0)))
    assert [str(each) for each in one.outputs] == ["output: float32[x.0, 0]"] and one.size_symbols == ()
    listed = answer(lambda x: [x.dtype, [x.shape[0] + 1]])
    assert [str(each) for each in listed.outputs] == ["output: float32[x.0 + 1]"]
    for several in (
        answer(lambda x, y: ((x.dtype, y.shape), ("bool", ()))),
        answer(lambda x, y: [("float32", y.shape), ("bool", ())]),
    ):
        assert [str(each) for each in several.outputs] == ["output0: float32[x.0, y.1, y.2]", "output1: bool[]"]
    assert (output_name(0, 1), output_name(0, 2), output_name(1, 2)) == ("output", "output0", "output1")


def test_a_size_that_depends_on_data() -> None:
    def rule(x: Any) -> Any:
        found = SizeSymbol("found", x.shape[0])
        return (x.dtype, (found, 4)), ("int64", (found, Symbol("found") + 1)), ("int64", (SizeSymbol("other", None),))

    made = answer(rule)
    assert [each.form for each in made.outputs] == ["float32[found, 4]", "int64[found, found + 1]", "int64[other]"]
    assert [(size.name, str(size.upper_bound)) for size in made.size_symbols] == [("found", "x.0"), ("other", "None")]
    assert str(made.size_symbols[0].greatest) == "x.0"


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (None, "expected (dtype, dims) for each output, got None"),
        ((), "expected (dtype, dims) for each output, got ()"),
        ("float32", "expected (dtype, dims) for each output, got 'float32'"),
        (("float32",), "output 0: expected (dtype, dims), got 'float32'"),
        (("float32", 3), "output 0: expected (dtype, dims), got ('float32', 3)"),
        ((("float32", (1,)), 3), "output 1: expected (dtype, dims), got 3"),
        ((("float32", (1,)), ("float32", 3)), "output 1: expected (dtype, dims), got ('float32', 3)"),
        ((("float32", (1,), 2), ("float32", ())), "output 0: expected (dtype, dims), got ('float32', (1,), 2)"),
        (((DType.INT8, (-1,)),), "output 0: a size of -1"),
        ((("float32", (1,)), ("none", (1,))), "output 1: unknown dtype 'none'"),
        ((("float32", (Symbol("b"), Symbol("a") + Symbol("b"))),), "output 0: a + b names a, b, a size of no argument"),
        ((("float32", (1.5,)),), "output 0: "),
        (
            (
                ("float32", (SizeSymbol("n", Symbol("x.0")),)),
                ("float32", (SizeSymbol("n", minimum(Symbol("x.0"), 3)),)),
            ),
            "output 1: n has two bounds",
        ),
    ],
)
def test_every_fault_of_an_answer(given: Any, fault: str) -> None:
    assert any(fault in one for one in faults(lambda x: given)), faults(lambda x: given)


def test_all_faults_at_once() -> None:
    assert len(faults(lambda x: (("float32", 1), ("float32", (-2,)), ("float32", (Symbol("q"),))))) == 3


def test_a_rule_that_raises_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"pack::layer: its shape rule failed: ZeroDivisionError: .*\n.*correct the shape rule"
    ):
        answer(lambda x: 1 // 0)
    with pytest.raises(UsageError, match=r"pack::layer: its shape rule failed: ") as caught:
        answer(lambda x: (x.dtype, (4 if x.shape[0] > 3 else 5,)))
    assert "lp.where" in str(caught.value)
