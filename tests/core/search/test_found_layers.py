"""The search within a build: what is asked for, what the manifest and the report say, what `explain` shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import layerport as lp
from layerport.bundle.bundle import MANIFEST
from layerport.commands.explaining import explain, print_explanation
from layerport.errors import UsageError

SOURCE = """
import torch
from torch import Tensor
import layerport as lp

@lp.layer("found_tests::gate")
def gate(g: Tensor, u: Tensor, beta: float = 1.0) -> Tensor:
    if g.shape != u.shape:
        raise ValueError("of two shapes")
    return g * torch.sigmoid(beta * g) * u

@lp.layer("found_tests::single")
def single(x: Tensor) -> Tensor:
    return torch.relu(x)

@lp.hookimpl
def layerport_layers():
    return (gate, single)

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.act = torch.nn.Linear(8, 8), torch.nn.SiLU()

    def forward(self, x):
        return torch.relu(self.act(x) * self.up(x))

def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(Block(), Block()).eval(), (torch.randn(3, 8),)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("source")


@pytest.fixture
def source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("layerport.packs.host.discover", lambda environ=None: ())
    (folder / "found_source.py").write_text(SOURCE)
    return str(folder / "found_source.py")


def build(source: str, tmp_path: Path, **options: Any) -> lp.BuildReport:
    return lp.build(f"{source}:model", tmp_path / "out.lp", packs=[source], target="portable", force=True, **options)


def test_a_build_finds_and_says_so(source: str, tmp_path: Path) -> None:
    report = build(source, tmp_path)
    assert report.counts == {"found_tests::gate": {"function": 2}}
    assert [(one.module, one.grade, dict(one.attributes)) for one in report.found] == [
        ("0", "formula", {"beta": 1.0}),
        ("1", "formula", {"beta": 1.0}),
    ]
    line = SOURCE.splitlines().index("        return torch.relu(self.act(x) * self.up(x))") + 1
    assert {one.line for one in report.found} == {f"{source}:{line}"}
    assert report.verification is not None and report.verification.passed
    text = (tmp_path / "out.lp" / MANIFEST).read_text()
    assert [(one["via"], one["grade"]) for one in json.loads(text)["layers"]] == [("found", "formula")] * 2
    assert source not in text  # a bundle holds no path of the machine


def test_what_is_not_to_be_found_is_not(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(source, tmp_path, no_find=["found_tests::gate"]).counts == {}
    assert build(source, tmp_path, no_claim=["found_tests::gate"]).counts == {}
    monkeypatch.setenv("LAYERPORT_FIND", "0")
    assert build(source, tmp_path).counts == {}
    assert build(source, tmp_path, find=["found_tests::gate"]).counts == {"found_tests::gate": {"function": 2}}


def test_a_single_operator_is_found_where_it_is_asked_for(source: str, tmp_path: Path) -> None:
    assert build(source, tmp_path, find=["found_tests::single"]).counts == {
        "found_tests::gate": {"function": 2},
        "found_tests::single": {"function": 2},
    }


def test_what_must_be_found_and_is_not(source: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.SiLU()).eval()
    with pytest.raises(UsageError, match="not found in the model: found_tests::gate"):
        lp.build(
            (model, (torch.randn(3, 8),)),
            tmp_path / "out.lp",
            packs=[source],
            target="portable",
            find=["found_tests::gate"],
        )
    with pytest.raises(UsageError, match="found_tests::gate is to be found, and is refused"):
        build(source, tmp_path, find=["found_tests::gate"], no_find=["found_tests::gate"])


def test_a_call_in_the_model_is_written_and_dims_keep_their_names(source: str, tmp_path: Path) -> None:
    @lp.layer("found_tests::scaled")
    def scaled(x: Tensor, weight: lp.Param) -> Tensor:
        if weight.shape != x.shape[-1:]:
            raise ValueError("not (C,)")
        return torch.tanh(x) * weight

    class Pack:
        @lp.hookimpl
        def layerport_layers(self) -> Any:
            return (scaled,)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(8) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return scaled(x, self.weight) + (self.weight + 1) * torch.tanh(x * 2).transpose(0, 1).transpose(0, 1)

    report = lp.build(
        (Both().eval(), (torch.randn(3, 8),), ({0: Dim("rows", min=1, max=32)},)),
        tmp_path / "out.lp",
        packs=[Pack()],
        target="portable",
    )
    assert sorted(one.via for one in report.layers) == ["found", "written"]
    (found,) = (one for one in report.layers if one.via == "found")
    assert [(one.name, one.sources) for one in found.origins] == [("weight", ("weight",))]
    with lp.load(report.path) as session:
        for rows in (1, 3, 32):
            assert session(x=torch.randn(rows, 8))["output"].shape == (rows, 8)
    assert [one["name"] for one in json.loads((report.path / MANIFEST).read_text())["dims"]] == ["rows"]


def test_explain_shows_places_and_near_misses(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(source, "a") as file:
        file.write(
            "\ndef far():\n    return torch.nn.Tanh().eval(), (torch.randn(3, 8),)\n"
            "\ndef near():\n    return torch.nn.Sequential(Near()).eval(), (torch.randn(3, 8),)\n"
            "\nclass Near(Block):\n    def forward(self, x):\n"
            "        y = torch.sigmoid(x) * x\n        return y * self.up(x) + y\n"
        )
    result = explain(f"{source}:model", packs=[source])
    assert [one.module for one in result.found] == ["0", "1"]
    assert result.unsearched["found_tests::single"].startswith("its reference is a single operator")
    print_explanation(result)
    shown = capsys.readouterr().out
    assert "formula, off by" in shown and "found_source.py" in shown
    result = explain(f"{source}:near", "found_tests::gate", packs=[source])
    assert result.found == ()
    assert any("is needed elsewhere" in one.reason for one in result.missed), result.missed
    print_explanation(result)
    assert "near found_tests::gate, 100% of it: 0 " in capsys.readouterr().out
    result = explain(f"{source}:far", "found_tests::gate", packs=[source])
    assert result.absent == {"found_tests::gate": "its reference computes exp, which the model does nowhere"}
    print_explanation(result)
    assert "not found: found_tests::gate: its reference computes exp" in " ".join(capsys.readouterr().out.split())
