"""Modules of torch.nn and functions of torch.nn.functional, found by references that write out their formulas."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import layerport as lp
from searched import search_in

X, IMAGE = torch.randn(2, 6, 8), torch.randn(2, 8, 3, 6)
ALPHA, SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def trained(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


def mish(x: Tensor) -> Tensor:
    return x * torch.tanh(functional.softplus(x))


def mish_of_log1p(x: Tensor) -> Tensor:
    return x * torch.tanh(torch.log1p(torch.exp(x)))


def mish_guarded(x: Tensor) -> Tensor:
    return x * torch.tanh(torch.where(x > 20, x, torch.log(1 + x.exp())))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def gelu_of_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def hardswish(x: Tensor) -> Tensor:
    return x * functional.relu6(x + 3) / 6


def hardswish_of_clamp(x: Tensor) -> Tensor:
    return x * torch.clamp(x + 3, 0, 6) / 6


def hardswish_of_hardsigmoid(x: Tensor) -> Tensor:
    return x * functional.hardsigmoid(x)


def hardsigmoid(x: Tensor) -> Tensor:
    return (x + 3).clamp(min=0).clamp(max=6) / 6


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.where(x > 0, x, alpha * (torch.exp(x) - 1))


def elu_the_other_way(x: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.where(x <= 0, alpha * torch.expm1(x), x)


def selu(x: Tensor) -> Tensor:
    return SCALE * torch.where(x > 0, x, ALPHA * torch.expm1(x))


def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.where(x > 0, x, alpha * (torch.exp(x / alpha) - 1))


def softplus(x: Tensor, beta: float = 1.0) -> Tensor:
    return torch.log(1 + torch.exp(beta * x)) / beta


def softsign(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


def log_sigmoid(x: Tensor) -> Tensor:
    return torch.log(torch.sigmoid(x))


def log_sigmoid_of_softplus(x: Tensor) -> Tensor:
    return -functional.softplus(-x)


def tanhshrink(x: Tensor) -> Tensor:
    return x - torch.tanh(x)


def glu(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return first * torch.sigmoid(second)


def leaky_relu(x: Tensor, slope: float = 0.01) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def hardshrink(x: Tensor, least: float = 0.5) -> Tensor:
    return torch.where(x.abs() > least, x, torch.zeros_like(x))


def threshold(x: Tensor, bound: float = 0.5, value: float = 1.0) -> Tensor:
    return torch.where(x > bound, x, value)


def prelu(x: Tensor, weight: lp.Param) -> Tensor:
    return torch.where(x > 0, x, weight * x)


def rms_norm(x: Tensor, weight: lp.Param, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def layer_norm(x: Tensor, weight: lp.Param, bias: lp.Param, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps) * weight + bias


def group_norm(x: Tensor, weight: lp.Param, bias: lp.Param, groups: int, eps: float = 1e-5) -> Tensor:
    parts = x.reshape(x.shape[0], groups, -1)
    parts = parts - parts.mean(-1, keepdim=True)
    parts = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)
    return parts.reshape(x.shape) * weight.reshape(1, -1, 1, 1) + bias[:, None, None]


def group_norm_of_torch(x: Tensor, weight: lp.Param, bias: lp.Param, groups: int, eps: float = 1e-5) -> Tensor:
    return functional.group_norm(x, groups, weight, bias, eps)


def instance_norm(x: Tensor, weight: lp.Param, bias: lp.Param, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean((-2, -1), keepdim=True)
    scale = torch.rsqrt(x.var((-2, -1), keepdim=True, unbiased=False) + eps)
    return centred * scale * weight[:, None, None] + bias[:, None, None]


def batch_norm(
    x: Tensor, middle: lp.Param, variance: lp.Param, weight: lp.Param, bias: lp.Param, eps: float = 1e-5
) -> Tensor:
    middle, variance, weight, bias = (one.reshape(1, -1, 1, 1) for one in (middle, variance, weight, bias))
    return (x - middle) / torch.sqrt(variance + eps) * weight + bias


def normalize(x: Tensor, eps: float = 1e-12) -> Tensor:
    return x / torch.clamp(torch.sqrt((x * x).sum(-1, keepdim=True)), min=eps)


def normalize_of_norm(x: Tensor, eps: float = 1e-12) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(eps)


def cosine_similarity(x: Tensor, y: Tensor, eps: float = 1e-8) -> Tensor:
    return (functional.normalize(x, dim=-1, eps=eps) * functional.normalize(y, dim=-1, eps=eps)).sum(-1)


def cosine_similarity_of_norms(x: Tensor, y: Tensor, eps: float = 1e-8) -> Tensor:
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1)).clamp_min(eps)


ONE: dict[str, tuple[Callable[..., Any], list[Callable[..., Any]], dict[str, float]]] = {
    "Mish": (nn.Mish(), [mish, mish_of_log1p, mish_guarded], {}),
    "SiLU": (nn.SiLU(), [silu], {}),
    "GELU": (nn.GELU(), [gelu], {}),
    "GELU of tanh": (nn.GELU("tanh"), [gelu_of_tanh], {}),
    "Hardswish": (nn.Hardswish(), [hardswish, hardswish_of_clamp, hardswish_of_hardsigmoid], {}),
    "Hardsigmoid": (nn.Hardsigmoid(), [hardsigmoid], {}),
    "ELU": (nn.ELU(1.25), [elu, elu_the_other_way], {"alpha": 1.25}),
    "SELU": (nn.SELU(), [selu], {}),
    "CELU": (nn.CELU(1.75), [celu], {"alpha": 1.75}),
    "Softsign": (nn.Softsign(), [softsign], {}),
    "LogSigmoid": (nn.LogSigmoid(), [log_sigmoid, log_sigmoid_of_softplus], {}),
    "Tanhshrink": (nn.Tanhshrink(), [tanhshrink], {}),
    "GLU": (nn.GLU(), [glu], {}),
    "LeakyReLU": (nn.LeakyReLU(0.25), [leaky_relu], {"slope": 0.25}),
    "Hardshrink": (nn.Hardshrink(0.25), [hardshrink], {"least": 0.25}),
    "Threshold": (nn.Threshold(0.125, 20.0), [threshold], {"bound": 0.125, "value": 20.0}),
    "PReLU": (nn.PReLU(), [prelu], {}),
    "RMSNorm": (nn.RMSNorm(8, eps=1e-5), [rms_norm], {"eps": 1e-5}),
    "LayerNorm": (nn.LayerNorm(8), [layer_norm], {"eps": 1e-5}),
    "normalize": (lambda x: functional.normalize(x, dim=-1), [normalize, normalize_of_norm], {"eps": 1e-12}),
}
IMAGES: dict[str, tuple[Callable[..., Any], list[Callable[..., Any]], dict[str, float]]] = {
    "GroupNorm": (nn.GroupNorm(4, 8), [group_norm, group_norm_of_torch], {"groups": 4, "eps": 1e-5}),
    "InstanceNorm": (nn.InstanceNorm2d(8, affine=True), [instance_norm], {"eps": 1e-5}),
    "BatchNorm": (trained(nn.BatchNorm2d(8)), [batch_norm], {"eps": 1e-5}),
}


class Beside(nn.Module):
    """Functions beside each other, each on an input that is computed, as in a model."""

    def __init__(self, functions: list[Any]) -> None:
        super().__init__()
        self.functions = functions
        self.held = nn.ModuleList(one for one in functions if isinstance(one, nn.Module))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(function((2.0 + place) * x) for place, function in enumerate(self.functions))


def layer_of(function: Callable[..., Any]) -> lp.Layer:
    return lp.layer(f"formula_tests::{function.__name__}", find=True)(function)


@pytest.mark.parametrize("spelling", range(3))
@pytest.mark.parametrize(("table", "x"), [(ONE, X), (IMAGES, IMAGE)], ids=["functions", "norms of images"])
def test_it_is_found_by_its_formula(table: dict[str, Any], x: Tensor, spelling: int) -> None:
    rows = {name: row for name, row in table.items() if len(row[1]) > spelling}
    if not rows:
        return
    layers = [layer_of(spellings[spelling]) for _, spellings, _ in rows.values()]
    findings, _ = search_in(Beside([model for model, _, _ in rows.values()]), (x,), layers)
    found = {place.layer: place.attributes for place in findings.places}
    wanted = {layer.name: attributes for layer, (*_, attributes) in zip(layers, rows.values(), strict=True)}
    assert found == wanted, findings
    assert len(findings.places) == len(wanted)


@pytest.mark.parametrize("beta", [1.0, 2.5])  # with 1, the formula has no factor
def test_a_factor_that_is_an_attribute(beta: float) -> None:
    findings, _ = search_in(nn.Softplus(beta), (X,), [layer_of(softplus)])
    assert [place.attributes for place in findings.places] == [{"beta": beta}]


def test_the_similarity_of_two() -> None:
    findings, _ = search_in(
        lambda x, y: functional.cosine_similarity(2 * x, y, dim=-1), (X, X + 1), [layer_of(cosine_similarity)]
    )
    assert [place.attributes for place in findings.places] == [{"eps": 1e-8}]


def shifted_hardsigmoid(x: Tensor) -> Tensor:
    return torch.clamp(x / 6 + 0.5, 0, 1)


def prelu_of_two(x: Tensor, weight: lp.Param) -> Tensor:
    return functional.relu(x) - weight * functional.relu(-x)


@pytest.mark.parametrize(
    ("model", "reference", "why"),
    [
        (nn.Tanh(), mish, "its reference computes exp, log, which the model does nowhere"),
        (nn.PReLU(), prelu_of_two, "its reference computes maximum, which the model does nowhere"),
        (nn.Hardsigmoid(), shifted_hardsigmoid, "its reference ends with minimum, which no step of the model is like"),
        (nn.LeakyReLU(), elu, "its reference computes exp, which the model does nowhere"),
        (
            nn.Sequential(nn.LeakyReLU(), nn.Sigmoid()),
            elu,
            r"the nearest place has \d+% of it, function.0 \(.+\): the reference has .+ where the model has .+",
        ),
    ],
)
def test_what_is_not_found_says_why(model: Any, reference: Callable[..., Any], why: str) -> None:
    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.function = model

        def forward(self, x: Tensor) -> Tensor:
            return 1.0 + self.function(2.0 * x)

    findings, _ = search_in(Holds(), (X,), [layer_of(reference)])
    assert findings.places == [] and findings.misses == []
    (said,) = findings.absent.values()
    assert re.fullmatch(why, said), said


def test_a_place_within_another_ones_says_so() -> None:
    def both(x: Tensor) -> Tensor:
        return torch.cos(x * torch.sigmoid(x)) + x

    def one(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    findings, _ = search_in(lambda x: torch.cos(functional.silu(x)) + x, (X,), [layer_of(both), layer_of(one)])
    assert [place.layer for place in findings.places] == ["formula_tests::both"]
    assert "formula_tests::one" in {*findings.absent, *(miss.layer for miss in findings.misses)}
