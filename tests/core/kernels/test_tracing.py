"""Launch rules as data: what they become, and errors at the author's line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest

from layerport.dtypes import DType
from layerport.errors import LayerportError, PackError, UsageError
from layerport.kernels.cuda_source import cuda
from layerport.kernels.declaration import Kernel, Launch
from layerport.kernels.launch_rules import LaunchRule, ScalarArg
from layerport.kernels.tracing import trace, trace_predicate
from layerport.parameters.signature import Argument, Kind, Signature
from layerport.sizes.expressions import Const, Symbol, cdiv, minimum, where
from layerport.sizes.tensors import TensorType

SIGNATURE = Signature(
    (
        Argument("x", Kind.INPUT, "tensor"),
        Argument("bias", Kind.PARAM, "tensor", optional=True, default=None),
        Argument("beta", Kind.ATTRIBUTE, "float", default=1.0),
        Argument("sizes", Kind.ATTRIBUTE, "int[]", default=(2, 3)),
    )
)


def traced(launch: Callable[..., Any], when: Callable[..., Any] | None = None, **changes: Any) -> LaunchRule:
    traced = trace(made(launch, when), SIGNATURE, tensors(**changes), {"beta": 2}, layer="p::l")
    return traced.launches.rules[0]


def made(launch: Callable[..., Any], when: Callable[..., Any] | None = None) -> Kernel:
    return Kernel("l_0", (cuda("l.cu", "l"),), ("float32",), launch, when)


def tensors(**changes: Any) -> dict[str, TensorType | None]:
    x = TensorType.symbolic("x", DType.FLOAT16, 2)
    bias = TensorType.symbolic("bias", DType.FLOAT32, 1)
    return {"x": x, "bias": bias, "output": TensorType("output", DType.FLOAT16, x.shape)} | changes


def test_a_rule_becomes_expressions() -> None:
    def launch(x: Any, bias: Any, y: Any, beta: float, sizes: tuple[int, ...]) -> Launch:
        rows, width = x.shape
        return Launch(
            (cdiv(width, 4), rows),
            minimum(width, 256),
            (x, bias, y, x.numel(), rows % 8, beta, 1.5, True, None, sizes[1], math.inf),
            shared=width * x.itemsize,
        )

    rule = traced(launch)
    assert rule.to_json() == {
        "grid": ["ceildiv(x.1, 4)", "x.0", "1"],
        "block": [str(minimum(Symbol("x.1"), 256)), "1", "1"],
        "shared": "2*x.1",
        "args": [
            ["pointer", "x"],
            ["pointer", "bias"],
            ["pointer", "output"],
            ["int", "x.0*x.1"],
            ["int", str(Symbol("x.0") % 8)],
            ["float", "2.0"],
            ["float", "1.5"],
            ["bool", "True"],
            ["null"],
            ["int", "3"],
            ["float", "inf"],
        ],
    }
    assert rule.pointers == ("x", "bias", "output")
    assert rule.symbols() == {"x.0", "x.1"}


def test_an_absent_tensor_is_none() -> None:
    def launch(x: Any, bias: Any, y: Any) -> Launch:
        return Launch(1, 1, (x, bias, y, bias is None))

    assert traced(launch, bias=None).to_json()["args"][1] == ["null"]
    assert traced(launch, bias=None).to_json()["args"][3] == ["bool", "True"]
    assert traced(launch).to_json()["args"][1] == ["pointer", "bias"]


def test_sizes_that_a_kernel_writes_follow_the_outputs() -> None:
    def launch(x: Any, y: Any, count: Any) -> Launch:
        return Launch(cdiv(x.numel(), 64), 64, (x, y, count))

    assert traced(launch, u0=TensorType("u0", DType.INT64, ())).pointers == ("x", "output", "u0")


def test_static_sizes_give_numbers() -> None:
    def launch(x: Any, y: Any) -> Launch:
        return Launch(cdiv(x.numel(), 4), 4, (x, y, x.shape[0] if x.shape[0] > 2 else 0))

    rule = traced(launch, x=TensorType("x", DType.FLOAT16, (3, 5)))
    assert rule.to_json()["grid"] == ["4", "1", "1"]
    assert rule.to_json()["args"][2] == ["int", "3"]


def test_a_static_empty_tensor_may_have_a_grid_of_nothing() -> None:
    def launch(x: Any, y: Any) -> Launch:
        return Launch(cdiv(x.numel(), 4), 4, (x, y))

    rule = traced(launch, x=TensorType("x", DType.FLOAT16, (0, 5)))
    assert rule.resolve({}) is None
    assert LaunchRule.from_json(rule.to_json()) == rule


def fault_of(launch: Callable[..., Any], line: str, **changes: Any) -> str:
    """The message of the error, which must show the line of this test file that contains `line`."""
    with pytest.raises(PackError) as caught:
        traced(launch, **changes)
    lines, first = inspect.getsourcelines(launch)
    (number,) = (first + index for index, text in enumerate(lines) if line in text)
    text = str(caught.value)
    assert text.startswith(f"layer p::l, kernel l_0: launch at {__file__}:{number}: ")
    assert f"at: {lines[number - first].strip()}" in text
    return text


def test_a_branch_on_a_size_shows_the_line_and_the_ways_out() -> None:
    def launch(x: Any, y: Any) -> Launch:
        block = 128
        if x.shape[1] > 1024:
            block = 256
        return Launch(x.shape[0], block, (x, y))

    text = fault_of(launch, "if x.shape[1] > 1024")
    assert "is symbolic here: it is neither true nor false yet" in text
    for way in ("lp.where(", "lp.minimum(", "lp.maximum(", "several kernels, each with its own predicate"):
        assert way in text


@pytest.mark.parametrize("use", [range, int, math.sqrt, float, "{:d}".format, list])
def test_what_needs_a_number_shows_the_line(use: Callable[[Any], Any]) -> None:
    def launch(x: Any, y: Any) -> Launch:
        use(x.shape[1])
        return Launch(1, 1, (x, y))

    fault_of(launch, "use(x.shape[1])")


def test_a_fault_in_a_helper_shows_the_helper() -> None:
    def helper(x: Any) -> int:
        return 256 if x.shape[1] > 3 else 128

    def launch(x: Any, y: Any) -> Launch:
        return Launch(1, helper(x), (x, y))

    with pytest.raises(PackError) as caught:
        traced(launch)
    number = inspect.getsourcelines(helper)[1] + 1
    assert f"launch at {__file__}:{number}: " in str(caught.value)
    assert isinstance(caught.value.__cause__, UsageError)


def test_a_python_error_shows_the_line_and_is_chained() -> None:
    def launch(x: Any, y: Any) -> Launch:
        return Launch(x.stride(0), 1, (x, y))

    text = fault_of(launch, "x.stride(0)")
    assert "AttributeError: 'TensorType' object has no attribute 'stride'" in text
    assert "a rule may use .shape, .ndim, .numel(), .dtype and .itemsize of tensors" in text


def test_a_constant_beyond_the_limits_shows_the_line() -> None:
    def launch(x: Any, y: Any) -> Launch:
        return Launch(1, 2048, (x, y))

    assert "block x is 2048, allowed are 1 to 1024" in fault_of(launch, "Launch(1, 2048")


def test_a_grid_of_nothing_for_tensors_of_something() -> None:
    def launch(x: Any, y: Any) -> Launch:
        return Launch((4, 0), 1, (x, y))

    assert "the grid is (4, 0, 1)" in fault_of(launch, "def launch")


def test_a_rule_must_return_a_launch() -> None:
    def launch(x: Any, y: Any) -> Any:
        return (1, 1, (x, y))

    assert "it returned tuple\n" in fault_of(launch, "def launch")


def test_a_tensor_from_elsewhere() -> None:
    stranger = TensorType.symbolic("x", DType.FLOAT16, 2)

    def launch(x: Any, y: Any) -> Launch:
        return Launch(1, 1, (x, stranger, y))

    with pytest.raises(PackError, match=r"args\[1\] is a tensor x that is not one of the layer's\n.*called with"):
        traced(launch)


def test_a_size_from_elsewhere() -> None:
    def launch(x: Any, y: Any) -> Launch:
        return Launch(Symbol("gate.0"), 1, (x, y))

    assert "it uses the sizes gate.0\n" in fault_of(launch, "def launch")


def test_too_many_and_too_few_outputs() -> None:
    with pytest.raises(PackError, match="launch takes y, z beside the layer's arguments, but the layer has 1"):
        traced(lambda x, y, z: None)
    with pytest.raises(PackError, match="launch takes nothing beside the layer's arguments"):
        traced(lambda x: None)


def test_a_tensor_that_was_not_given() -> None:
    given = tensors()
    del given["bias"]
    with pytest.raises(PackError, match=r"layer p::l, kernel l_0 is traced without bias"):
        trace(made(lambda x, y: None), SIGNATURE, given, {}, layer="p::l")


def test_attributes_are_checked_and_have_defaults() -> None:
    def launch(x: Any, y: Any, beta: float, sizes: Any) -> Launch:
        return Launch(1, 1, (beta, *sizes))

    rule = trace(made(launch), SIGNATURE, tensors(), {}).launches.rules[0]
    assert rule.to_json()["args"] == [["float", "1.0"], ["int", "2"], ["int", "3"]]
    with pytest.raises(LayerportError, match="no such attribute"):
        trace(made(launch), SIGNATURE, tensors(), {"gamma": 1})


def test_a_predicate_becomes_an_expression() -> None:
    def launch(x: Any, y: Any) -> Launch:
        return Launch(1, 1, (x, y))

    def predicate(when: Callable[..., Any] | None) -> Any:
        return trace_predicate(made(launch, when), SIGNATURE, tensors(), {}, layer="p::l")

    assert predicate(None) is None
    condition = predicate(lambda x, beta: where(x.shape[1] <= 64, x.shape[0] % 8 == 0, 0))
    assert [condition.evaluate({"x.0": rows, "x.1": width}) for rows, width in ((8, 64), (9, 64), (8, 65))] == [1, 0, 0]
    assert predicate(lambda x: x.dtype is DType.FLOAT16).evaluate({}) == 1
    assert predicate(lambda beta: beta > 4).evaluate({}) == 0
    assert predicate(lambda y: y.ndim == 2).evaluate({}) == 1
    with pytest.raises(PackError, match=r"when at .*: it returned str 'yes'"):
        predicate(lambda x: "yes")
    with pytest.raises(PackError, match=r"when at .*: it takes gate\n(.*\n)*.*there are x, bias, output"):
        predicate(lambda gate: True)
    with pytest.raises(PackError, match=r"neither true nor false yet"):
        predicate(lambda x: x.shape[0] > 1 and x.shape[1] > 1)


@pytest.mark.parametrize(
    ("size", "value"),
    [
        (lambda c: c**-0.5, 0.125),
        (lambda c: 1 / math.sqrt(c), 0.125),
        (lambda c: math.log2(c), 6.0),
        (lambda c: c / 128, 0.5),
        (lambda c: c * 0.5, 32.0),
        (lambda c: math.ceil(c / 3), "22"),
    ],
)
def test_roots_and_quotients_of_known_sizes(size: Any, value: object) -> None:
    """Also of an output's size, which is an expression where it is derived."""
    known = {name: TensorType(name, DType.FLOAT16, (Symbol("x.0"), Const(64))) for name in ("x", "output")}
    rule = traced(lambda x, output: Launch(1, 1, (size(x.shape[-1]), size(output.shape[-1]))), **known)
    for arg in rule.args:
        assert isinstance(arg, ScalarArg) and (str(arg.value) if isinstance(value, str) else arg.value) == value


