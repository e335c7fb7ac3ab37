"""Names and ranges in an exported model: an output may be called like anything else in the graph, a constant not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import layerport as lp
from layerport.bundle.bundle import Bundle


class Named(torch.nn.Module):
    """Its outputs are named like an initializer, like an operator's own output, and like an input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        product = x * self.weight
        return {"x": product + 1, "weight": product * 2, "add": product, "mul": x + self.weight}


@pytest.fixture(autouse=True)
def no_installed_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERPORT_DISABLE_PACKS", "builtin_layers")


def test_outputs_named_like_other_values(tmp_path: Path) -> None:
    model, x = Named(), torch.randn(2, 3)
    lp.build((model, (x,)), tmp_path / "named.lp", target="portable")
    with lp.load(tmp_path / "named.lp") as session:
        assert [port.name for port in session.bundle.inputs] == ["x"]
        got = session(x=x)
    expected = model(x)
    assert set(got) == {"x_", "weight", "add", "mul"}
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name.rstrip("_")].detach().numpy(), rtol=1e-6)


def test_dim_without_a_limit(tmp_path: Path) -> None:
    source = (torch.nn.Linear(4, 4), (torch.randn(3, 4),), ({0: torch.export.Dim("rows")},))
    lp.build(source, tmp_path / "open.lp", target="portable")
    dim = Bundle.open(tmp_path / "open.lp").dims["rows"]
    assert (dim.min, dim.opt, dim.max) == (1, 3, None)
    with pytest.raises(lp.UsageError) as caught:
        lp.build(source, tmp_path / "engine.lp", target="rtx:sm_89")
    assert "needs a greatest size for every dynamic dim; none is known for rows" in caught.value.fault
    assert "--range rows=1..3..512" in str(caught.value.repair)
    assert not (tmp_path / "engine.lp").exists()


class Clamped(torch.nn.Module):
    """One tensor clamped twice, as where boxes are refined: the exporter's optimizer forgets a bound."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first, second = x.clamp(0, 1), x.clamp(0, 1)
        return (first + 0).log() / (1 - first).clamp(min=1e-5), second.clamp(min=1e-5)


def test_every_constant_of_the_graph_is_there(tmp_path: Path) -> None:
    report = lp.build((Clamped(), (torch.rand(2, 3) * 3 - 1,)), tmp_path / "clamped.lp", target="portable")
    assert report.verification is not None and report.verification.passed
