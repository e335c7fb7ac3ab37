"""Layers that are called, or found by their references: all in one plan, in fp32 and fp16; what a search takes."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

import layerport as lp
from layerport.bundle.bundle import PLUGINS, Bundle
from layerport.bundle.plugin_spec import from_bytes
from layerport.search.patterns import patterns_of
from layerport.testing import check_spellings
from layerport_builtin_layers.add_rms_norm import add_rms_norm
from layerport_builtin_layers.circular_pad import circular_pad
from layerport_builtin_layers.gelu_mul import gelu_mul
from layerport_builtin_layers.layer_norm import layer_norm
from layerport_builtin_layers.rms_norm import rms_norm
from searched import Function, search_in
from small_setup import ENGINE

WIDTH = 12


class Block(nn.Module):
    """Each layer is called; the tanh gate, and only it, is written with Torch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.bias = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total, normalised = add_rms_norm(x, x.sin(), self.weight, 1e-5)
        gate = layer_norm(normalised, self.weight, self.bias)
        gated: Tensor = functional.gelu(gelu_mul(gate, total), approximate="tanh") * gate
        return total, circular_pad(gated, [1, 2, 0, 5])


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_32_bits, self.in_16_bits = Block(), Block().half()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (*self.in_32_bits(x), *self.in_16_bits(x.half()))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")
def test_a_plan_holds_each_of_them_in_two_dtypes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, args = Both().eval(), (torch.randn(2, 3, WIDTH),)
    shapes = ({0: Dim("batch", min=1, max=8), 1: Dim("sequence", min=1, max=16)},)
    report = lp.build((model, args, shapes), tmp_path / "a.lp", target=ENGINE)
    # Twice with the error function, which is called, and twice with tanh, which is found.
    wanted = {"add_rms_norm": 2, "layer_norm": 2, "gelu_mul": 4, "circular_pad": 2}
    assert report.counts == {f"layerport_builtin::{name}": {"plugin": count} for name, count in wanted.items()}
    assert Counter(one.via for one in report.layers) == {"written": 8, "found": 2}
    assert [one.attributes for one in report.found] == [{"approximate": "tanh"}] * 2
    assert report.verification is not None and report.verification.passed
    assert {one.answer for one in report.verification.kernels} == {"right"}
    assert len(report.verification.kernels) == 10
    assert list((tmp_path / "a.lp").glob("*.plan"))


class WideResidual(nn.Module):
    """A model of 16 bits that sums in float32, as Mamba does: weights of 16 bits beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.RMSNorm(WIDTH, eps=1e-5), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        total = x.float() + self.linear(x)
        result: Tensor = rms_norm(total, self.norm.weight, 1e-5).half()
        return result


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")
def test_weights_of_16_bits_beside_float32_become_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = WideResidual().half()
    nn.init.uniform_(model.norm.weight, 0.5, 1.5)
    report = lp.build((model.eval(), (torch.randn(2, 3, WIDTH).half(),)), tmp_path / "a.lp", target=ENGINE)
    assert report.counts == {"layerport_builtin::rms_norm": {"plugin": 1}}
    assert report.verification is not None and report.verification.passed
    assert [one.answer for one in report.verification.kernels] == ["right"]
    (spec,) = from_bytes(Bundle.open(tmp_path / "a.lp").read(PLUGINS)).specs.values()
    assert [one.dtype.value for one in spec.inputs] == ["float32", "float32"]


X, Y, W = torch.randn(2, 3, WIDTH), torch.randn(2, 3, WIDTH), torch.rand(WIDTH) + 0.5


def found(model: Any, *layers: lp.Layer, asked: bool = False) -> list[tuple[str, dict[str, Any]]]:
    findings, _ = search_in(model, (X, Y), layers, asked=[layer.name for layer in layers if asked])
    return [(one.layer.partition("::")[2], dict(one.attributes)) for one in findings.places]


GATES = {
    "Torch's erf": (lambda g, u: functional.gelu(g) * u, "none"),
    "Torch's tanh": (lambda g, u: u * functional.gelu(g, approximate="tanh"), "tanh"),
    "erf of a quotient": (lambda g, u: u * (g * 0.5 * (1 + torch.erf(g / 2**0.5))), "none"),
    "erf of a product": (lambda g, u: 0.5 * u * g * (1 + torch.erf(g * 0.5**0.5)), "none"),
    "tanh by hand": (
        lambda g, u: 0.5 * g * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (g + 0.044715 * g**3))) * u,
        "tanh",
    ),
    "halves of one tensor": (lambda x, _: functional.gelu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1], "none"),
}


@pytest.mark.parametrize("case", GATES)
def test_a_gate_is_found_in_either_form(case: str) -> None:
    gate, form = GATES[case]
    assert found(gate, gelu_mul) == [("gelu_mul", {"approximate": form})]


OTHERS = {
    "a product of sigmoid": lambda g, u: g * torch.sigmoid(1.702 * g) * u,
    "a number": lambda g, u: functional.gelu(g) * 0.5 + u,
    "a broadcast": lambda g, u: functional.gelu(g) * u[:, :1],
    "a gate that is needed elsewhere": lambda g, u: ((y := functional.gelu(g)) * u, y),
}


@pytest.mark.parametrize("case", OTHERS)
def test_no_gate_is_found_where_none_is(case: str) -> None:
    assert found(OTHERS[case], gelu_mul) == []


def test_the_spelling_of_a_gate_is_the_gate() -> None:
    for form in ("none", "tanh"):
        check_spellings(gelu_mul, X, Y, form)


def normalised(scale: bool) -> Function:
    def block(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return functional.rms_norm(total, (WIDTH,), weight if scale else None, 1e-5), total + 1

    return Function(block, weight=W)


@pytest.mark.parametrize("scale", [True, False])
def test_a_sum_and_its_normalisation_are_found_where_they_are_asked_for(scale: bool) -> None:
    assert found(normalised(scale), add_rms_norm, asked=True) == [("add_rms_norm", {"eps": 1e-5})]
    assert found(normalised(scale), add_rms_norm) == []


@pytest.mark.parametrize("layer", [layer_norm, add_rms_norm])
def test_what_is_found_only_where_asked_for_says_so(layer: lp.Layer) -> None:
    assert "find=False" in str(patterns_of(layer).reason)
    assert patterns_of(layer, asked=True).patterns


def test_a_form_of_gelu_is_never_computed_by_the_kernel_of_the_other() -> None:
    chosen = {form: [kernel.name for kernel in gelu_mul.kernels if kernel.when(form)] for form in ("none", "tanh")}
    assert chosen == {"none": ["gelu_mul_erf"], "tanh": ["gelu_mul_tanh"]}