def test_a_root_of_a_size_that_is_not_known_says_what_to_do() -> None:
    with pytest.raises(PackError) as caught:
        traced(lambda x, y: Launch(1, 1, (x, y, x.shape[-1] ** -0.5)))
    assert "x.1 ** -0.5 would be a float, and its sizes are no numbers yet" in caught.value.fault
    assert "make the sizes it is made of static in the export" in str(caught.value.repair)


@pytest.mark.parametrize("place", ["grid", "args", "shared", "when"])
def test_a_size_that_depends_on_data_is_refused(place: str) -> None:
    found = TensorType("output", DType.INT64, (Symbol("u0"), 2))
    sizes = {"output": found, "u0": TensorType("u0", DType.INT64, ())}

    def launch(x: Any, y: Any, count: Any) -> Launch:
        n = y.shape[0]
        return Launch(
            n if place == "grid" else 1, 1, (x, y, count, n if place == "args" else 1), n if place == "shared" else 0
        )

    with pytest.raises(PackError) as caught:
        if place == "when":
            when = made(launch, lambda x, output: output.shape[0] > 4)
            trace_predicate(when, SIGNATURE, tensors(**sizes), {"beta": 2}, layer="p::l")
        else:
            traced(launch, **sizes)
    assert "it uses the size u0, which depends on data: it is known after the launch only" in caught.value.fault
    assert "launch for the greatest value of the size" in str(caught.value.repair)
