"""Which places of a graph a layer's reference finds, however they are written, and which it must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import layerport as lp
from searched import Function, search_in


@lp.layer("search_tests::rms")
def rms(x: Tensor, weight: lp.Param, eps: float = 1e-6) -> Tensor:
    if weight.shape != x.shape[-1:]:
        raise ValueError("weight is not (C,)")
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


@lp.layer("search_tests::gate")
def gate(g: Tensor, u: Tensor) -> Tensor:
    if g.shape != u.shape or g.dtype != u.dtype:
        raise ValueError("of two shapes")
    return functional.silu(g) * u


@lp.layer("search_tests::rope")
def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos.unsqueeze(1) + turned * sin.unsqueeze(1)


@lp.layer("search_tests::swish")
def swish(x: Tensor, scale: lp.Param, beta: float = 1.0) -> Tensor:
    return x * torch.sigmoid(beta * x) * scale


@lp.layer("search_tests::gelu_mul")
def gelu_mul(g: Tensor, u: Tensor) -> Tensor:
    return functional.gelu(g, approximate="tanh") * u


@lp.layer("search_tests::layer_norm", find=True)
def layer_norm(x: Tensor, weight: lp.Param, bias: lp.Param, eps: float = 1e-5) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


@lp.layer("search_tests::add_rms")
def add_rms(x: Tensor, residual: Tensor, weight: lp.Param, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    total = x + residual
    return total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps) * weight, total


@lp.layer("search_tests::scaled_softmax")
def scaled_softmax(x: Tensor, scale: float = 1.0) -> Tensor:
    return torch.softmax(x / scale, -1)


EVERY = (rms, gate, rope, swish, gelu_mul, layer_norm, add_rms, scaled_softmax)
X, Y = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
W, B = torch.rand(8) + 0.5, torch.randn(8)
Q, COS, SIN = torch.randn(2, 2, 3, 8), torch.randn(2, 3, 8), torch.randn(2, 3, 8)


def found(model: Any, args: tuple[Any, ...], *layers: lp.Layer) -> list[tuple[str, str, dict[str, Any]]]:
    findings, _ = search_in(model, args, layers or EVERY)
    return [(one.layer.partition("::")[2], one.grade, dict(one.attributes)) for one in findings.places]


def half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def test_a_gate_is_bound_to_what_stands_in_the_graph() -> None:
    assert found(lambda g, u: functional.silu(g) * u, (X, Y)) == [("gate", "exact", {})]


def test_a_parameter_behind_views_that_undo_each_other_is_varied_as_one_value() -> None:
    weight = torch.ones(8, dtype=torch.float16)
    model = Function(lambda x, weight: functional.silu(x * weight.unsqueeze(0).squeeze(0)) * x, weight=weight)
    args = (X.half(),)

    @lp.layer("search_tests::scaled_gate")
    def scaled_gate(x: Tensor, weight: lp.Param) -> Tensor:
        if weight.shape != x.shape[-1:]:
            raise ValueError("weight is not (C,)")
        return (functional.silu(x.float() * weight.float()) * x.float()).to(x.dtype)

    assert found(model, args, scaled_gate) == [("scaled_gate", "formula", {})]


def beside_parts_of_zeros(g: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    zeros = torch.zeros_like(u)
    return functional.silu(g) * u, zeros[:, :1] + u, zeros[:, 0], functional.glu(zeros) + 1


def changed_later(g: Tensor, u: Tensor) -> Tensor:
    y = functional.silu(g)
    g.mul_(2)
    return y * u


SAME: dict[str, tuple[Any, tuple[Any, ...], str, dict[str, float]]] = {
    "an input that is changed afterwards": (changed_later, (X, Y), "gate", {}),
    "beside parts of a tensor of zeros": (beside_parts_of_zeros, (X, Y), "gate", {}),
    "operands swapped": (lambda g, u: u * functional.silu(g), (X, Y), "gate", {}),
    "sigmoid by hand": (lambda g, u: g * torch.sigmoid(g) * u, (X, Y), "gate", {}),
    "reassociated": (lambda g, u: g * (u * torch.sigmoid(g)), (X, Y), "gate", {}),
    "exp by hand": (lambda g, u: u * g / (1 + torch.exp(-g)), (X, Y), "gate", {}),
    "inputs from chunk": (lambda x: functional.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1], (X,), "gate", {}),
    "inputs from slices": (lambda x: functional.silu(x[..., :4]) * x[..., 4:], (X,), "gate", {}),
    "a gate that is a product": (lambda a, b: functional.silu(a * b) * (a + b), (X, Y), "gate", {}),
    "a doubled gate": (lambda a, b: functional.silu(2 * a) * b, (X, Y), "gate", {}),
    "pow and mul": (
        Function(lambda x, weight: weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)), weight=W),
        (X,),
        "rms",
        {"eps": 1e-5},
    ),
    "division by sqrt": (
        Function(lambda x, weight: weight * x / ((x * x).mean(-1, True) + 1e-5).sqrt(), weight=W),
        (X,),
        "rms",
        {"eps": 1e-5},
    ),
    "torch's own rms_norm": (
        Function(lambda x, weight: functional.rms_norm(x, (8,), weight, 1e-3), weight=W),
        (X,),
        "rms",
        {"eps": 1e-3},
    ),
    "one plus a weight": (
        Function(lambda x, weight: (1 + weight) * (x * (x.square().mean(-1, True) + 1e-6) ** -0.5), weight=W),
        (X,),
        "rms",
        {"eps": 1e-6},
    ),
    "a weight of views": (
        Function(
            lambda x, weight: x * torch.rsqrt(x.square().mean(-1, True) + 1e-6) * weight.view(1, 1, 8).flatten(),
            weight=W,
        ),
        (X,),
        "rms",
        {"eps": 1e-6},
    ),
    "rope with chunk": (
        lambda q, c, s: q * c[:, None] + half_turned(q) * s[:, None],
        (Q, COS, SIN),
        "rope",
        {},
    ),
    "rope, the other way round": (
        lambda q, c, s: half_turned(q) * s.unsqueeze(1) + c.unsqueeze(1) * q,
        (Q, COS, SIN),
        "rope",
        {},
    ),
    "rope of a transposed input": (
        lambda q, c, s: q.transpose(1, 2) * c.unsqueeze(1) + half_turned(q.transpose(1, 2)) * s.unsqueeze(1),
        (Q.transpose(1, 2).contiguous(), COS, SIN),
        "rope",
        {},
    ),
    "an attribute": (
        Function(lambda x, scale: scale * x / (1 + torch.exp(-1.5 * x)), scale=W),
        (X,),
        "swish",
        {"beta": 1.5},
    ),
    "gelu by hand": (
        lambda g, u: 0.5 * g * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (g + 0.044715 * g**3))) * u,
        (X, Y),
        "gelu_mul",
        {},
    ),
    "layer norm by hand": (
        Function(
            lambda x, weight, bias: (
                (x - x.mean(-1, True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5) * weight + bias
            ),
            weight=W,
            bias=B,
        ),
        (X,),
        "layer_norm",
        {"eps": 1e-5},
    ),
    "a scale that multiplies": (lambda x: torch.softmax(x * 0.25, -1), (X,), "scaled_softmax", {"scale": 4.0}),
    "no scale to see": (lambda x: torch.softmax(x / 8**0.5, dim=2), (X,), "scaled_softmax", {"scale": 8**0.5}),
}


@pytest.mark.parametrize("case", SAME)
def test_what_is_written_otherwise_is_found(case: str) -> None:
    model, args, layer, attributes = SAME[case]
    ((name, _, bound),) = found(model, args)
    assert name == layer and bound == pytest.approx(attributes, rel=1e-9)


def modified(g: Tensor, u: Tensor) -> Tensor:
    return g.mul_(torch.sigmoid(g)).mul_(u)


def rms_by(formula: Callable[[Tensor], Tensor], weight: Tensor = W) -> Function:
    return Function(lambda x, weight: formula(x) * weight, weight=weight)


OTHER: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "interleaved rope": (
        lambda q, c, s: q * c[:, None] + torch.stack((-q[..., 1::2], q[..., ::2]), -1).flatten(-2) * s[:, None],
        (Q, COS, SIN),
    ),
    "rope with another unsqueeze": (
        lambda q, c, s: q * c.unsqueeze(2) + half_turned(q) * s.unsqueeze(2),
        (torch.randn(2, 3, 3, 8), COS, SIN),
    ),
    "rope with a wrong split": (
        lambda q, c, s: q * c[:, None] + torch.cat((-q[..., 3:], q[..., :3]), -1) * s[:, None],
        (Q, COS, SIN),
    ),
    "rope with the sign elsewhere": (
        lambda q, c, s: q * c[:, None] + torch.cat((q[..., 4:], -q[..., :4]), -1) * s[:, None],
        (Q, COS, SIN),
    ),
    "rope with the halves kept": (
        lambda q, c, s: q * c[:, None] + torch.cat((-q[..., :4], q[..., 4:]), -1) * s[:, None],
        (Q, COS, SIN),
    ),
    "rms over another axis of the same size": (
        Function(lambda x, weight: x * torch.rsqrt(x.square().mean(1, True) + 1e-6) * weight, weight=W),
        (torch.randn(2, 8, 8),),
    ),
    "eps outside of the root": (rms_by(lambda x: x / (x.square().mean(-1, True).sqrt() + 1e-6)), (X,)),
    "sum for mean": (rms_by(lambda x: x * torch.rsqrt(x.square().sum(-1, True) + 1e-6)), (X,)),
    "the cube for the square": (rms_by(lambda x: x * torch.rsqrt(x.pow(3).mean(-1, True) + 1e-6)), (X,)),
    "another root": (rms_by(lambda x: x * (x.square().mean(-1, True) + 1e-6) ** -0.25), (X,)),
    "the mean of the absolute values": (rms_by(lambda x: x * torch.rsqrt(x.abs().mean(-1, True) + 1e-6)), (X,)),
    "a weight of rank 2": (
        rms_by(lambda x: x * torch.rsqrt(x.square().mean(-1, True) + 1e-6), torch.rand(3, 8)),
        (X,),
    ),
    "an inner value that is needed elsewhere": (lambda g, u: ((y := functional.silu(g)) * u, y), (X, Y)),
    "an input that is modified in place": (modified, (X.clone(), Y)),
    "an operand that broadcasts": (lambda g, u: functional.silu(g) * u, (X, torch.randn(1, 3, 8))),
    "an operand of another dtype": (lambda g, u: functional.silu(g) * u, (X, Y.to(torch.float16))),
    "sigmoid of the other": (lambda g, u: g * torch.sigmoid(u) * torch.tanh(g), (X, Y)),
    "erf for tanh": (lambda g, u: functional.gelu(g) * u, (X, Y)),
    "another constant in gelu": (
        lambda g, u: 0.5 * g * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (g + 0.0447 * g**3))) * u,
        (X, Y),
    ),
    "unbiased variance": (
        Function(
            lambda x, weight, bias: (x - x.mean(-1, True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5) * weight + bias,
            weight=W,
            bias=B,
        ),
        (X,),
    ),
    "softmax over another axis": (lambda x: torch.softmax(x * 0.25, 1), (X,)),
    "dropout in between": (
        lambda g, u: functional.dropout(torch.sigmoid(g), 0.5, training=True) * g * u,
        (X, Y),
    ),
    "a parameter that is an input": (lambda x, w: x * torch.rsqrt(x.square().mean(-1, True) + 1e-6) * w, (X, W)),
}


@pytest.mark.parametrize("case", OTHER)
def test_what_is_something_else_is_not_found(case: str) -> None:
    model, args = OTHER[case]
    assert found(model, args) == []


def test_no_scale_is_a_scale_of_one_unless_nothing_is_computed() -> None:
    assert found(lambda x: torch.softmax(x, -1), (X,)) == [("scaled_softmax", "formula", {"scale": 1.0})]


def test_the_larger_of_two_that_overlap_is_taken_and_the_other_one_named() -> None:
    def block(x: Tensor, r: Tensor, weight: Tensor) -> Tensor:
        return (x + r) * torch.rsqrt((x + r).square().mean(-1, True) + 1e-6) * weight

    model = Function(block, weight=W)
    findings, _ = search_in(model, (X, Y), (rms, add_rms))
    assert [one.layer for one in findings.places] == ["search_tests::add_rms"]
    assert [(one.layer, one.reason) for one in findings.misses] == [
        ("search_tests::rms", "search_tests::add_rms takes the same nodes, 8 of them against 6")
    ]


def test_several_outputs_replace_all_that_the_model_takes() -> None:
    def block(x: Tensor, r: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        h = r + x
        return torch.tanh(h * torch.rsqrt(h.pow(2).mean(-1, True) + 1e-6) * weight), h * 2

    findings, program = search_in(Function(block, weight=W), (X, Y), (add_rms,))
    assert [one.layer for one in findings.places] == ["search_tests::add_rms"]
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not {"aten.pow.Tensor_Scalar", "aten.rsqrt.default", "aten.add.Tensor"} & set(targets), targets


@lp.layer("search_tests::power")
def power(x: Tensor, y: Tensor, root: Literal["square", "cube"] = "square", times: Literal[1, 3] = 1) -> Tensor:
    return times * torch.exp(x.square() if root == "square" else x**3) * y


def test_an_attribute_of_listed_values_is_tried_with_each() -> None:
    def with_all(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return tuple(factor * torch.exp(x**exponent) * y for factor in (1, 3, 2) for exponent in (2, 3))

    values = [{"root": root, "times": times} for times in (1, 3) for root in ("square", "cube")]
    assert [attributes for *_, attributes in found(with_all, (X, Y), power)] == values


@lp.layer("search_tests::sum_and_norm")
def sum_and_norm(x: Tensor, residual: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    if x.shape != residual.shape:
        raise ValueError("sum_and_norm does not broadcast")
    total = x + residual
    return total, total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps)


def test_of_outputs_with_all_tensors_the_one_with_the_attribute_is_searched() -> None:
    assert found(lambda x, y: sum_and_norm.reference(x, y, 1e-3)[::-1], (X, Y), sum_and_norm) == [
        ("sum_and_norm", "exact", {"eps": 1e-3})
    ]


@lp.layer("search_tests::turn")
def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if x.shape != cos.shape or x.shape != sin.shape:
        raise ValueError("of several shapes")
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


@lp.layer("search_tests::pairs")
def pairs(x: Tensor, table: Tensor) -> Tensor:
    columns = table[..., : x.shape[-1] // 2]
    if table.ndim == x.ndim - 1:
        columns = columns.unsqueeze(1)
    return x[..., ::2] * columns - x[..., 1::2]


def by_unbind(x: Tensor, table: Tensor) -> Tensor:
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return first * table[..., :4].unsqueeze(1) - second


def by_select(x: Tensor, table: Tensor) -> Tensor:
    both = x.reshape(2, 2, 3, 4, 2)
    return both[..., 0] * table[:, None, :, :4] - both[..., 1]


def by_wrong_select(x: Tensor, table: Tensor) -> Tensor:
    both = x.reshape(2, 2, 3, 2, 4).transpose(-1, -2).reshape(2, 2, 3, 4, 2)
    return both[..., 0] * table[:, None, :, :4] - both[..., 1]


def test_arguments_are_found_behind_views_of_several_kinds() -> None:
    def of_some_rows(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x[:, 1:] * cos + half_turned(x[:, 1:]) * sin

    def of_a_multiple(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        scaled = 0.25 * x
        return scaled * cos + half_turned(scaled) * sin

    assert found(of_some_rows, (torch.randn(2, 4, 8), Y, X), turn) == [("turn", "exact", {})]
    assert found(of_a_multiple, (X, Y, X + 1), turn) == [("turn", "exact", {})]
    assert found(by_unbind, (Q, COS), pairs) == found(by_select, (Q, COS), pairs) == [("pairs", "exact", {})]
    assert found(by_wrong_select, (Q, COS), pairs) == []


def test_a_place_takes_what_another_one_gives_behind_a_cast_that_changes_nothing() -> None:
    model = Function(
        lambda g, u, weight: rms.reference((functional.silu(g) * u).type_as(g), weight),
        weight=W,
    )
    findings, program = search_in(model, (X, Y), [rms, gate])
    assert [one.layer.partition("::")[2] for one in findings.places] == ["gate", "rms"]
    assert "silu" not in str(program.graph)
