"""What the search must not take for the same, whatever the numbers of an example say; and models of odd structure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerport as lp
from layerport.front.exporter import quiet
from layerport.search.searching import search
from searched import Function, compared, program_of, search_in


def layer_of(reference: Callable[..., Any]) -> lp.Layer:
    return lp.layer(f"wrong_tests::{reference.__name__}")(reference)


def found(model: Any, args: tuple[Any, ...], *layers: lp.Layer) -> list[str]:
    findings, _ = search_in(model, args, layers)
    return [one.layer.partition("::")[2] for one in findings.places]


X, Y, Z = torch.randn(8, 8), torch.randn(8, 8), torch.randn(8, 8)


@layer_of
def padded(x: Tensor) -> Tensor:
    return torch.tanh(torch.cat((torch.zeros(8, 2), x, torch.zeros(8, 4)), 1))


@layer_of
def total(x: Tensor, y: Tensor) -> Tensor:
    return torch.tanh(y + x.sum(0, keepdim=True)) + 3


@layer_of
def count(x: Tensor) -> Tensor:
    return torch.tanh(x * torch.ones(8, 4).sum(1, keepdim=True))


@layer_of
def bytes_of(x: Tensor) -> Tensor:
    return torch.tanh(x.to(torch.int64).to(torch.uint8).float() * 0.3)


@layer_of
def either(x: Tensor) -> Tensor:
    positive = x > 0
    return torch.tanh(((positive + positive).float() + 0.5) * x)


@layer_of
def kept(x: Tensor, mask: Tensor) -> Tensor:
    return torch.softmax(torch.where(mask, x, -1e4), -1)


OTHER: dict[str, tuple[lp.Layer, Callable[..., Any], tuple[Any, ...]]] = {
    "zeros on the other side": (
        padded,
        lambda x: torch.tanh(torch.cat((torch.zeros(8, 4), x, torch.zeros(8, 2)), 1)) * 1,
        (torch.zeros(8, 8) + 1e-9,),
    ),
    "no sum at all": (total, lambda x, y: torch.tanh(y + 0 * x) + 3, (X - X, Y)),
    "a sum over another axis": (total, lambda x, y: torch.tanh(y + x.sum(1, keepdim=True)) + 3, (X - X, Y)),
    "the sum of more ones": (count, lambda x: torch.tanh(x * torch.ones(8, 7).sum(1, keepdim=True)), (X * 1e-9,)),
    "no wrap at 256": (bytes_of, lambda x: torch.tanh(x.to(torch.int64).float() * 0.3), (X.abs(),)),
    "one of two bools": (either, lambda x: torch.tanh((2 * (x > 0).float() + 0.5) * x), (-X.abs(),)),
    "the mask turned round": (kept, lambda x, m: torch.softmax(torch.where(m, -1e4, x), -1), (X, X > 0)),
    "another value for what is masked": (kept, lambda x, m: torch.softmax(torch.where(m, x, -1e3), -1), (X, X > 0)),
    "added, not chosen": (kept, lambda x, m: torch.softmax(x + torch.where(m, 0.0, -1e4), -1), (X, X > 0)),
}


@pytest.mark.parametrize("case", OTHER)
def test_it_is_not_taken_though_the_example_shows_no_difference(case: str) -> None:
    layer, model, args = OTHER[case]
    assert found(model, args, layer) == []


def test_masks_and_sums_are_found_where_they_are_the_same() -> None:
    assert found(lambda x, m: torch.softmax(x.masked_fill(~m, -1e4), -1), (X, X > 0), kept) == ["kept"]
    assert found(lambda x, m: torch.softmax(torch.where(m, x, -1e4), dim=1), (X, X > 0), kept) == ["kept"]
    assert found(lambda x, y: 3 + torch.tanh(x.sum(0, True) + y), (X, Y), total) == ["total"]


def test_a_root_of_a_negative_number_stops_nothing() -> None:
    assert found(lambda x, y: y * torch.sqrt(torch.tensor(-2.0)) + x, (X, Y), total) == []


@layer_of
def with_total(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    both = x + residual
    return torch.tanh(both) * weight, both


@layer_of
def gated(x: Tensor, y: Tensor) -> Tensor:
    return torch.sigmoid(x) * y.square()


@layer_of
def grown(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.exp(x), torch.exp(x) * torch.cos(y)


def test_a_layer_that_takes_an_earlier_output_of_one_that_ends_later() -> None:
    def model(x: Tensor, r: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        both = x + r
        weight = torch.exp(z).sum(-1, keepdim=True).expand(z.shape)
        gate = torch.sigmoid(both) * z.square()
        return torch.tanh(both) * weight, gate

    assert sorted(found(model, (X, Y, Z), with_total, gated)) == ["gated", "with_total"]


def test_two_places_that_would_need_one_another() -> None:
    def model(x: Tensor, r: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        both = x + r
        other = torch.exp(z)
        return torch.tanh(both) * torch.erf(other), both, other * torch.cos(both)

    findings, _ = search_in(model, (X, Y, Z), (with_total, grown))
    assert [one.layer for one in findings.places] == ["wrong_tests::grown"]
    assert any("is needed for its own inputs" in one.reason for one in findings.misses)


@lp.layer("wrong_tests::norm")
def norm(x: Tensor, weight: lp.Param, eps: float = 1e-6) -> Tensor:
    if weight.shape != x.shape[-1:]:
        raise ValueError("weight is not (C,)")
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


@lp.layer("wrong_tests::headed")
def headed(x: Tensor, weight: lp.Param, heads: int = 2) -> Tensor:
    parts = x.reshape(x.shape[0], heads, x.shape[1] // heads)
    scaled = parts / (parts.square().sum(-1, keepdim=True) + 1)
    return scaled.reshape(x.shape) * weight


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / torch.sqrt(x.pow(2).mean(-1, True) + 1e-5)


class Twice(nn.Module):
    """One module called twice, a weight that is tied and used elsewhere too, a counter, an inner value as an output."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other, self.linear = Norm(), Norm(), nn.Linear(8, 8, bias=False)
        self.other.weight = self.norm.weight
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.add_(1)
        first = self.norm(x)
        inner = self.norm(self.linear(first) * self.calls)
        return self.other(inner) * self.norm.weight, inner


