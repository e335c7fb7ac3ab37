"""Claims that are proven by structure, and those that only agree on examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerport as lp
from layerport.front.claims import claim_layers
from layerport.front.sources import Source
from layerport.packs.host import load
from layerport.search.modules import structure_of


@lp.layer("structure_tests::norm")
def norm(x: Tensor, weight: lp.Param, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


class Norm(nn.Module):
    """Divides by the root of the mean square, in one of several ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.weight, self.kind = nn.Parameter(torch.rand(8) + 0.5), kind

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.detach() + 1
        if self.kind == "the same":
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight
        if self.kind == "as a formula":
            return self.weight * x / (x.pow(2).mean(-1, True) + 1e-5).sqrt()
        if self.kind == "shifted":
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * (1 + self.weight)
        if self.kind == "by its data":  # a branch that no trace goes along with
            return self.weight * x * torch.rsqrt(x.square().mean(-1, True) + 1e-5) * (1 if x.abs().max() < 1e4 else 2)
        return self.weight * x * torch.exp(-0.5 * torch.log(x.square().mean(-1, True) + 1e-5))


class Pack:
    @lp.hookimpl
    def layerport_layers(self) -> Any:
        return (norm,)

    @lp.hookimpl
    def layerport_export_parameters(self, module: nn.Module, name: str) -> Any:
        if not isinstance(module, Norm):
            return None
        return (norm.bind(weight=module.weight, eps=1e-5), norm.bind(weight=1 + module.weight.detach(), eps=1e-5))


@pytest.mark.parametrize(
    ("kind", "evidence", "structure"),
    [
        ("the same", "structure", {1: "exact"}),
        ("as a formula", "structure", {1: "formula"}),
        ("shifted", "structure", {2: "exact"}),
        ("by its data", "examples", {}),
        ("by logarithms", "examples", {}),
    ],
)
def test_what_a_claim_rests_on(kind: str, evidence: str, structure: dict[int, str]) -> None:
    model = nn.Sequential(Norm(kind)).eval()
    before = model[0].weight.detach().clone()
    (claim,) = claim_layers(Source(model, (torch.randn(3, 8),)), load(Pack())).claims
    assert claim.status == "claimed" and claim.structure == structure
    assert claim.record().evidence.kind == evidence
    assert torch.equal(before, model[0].weight)


def test_a_trace_leaves_nothing_in_the_module() -> None:
    module, x = Norm("the same"), torch.randn(3, 8)
    module(x)
    kept = module.last
    assert structure_of(module, (x,), {}, norm.bind(weight=module.weight, eps=1e-5)) == "exact"
    assert module.last is kept
