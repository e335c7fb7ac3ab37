"""Packs that a process uses in every later build, without naming them each time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import layerport as lp
from layerport.commands.explaining import explain
from layerport.packs import conversions, host, named
from small_setup import python

PACK = """
import torch
import layerport as lp

@lp.layer("process_packs_{name}::gate")
def gate(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) * torch.sigmoid(x)

@lp.hookimpl
def layerport_layers():
    return (gate,)
"""


class Gated(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x) * torch.tanh(x)


@pytest.fixture(autouse=True)
def _nothing_used(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(named, "_used", [])
    yield
    conversions.installed_packs.cache_clear()


def pack_file(folder: Path, name: str) -> Path:
    file = folder / f"{name}.py"
    file.write_text(PACK.replace("{name}", name))
    return file


def found() -> list[str]:
    return [one.layer for one in explain((Gated().eval(), (torch.randn(2, 3),))).found]


def test_every_later_build_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = pack_file(tmp_path, "later")
    assert found() == []
    monkeypatch.chdir(tmp_path)
    lp.use_pack("later.py")
    monkeypatch.chdir("/")
    assert found() == ["process_packs_later::gate"]
    report = lp.build((Gated().eval(), (torch.randn(2, 3),)), tmp_path / "a.lp", target="portable")
    assert list(report.counts) == ["process_packs_later::gate"]
    lp.use_pack(file, str(file))
    assert named.used() == (str(file),)
    lp.use_pack("builtin_layers", "layerport-builtin-layers")
    assert named.used() == (str(file), "builtin_layers")
    # named once more, it is one pack
    assert [one.info.name for one in host.load(str(file))].count("later") == 1
    assert "process_packs_later::gate" in [
        layer.name for pack in conversions.installed_packs() for layer in pack.layers
    ]


def test_a_module_and_what_is_wrong(tmp_path: Path) -> None:
    module = ModuleType("made_here")
    exec(PACK.replace("{name}", "made"), vars(module))
    with pytest.raises(lp.UsageError, match="there is no pack file"):
        lp.use_pack(module, tmp_path / "absent.py")
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(lp.PackError, match="ZeroDivisionError"):
        lp.use_pack(module, tmp_path / "broken.py")
    assert named.used() == ()
    lp.use_pack(module)
    assert found() == ["process_packs_made::gate"]


def test_a_program_that_is_a_pack_itself() -> None:
    code = PACK.replace("{name}", "main") + (
        "import sys\nfrom layerport.packs import host\nlp.use_pack()\n"
        "print([layer.name for pack in host.load() for layer in pack.layers if 'main' in layer.name])\n"
    )
    done = python(code)
    assert done.stdout == "['process_packs_main::gate']\n", done.stderr