def test_modules_called_twice_and_tied_weights() -> None:
    findings, program = search_in(Twice(), (X,), (norm,))
    assert [one.module for one in findings.places] == ["norm", "norm", "other"]
    module = program.module()
    before = float(dict(module.named_buffers())["calls"])
    module(X)
    assert float(dict(module.named_buffers())["calls"]) == before + 1  # it still counts


class Shifted(nn.Module):
    """A weight that is a buffer which the model writes to: no constant."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight
        self.weight.mul_(0.9)
        return y


def test_a_buffer_that_is_written_to_is_no_parameter() -> None:
    assert found(Shifted(), (X,), norm) == []


def test_a_number_of_heads_is_read_where_sizes_tell_it() -> None:
    def model(heads: int) -> Function:
        def forward(x: Tensor, weight: Tensor) -> Tensor:
            parts = x.view(-1, heads, 8 // heads)
            return weight * (parts / (1 + (parts * parts).sum(-1, True))).flatten(1)

        return Function(forward, weight=torch.rand(8) + 0.5)

    for heads in (2, 4):
        findings, _ = search_in(model(heads), (X,), (headed,))
        assert [one.attributes for one in findings.places] == [{"heads": heads}]


def test_a_program_of_the_user_stays_as_it_is() -> None:
    """Also one whose constants are shared by what Torch decomposes it to."""
    shifted = Function(lambda x, weight: x * torch.rsqrt(x.square().mean(-1, True) + 1e-6) * (1 + weight), weight=X[0])
    with quiet():
        program = program_of(shifted, (X,))
        before, text = copy.copy(program.constants), str(program)
        findings = search(program.run_decompositions({}), (norm,), (X,), compared)
    assert len(findings.places) == 1
    assert program.constants.keys() == before.keys() and str(program) == text
