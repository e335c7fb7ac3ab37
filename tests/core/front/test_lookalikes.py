"""What looks like a layer and no pack answers for: found by names, with few false alarms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerport as lp
from layerport.front.claims import claim_layers
from layerport.front.sources import Source
from layerport.packs.host import load


@lp.layer("lp_looks::rms_norm")
def rms_norm(x: Tensor, weight: lp.Param | None = None, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * (1 if weight is None else weight)


@lp.layer("lp_looks::silu_mul")
def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, one of the GLU variants."""
    return nn.functional.silu(gate) * up


class RmsNorm(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm.reference(x, self.weight)


class MambaRMSNormGated(RmsNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        return rms_norm.reference(hidden_states, self.weight)


class GluMlp(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(4, 8), act, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.fc1(x).chunk(2, -1)
        return self.fc2(one * self.act(other))


class Gated(GluMlp):
    """Named after nothing."""


class Plain(nn.Module):
    """A SiLU, and nothing multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(4, 4), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) + x


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x) * x


class Pack:
    claims: type[nn.Module] | None = None
    only = ""

    @lp.hookimpl
    def layerport_layers(self) -> Any:
        return (rms_norm, silu_mul)

    @lp.hookimpl
    def layerport_export_parameters(self, module: nn.Module, name: str) -> Any:
        if self.claims is not None and type(module) is self.claims and name.startswith(self.only):
            return rms_norm.bind(weight=module.weight)
        return None


@pytest.fixture(autouse=True)
def no_installed_packs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("layerport.packs.host.discover", lambda environ=None: ())
    yield


def looks(*modules: nn.Module, pack: Any = None, **options: Any) -> list[tuple[str, str, int, str]]:
    claimed = claim_layers(Source(nn.Sequential(*modules).eval(), (torch.ones(2, 4),)), load(pack or Pack()), **options)
    return [(one.module_class, one.module, one.count, one.layer) for one in claimed.lookalikes]


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        (RmsNorm(), "lp_looks::rms_norm"),
        (MambaRMSNormGated(), "lp_looks::rms_norm"),
        (GluMlp(nn.SiLU()), "lp_looks::silu_mul"),
        (GluMlp(nn.Sigmoid()), "lp_looks::silu_mul"),
        (Gated(nn.SiLU()), "lp_looks::silu_mul"),
        (Functional(), "lp_looks::silu_mul"),
        (nn.RMSNorm(4), "lp_looks::rms_norm"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_looks_like_a_layer(module: nn.Module, layer: str) -> None:
    assert looks(module) == [(type(module).__name__, "0", 1, layer)]


@pytest.mark.parametrize(
    "module",
    [
        nn.LayerNorm(4),
        nn.Linear(4, 4),
        nn.SiLU(),
        Plain(),
        Gated(nn.GELU()),
        nn.BatchNorm1d(4),
        nn.GroupNorm(2, 4),
        nn.TransformerEncoderLayer(4, 2),
        nn.LSTM(4, 4),
        nn.Identity(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_does_not(module: nn.Module) -> None:
    if isinstance(module, nn.LSTM):
        module.forward = lambda x: x  # type: ignore[method-assign]
    assert looks(module) == []


def test_modules_of_one_class_are_one_entry_and_claimed_ones_none() -> None:
    pack = Pack()
    pack.claims, pack.only = RmsNorm, "0"
    assert looks(RmsNorm(), RmsNorm(), RmsNorm(), pack=pack) == [("RmsNorm", "1", 2, "lp_looks::rms_norm")]
    pack.only = ""
    assert looks(RmsNorm(), RmsNorm(), pack=pack) == []
    assert looks(RmsNorm(), refused=["lp_looks::rms_norm"]) == []


def test_the_reason_says_what_the_module_has_and_what_the_layer_takes() -> None:
    model = nn.Sequential(MambaRMSNormGated()).eval()
    (one,) = claim_layers(Source(model, (torch.ones(2, 4),)), load(Pack())).lookalikes
    assert one.reason == (
        "no pack answers for its class; it has forward(hidden_states, gate) and weight[4], "
        "the layer takes (x) with weight, eps"
    )


def test_a_build_reports_them(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from layerport.commands.reports import print_build

    model = nn.Sequential(RmsNorm(), RmsNorm()).eval()
    made = (model, (torch.ones(2, 4),))
    options: Any = {"packs": [Pack()], "target": "portable", "force": True}
    report = lp.build(made, tmp_path / "out.lp", **options)
    assert len(report.found) == 2 and report.lookalikes == ()  # what is found is no miss
    report = lp.build(made, tmp_path / "out.lp", no_find=["lp_looks::rms_norm"], **options)
    assert report.to_json()["lookalikes"][0]["class"] == "RmsNorm"
    print_build(report)
    line = (
        "looks like lp_looks::rms_norm and is not claimed: RmsNorm (2 at 0 and so on): no pack answers for its class; "
    )
    assert line in capsys.readouterr().out
