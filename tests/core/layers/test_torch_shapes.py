"""Output rules derived from references agree with what the references really return."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from layerport.dtypes import DType
from layerport.errors import BuildError, UsageError
from layerport.layers.derivation import Derivation, SizeSymbol, derive, from_rule
from layerport.parameters.frameworks.torch_dtypes import from_dtype, to_dtype
from layerport.sizes.dims import port
from layerport.sizes.expressions import Expr, Symbol, cdiv, maximum
from layerport.sizes.tensors import TensorType

F32 = DType.FLOAT32
LAYER = "tests::layer"


def shape(name: str, *dims: int | str | None, dtype: DType = F32) -> TensorType:
    return port(name, dtype, dims)


def rules(derivation: Derivation) -> list[str]:
    return [rule.form for rule in derivation.outputs]


CASES: dict[str, tuple[Callable[..., Any], list[tuple[int | str | None, ...]], list[str]]] = {
    "unchanged": (lambda x: x * 2, [(None, None)], ["float32[x.0, x.1]"]),
    "floor division": (lambda x: x[:, : x.shape[1] // 3], [(None, None)], ["float32[x.0, min(x.1, x.1//3)]"]),
    "ceil division": (
        lambda x: x[-(-x.shape[0] // 4) :],
        [(None,)],
        ["float32[max(0, x.0 - min(x.0, ceildiv(x.0, 4)))]"],
    ),
    "math.ceil": (lambda x: x.new_zeros(math.ceil(x.shape[0] / 4)), [(None,)], ["float32[ceildiv(x.0, 4)]"]),
    "float factor": (
        lambda x: x.new_zeros(math.floor(x.shape[0] * 0.75), math.trunc(x.shape[0] * 1.5)),
        [(None,)],
        ["float32[3*x.0//4, 3*x.0//2]"],
    ),
    "max": (lambda x: x.new_zeros(max(x.shape[0], 8)), [(None,)], ["float32[max(8, x.0)]"]),
    "min": (lambda x: x.new_zeros(min(x.shape[0], 8)), [(None,)], ["float32[min(8, x.0)]"]),
    "constant minus dim": (lambda x: x.new_zeros(100 - x.shape[0]), [(None,)], ["float32[100 - x.0]"]),
    "modulo": (lambda x: x.new_zeros(x.shape[0] % 4), [(None,)], ["float32[x.0 - 4*(x.0//4)]"]),
    "product": (lambda x: x.reshape(-1), [(None, None)], ["float32[x.0*x.1]"]),
    "square": (lambda x: x.new_zeros(x.shape[0] ** 2), [(None,)], ["float32[x.0*x.0]"]),
    "rank up": (lambda x: x[:, None].expand(-1, 4, -1), [(None, None)], ["float32[x.0, 4, x.1]"]),
    "rank down": (lambda x: x.sum((0, 1)), [(None, None, 3)], ["float32[3]"]),
    "scalar": (lambda x: x.mean(), [(None,)], ["float32[]"]),
    "chunk": (
        lambda x: x.chunk(2, 1),
        [(None, None)],
        ["float32[x.0, (x.1 + 1)//2]", "float32[x.0, x.1 - (x.1 + 1)//2]"],
    ),
    "slice": (lambda x: x[3:], [(None,)], ["float32[max(0, x.0 - min(3, x.0))]"]),
    "slice to": (lambda x: x[:5], [(None,)], ["float32[min(5, x.0)]"]),
    "dtypes": (
        lambda x: (x.half(), x > 0, x.argmax(-1)),
        [(None, 5)],
        ["float16[x.0, 5]", "bool[x.0, 5]", "int64[x.0]"],
    ),
    "repeat": (lambda x: x.repeat_interleave(3, 0), [(None, None)], ["float32[3*x.0, x.1]"]),
    "convolution": (
        lambda x, w: F.conv2d(x, w, stride=2, padding=1),
        [(None, 3, None, None), (4, 3, 3, 3)],
        ["float32[x.0, 4, (x.2 + 1)//2, (x.3 + 1)//2]"],
    ),
    "pooling": (
        lambda x: F.avg_pool2d(x, 3, 2),
        [(2, 3, None, None)],
        ["float32[2, 3, (x.2 + 1)//2 - 1, (x.3 + 1)//2 - 1]"],
    ),
    "pooling, ceil": (
        lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
        [(2, None, None, 9)],
        ["float32[2, x.1, x.2//2, 4]"],
    ),
    "circular pad": (
        lambda x: F.pad(x, (1, 2), mode="circular"),
        [(None, None, None)],
        ["float32[x.0, x.1, x.2 + 3]"],
    ),
    "interpolate": (
        lambda x: F.interpolate(x, scale_factor=1.5),
        [(None, None, None)],
        ["float32[x.0, x.1, 3*x.2//2]"],
    ),
    "cat": (lambda x, y: torch.cat((x, y), 1), [(None, None), (None, None)], ["float32[x.0, x.1 + y.1]"]),
    "unfold": (lambda x: x.unfold(0, 3, 2), [(None, 5)], ["float32[(x.0 + 1)//2 - 1, 5, 3]"]),
    "matmul": (lambda x, y: x @ y, [(None, None), (None, None)], ["float32[x.0, y.1]"]),
    "outer": (lambda x, y: x[:, None] * y, [(None,), (None,)], ["float32[x.0, y.0]"]),
    "heads": (
        lambda x: x.view(x.shape[0], -1, 4, 2).transpose(1, 2),
        [(None, None)],
        ["float32[x.0, 4, x.1//8, 2]"],
    ),
    "constant output": (lambda x: (x, torch.ones(3)), [(None,)], ["float32[x.0]", "float32[3]"]),
    "one name": (lambda x, y: torch.cat((x, y)), [("n",), ("n",)], ["float32[2*x.0]"]),
    "static": (lambda x: x.flatten(), [(4, 1)], ["float32[4]"]),
}


def real_sizes(shapes: list[TensorType]) -> list[dict[str, int]]:
    """Every choice of a few small sizes for the dynamic dims."""
    keys: dict[str, list[str]] = {}
    for name, one in zip("xyw", shapes, strict=False):
        for axis, dim in enumerate(one.shape):
            if not isinstance(dim, int):
                keys.setdefault(f"{name}.{axis}" if dim is None else str(dim), []).append(f"{name}.{axis}")
    pool = (1, 2, 3, 7, 8, 16, 29) if len(keys) < 3 else (1, 4, 5, 16)
    return [
        {place: size for places, size in zip(keys.values(), sizes, strict=True) for place in places}
        for sizes in itertools.product(pool, repeat=len(keys))
    ]


def run(reference: Callable[..., Any], shapes: list[TensorType], sizes: dict[str, int], names: str) -> list[Tensor]:
    inputs = {
        name: torch.ones(
            [dim if isinstance(dim, int) else sizes[f"{name}.{axis}"] for axis, dim in enumerate(one.shape)],
            dtype=from_dtype(one.dtype),
        )
        for name, one in zip(names, shapes, strict=True)
    }
    answer = reference(**inputs)
    return list(answer) if isinstance(answer, tuple) else [answer]


@pytest.mark.parametrize("name", CASES)
def test_rules_agree_with_real_runs(name: str) -> None:
    reference, dims, expected = CASES[name]
    names = "".join(reference.__code__.co_varnames[: reference.__code__.co_argcount])
    shapes = [shape(name, *one) for name, one in zip(names, dims, strict=True)]
    derivation = derive(reference, dict(zip(names, shapes, strict=True)), {}, layer=LAYER)
    assert rules(derivation) == expected
    compared = 0
    for sizes in real_sizes(shapes):
        if any(sizes[a] != sizes[b] for a, b in derivation.equalities):
            continue
        if not all(condition.evaluate(sizes) for condition in derivation.constraints):
            continue
        real = run(reference, shapes, sizes, names)
        assert len(real) == len(derivation.outputs)
        for output, rule in zip(real, derivation.outputs, strict=True):
            assert [dim.evaluate(sizes) for dim in rule.dims] == list(output.shape), sizes
            assert rule.dtype is to_dtype(output.dtype)
        compared += 1
    assert compared >= (1 if not real_sizes(shapes)[0] else 2)


def test_half_in_float_out() -> None:
    derivation = derive(lambda x: x.float().cumsum(0), {"x": shape("x", None, dtype=DType.FLOAT16)}, {}, layer=LAYER)
    assert rules(derivation) == ["float32[x.0]"]


def test_attributes_and_absent_tensors_reach_the_reference() -> None:
    def reference(x: Tensor, bias: Tensor | None, times: int) -> Tensor:
        return x.repeat(times) if bias is None else x

    tensors = {"x": shape("x", None), "bias": None}
    assert rules(derive(reference, tensors, {"times": 3}, layer=LAYER)) == ["float32[3*x.0]"]


@pytest.mark.parametrize(
    ("reference", "dims", "bounds"),
    [
        (lambda x: x.nonzero(), ["u0", "2"], ["x.0*x.1"]),
        (lambda x: x[x > 0], ["u0"], ["x.0*x.1"]),
        (lambda x: x[x[:, 0] > 0], ["u0", "x.1"], ["x.0"]),
        (lambda x: x.masked_select(x > 0), ["u0"], ["x.0*x.1"]),
        (lambda x: torch.unique(x), ["u0"], ["x.0*x.1"]),
        (lambda x: torch.unique(x, dim=1), ["x.0", "u0"], ["x.1"]),
        (lambda x: torch.where(x > 0)[0], ["u0"], ["x.0*x.1"]),
        (lambda x: torch.cat((x[x > 0], x[x < 1])), ["u0 + u1"], ["x.0*x.1", "x.0*x.1"]),
        (lambda x: x.nonzero()[:4, 0], ["min(4, u0)"], ["x.0*x.1"]),
        (lambda x: x[x > 0].nonzero(), ["u0", "1"], ["x.0*x.1"]),
        (lambda x: x[x > 0][3:].nonzero(), ["u0", "1"], [None]),
        (lambda x: x.repeat_interleave(x[:, 0].long(), 0), ["u0", "x.1"], [None]),
    ],
)
def test_sizes_that_depend_on_data(reference: Callable[..., Any], dims: list[str], bounds: list[str | None]) -> None:
    derivation = derive(reference, {"x": shape("x", None, None)}, {}, layer=LAYER)
    assert [str(dim) for dim in derivation.outputs[0].dims] == dims
    found = [None if size.upper_bound is None else str(size.upper_bound) for size in derivation.size_symbols]
    assert found == bounds
    assert [size.name for size in derivation.size_symbols] == [f"u{index}" for index in range(len(bounds))]
    for size in (2, 5):
        x = torch.ones(size, size + 1)
        real = math.prod(reference(x).shape)
        env = {"x.0": size, "x.1": size + 1}
        if bounds[0] is not None:
            full = {s.name: s.upper_bound.evaluate(env) for s in derivation.size_symbols if s.upper_bound is not None}
            assert real <= math.prod(dim.evaluate(env | full) for dim in derivation.outputs[0].dims)


def test_a_checked_size_takes_its_bound_from_the_check() -> None:
    def reference(x: Tensor) -> Tensor:
        size: Any = x.long().sum().item()
        check: Any = torch._check
        check(size >= 0)
        check(size <= x.shape[0] * 4)
        return x.new_zeros(size)

    derivation = derive(reference, {"x": shape("x", None, None)}, {}, layer=LAYER)
    assert [str(size.upper_bound) for size in derivation.size_symbols] == ["4*x.0"]


def test_equal_example_sizes_are_not_equal_dims() -> None:
    derivation = derive(
        lambda x: x.transpose(0, 1), {"x": shape("x", None, None)}, {}, layer=LAYER, hint={"x.0": 8, "x.1": 8}
    )
    assert rules(derivation) == ["float32[x.1, x.0]"]
    assert derivation.equalities == ()


def test_a_reference_without_tensors_has_constant_dims() -> None:
    derivation = derive(lambda n: torch.zeros(n), {}, {"n": 3}, layer=LAYER)
    assert rules(derivation) == ["float32[3]"]


def test_rejected_example_sizes_leave_no_noise(capfd: pytest.CaptureFixture[str]) -> None:
    tensors = {"x": shape("x", None, None), "weight": shape("weight", 32, 48)}
    derivation = derive(lambda x, weight: F.linear(x, weight), tensors, {}, layer=LAYER)
    assert (rules(derivation), derivation.fixed) == (["float32[x.0, 32]"], {"x.1": 48})
    assert capfd.readouterr() == ("", "")


def test_dims_that_must_be_equal_are_reported() -> None:
    tensors = {"gate": shape("gate", None, None), "up": shape("up", None, None)}
    derivation = derive(lambda gate, up: F.silu(gate) * up, tensors, {}, layer=LAYER)
    assert rules(derivation) == ["float32[gate.0, gate.1]"]
    assert derivation.equalities == (("gate.0", "up.0"), ("gate.1", "up.1"))
    assert derivation.constraints == ()


def test_a_dim_that_a_weight_fixes_is_reported() -> None:
    tensors = {"x": shape("x", "batch", None), "weight": shape("weight", 64)}
    derivation = derive(lambda x, weight: F.rms_norm(x, weight.shape, weight), tensors, {}, layer=LAYER)
    assert rules(derivation) == ["float32[x.0, 64]"]
    assert derivation.fixed == {"x.1": 64}
    pinned = derive(lambda x: x.new_zeros(int(x.shape[0])), {"x": shape("x", None)}, {}, layer=LAYER, hint={"x.0": 17})
    assert (rules(pinned), pinned.fixed) == (["float32[17]"], {"x.0": 17})


def test_a_dim_made_of_others_is_a_constraint() -> None:
    derivation = derive(
        lambda x, y: x.reshape(-1) + y,
        {"x": shape("x", None, None), "y": shape("y", None)},
        {},
        layer=LAYER,
        hint={"x.0": 4, "x.1": 6, "y.0": 24},
    )
    assert [str(one) for one in derivation.constraints] == ["y.0 == x.0*x.1"]
    assert rules(derivation) == ["float32[x.0*x.1]"]


def test_a_branch_on_a_size_is_a_constraint_and_the_hint_chooses() -> None:
    def reference(x: Tensor) -> Tensor:
        return x if x.shape[0] > 8 else x[:2]

    long = derive(reference, {"x": shape("x", "n")}, {}, layer=LAYER)
    assert (rules(long), [str(one) for one in long.constraints]) == (["float32[x.0]"], ["8 < x.0"])
    short = derive(reference, {"x": shape("x", "n")}, {}, layer=LAYER, hint={"n": 4})
    assert all(one.evaluate({"x.0": 8}) for one in short.constraints)
    assert not all(one.evaluate({"x.0": 9}) for one in short.constraints)


def test_a_hint_of_one_does_not_fix_the_dim() -> None:
    derivation = derive(lambda x: x + 1, {"x": shape("x", "batch", 4)}, {}, layer=LAYER, hint={"batch": 1})
    assert rules(derivation) == ["float32[x.0, 4]"]
    assert derivation.fixed == {}


SAME_RULES = """
import torch
from layerport.layers.derivation import derive
from layerport.sizes.dims import port

def reference(b, a, z):
    return (*torch.cat((z, b, a)).chunk(3, 1), torch.cat((a[a > 0], z[z > 0])))

tensors = {name: port(name, "float32", (None, None)) for name in "baz"}
found = derive(reference, tensors, {}, layer="t::l")
said = repr(([str(o) for o in found.outputs], found.equalities, [str(c) for c in found.constraints]))
"""


def test_the_rules_are_the_same_in_another_process() -> None:
    here: dict[str, Any] = {}
    exec(SAME_RULES, here)
    done = subprocess.run(
        [sys.executable, "-c", SAME_RULES + "print(said)"],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == here["said"]
    assert "u0 + u1" in here["said"]


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        (lambda x: x.new_zeros(math.floor(math.pow(x.shape[0], 0.5))), ("0.5", "@layer.shape_rule")),
        (
            lambda x: (x, x.new_zeros(2, math.trunc(x.shape[0] * 0.1))),
            (f"{LAYER}: axis 1 of output 1 has the size TruncToInt(0.1*ToFloat(x.0))", "@layer.shape_rule"),
        ),
        (
            lambda x: x.new_zeros(int(x.shape[0] * 0.3)),
            (f"{LAYER}: the reference turns sizes into a plain number", "x.0", "@layer.shape_rule"),
        ),
        (lambda x: x if x.sum() > 0 else -x, (f"{LAYER}: the reference decides by its data", "torch.where")),
        (lambda x: (x, 3), (f"{LAYER}: output 1 of the reference is int, not a tensor",)),
        (lambda x: (), (f"{LAYER}: the reference returns no output",)),
        (lambda x: x.to(torch.complex64), (f"{LAYER}: output 0: torch.complex64 has no standard form",)),
    ],
)
def test_what_has_no_rule_is_an_error(
    reference: Callable[..., Any], parts: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        derive(reference, {"x": shape("x", None)}, {}, layer=LAYER)
    for part in parts:
        assert part in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_reference_that_never_runs_shows_each_try() -> None:
    def reference(x: Tensor) -> Tensor:
        raise ValueError("only for squares")

    with pytest.raises(BuildError) as caught:
        derive(reference, {"x": shape("x", None, 3)}, {}, layer=LAYER)
    text = str(caught.value)
    assert text.startswith("tests::layer: the reference does not run on symbolic sizes")
    assert "x=float32[24, 3]: ValueError: only for squares" in text
    assert "@layer.shape_rule" in text
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_shape_of_a_wrong_dim_is_refused() -> None:
    with pytest.raises(UsageError, match="axis 1 of a tensor is -1"):
        shape("x", 3, -1)


def test_a_written_rule_gives_outputs_and_sizes() -> None:
    def rule(x: Any, mask: Any, keep: int) -> Any:
        kept = SizeSymbol("u0", x.shape[0] * keep)
        return (("float16", (kept, x.shape[1])), (x.dtype, (cdiv(x.shape[0], 2), 3, maximum(x.numel(), 8))))

    tensors = {"x": shape("x", "n", 5), "y": shape("y", "n"), "mask": None}
    answer = from_rule(rule, tensors, {"keep": 2, "unused": 1.5}, LAYER)
    assert [one.form for one in answer.outputs] == [
        "float16[u0, 5]",
        "float32[ceildiv(x.0, 2), 3, max(8, 5*x.0)]",
    ]
    assert [(one.name, str(one.upper_bound)) for one in answer.size_symbols] == [("u0", "2*x.0")]
    answer = from_rule(rule, {"x": shape("x", 4, 5), "mask": None}, {"keep": 2}, LAYER)
    assert [one.greatest.evaluate({}) for one in answer.size_symbols] == [8]
    single = from_rule(lambda y: (y.dtype, y.shape), tensors, {}, LAYER)
    assert [one.form for one in single.outputs] == ["float32[x.0]"]


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        (lambda x: (x.dtype, (4 if x.shape[0] > 3 else 5,)), "lp.where"),
        (lambda x: None, "expected (dtype, dims) for each output, got None"),
        (lambda x: (("float32", (1,)), ("float33", (1,))), "output 1: unknown dtype 'float33'"),
        (lambda x: ("float32", (-3,)), "output 0: a size of -3"),
        (lambda x: ("float32", (1.5,)), "output 0: a size is a whole number or an expression, got float 1.5"),
        (lambda x: ("float32", (Symbol("z.0"),)), "output 0: z.0 names z.0, a size of no argument"),
        (lambda w: ("float32", ()), "its shape rule asks for w"),
        (lambda x: x.colour, "AttributeError"),
    ],
)
def test_a_wrong_written_rule_is_an_error(rule: Callable[..., Any], part: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_rule(rule, {"x": shape("x", None)}, {}, LAYER)
    assert part in str(caught.value)
    assert LAYER in str(caught.value)


def test_output_rules_compare_by_what_they_say() -> None:
    one, same = (derive(lambda x: x, {"x": shape("x", None)}, {}, layer=LAYER).outputs[0] for _ in range(2))
    other = derive(lambda x: x[:2], {"x": shape("x", None)}, {}, layer=LAYER).outputs[0]
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert isinstance(one.dims[0], Expr)
