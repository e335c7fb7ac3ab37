"""What a notebook shows: tables of what a build, a bundle, packs and layers hold, all of it escaped; a progress bar."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerport as lp
from layerport.building import build
from layerport.commands.checking import CheckedThing, CheckReport
from layerport.commands.explaining import explain
from layerport.commands.packs import layers_report, packs_report
from layerport.engine import shown_progress
from layerport.engine.progress import ProgressEvent
from layerport.packs.host import load
from layerport.system import html
from packs.installer import Site

EVIL = "<script>alert(1)</script>&\x1b[31m"
MODEL = """
import torch


class Twice(torch.nn.Module):
    def forward(self, x):
        return x * 2.0


def make():
    return torch.nn.Sequential(Twice(), torch.nn.Linear(4, 4)), (torch.ones(2, 4),)
"""
PACK = """
import layerport as lp
from torch import Tensor


@lp.layer("NAMESPACE::double")
def double(x: Tensor, factor: float = 2.0) -> Tensor:
    '''<b>doubled</b>'''
    return x * factor


@lp.hookimpl
def layerport_layers():
    return (double,)


@lp.hookimpl
def layerport_export_parameters(module):
    return double.bind() if type(module).__name__ == "Twice" else None
"""


class Page(HTMLParser):
    """Reads a page: its cells and lines, and whether what is opened is closed again."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.texts += [""] if tag in ("td", "th", "p") else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        assert self.open[-1] in ("td", "th", "p")
        self.texts[-1] += data


def page(thing: Any) -> list[str]:
    read = Page(thing._repr_html_())
    assert read.tags <= {"table", "thead", "tbody", "tr", "th", "td", "p"}
    return read.texts


def test_a_report_its_bundle_and_what_is_said_of_the_model(site: Site, tmp_path: Path) -> None:
    namespace = site.install(PACK)
    (tmp_path / "model.py").write_text(MODEL)
    source = f"{tmp_path}/model.py:make"
    report = build(source, tmp_path / "a.lp", target="portable")
    report.warnings.append(EVIL)
    texts = page(report)
    assert [f"{namespace}::double", "1", "fake", "function", "module"] == texts[8:13]
    assert "note: <script>alert(1)</script>&\\x1b[31m" in texts
    assert "portable model: passed; engine: none" in " ".join(texts)
    assert report.verification is not None and page(report.verification)[-1] in texts
    texts = page(lp.Bundle.open(tmp_path / "a.lp"))
    assert f"{namespace}::double" in texts and "no engine: portable" in texts
    texts = page(explain(source))
    assert ["0", "Twice", "claimed", f"{namespace}::double"] == texts[6:10]
    assert any(text.startswith("0: ") or "agrees" in text for text in texts)


def test_packs_and_layers(site: Site) -> None:
    namespace = site.install(PACK)
    site.install(f"raise RuntimeError({EVIL!r})\n", name="broken")
    packs = load(environ={})
    texts = page(packs)
    assert ["fake", "fake-layers", "1.0", "loaded", f"{namespace}::double version 1"] == texts[-5:]
    assert any("RuntimeError: <script>alert(1)</script>&\\x1b[31m" in text for text in texts)
    texts = page(packs.layers[0])
    assert texts[0].startswith(f"{namespace}::double version 1 (") and texts[1] == "<b>doubled</b>"
    assert texts[-5:-1] == ["factor", "attribute", "float", ""] and texts[-1] == "no kernel: the reference runs"
    assert "broken" in page(packs_report(environ={}))
    assert f"{namespace}::double" in page(layers_report(environ={}))


def test_a_check_is_a_page_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    checks = (CheckedThing("kernel", "a::b", "float32", "failed", EVIL, (), 0.1),)
    assert "FAILED a::b float32 kernel: <script>alert(1)</script>&\\x1b[31m" in page(
        CheckReport("a", False, False, checks)
    )
    assert capsys.readouterr().out == ""


def test_pieces_of_html() -> None:
    assert html.table(("a",), ()) == ""
    assert html.text(None) == "" and html.text("<&\x07\n'") == "&lt;&amp;\\x07\n&#x27;"


# Progress


class Widget:
    """What ipywidgets draws into."""

    def __enter__(self) -> None: ...

    def __exit__(self, *given: object) -> None: ...

    def clear_output(self, wait: bool = False) -> None: ...

    def close(self) -> None: ...


def test_progress_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    import rich.console
    import rich.jupyter

    shown: list[str] = []
    ipython, widgets = types.ModuleType("IPython.display"), types.ModuleType("ipywidgets")
    ipython.display = lambda *given, **more: None  # type: ignore[attr-defined]
    widgets.Output = Widget  # type: ignore[attr-defined]
    widgets.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    for name, module in {
        "IPython": types.ModuleType("IPython"),
        "IPython.display": ipython,
        "ipywidgets": widgets,
        "ipykernel": types.ModuleType("ipykernel"),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setattr(rich.jupyter, "display", lambda segments, text: shown.append(text))
    with shown_progress.shown() as tell:
        tell(ProgressEvent("claim", "stage"))
        tell(ProgressEvent("claim", "note", "slow"))
    assert any(shown_progress.STAGES["claim"] in text for text in shown)
    assert any("note: slow" in text for text in shown)


def test_progress_is_shown_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(4, 4).eval(), (torch.ones(2, 4),)
    build(model, tmp_path / "a.lp", target="portable", progress=True)
    said = capsys.readouterr().err
    assert all(shown_progress.STAGES[stage] in said for stage in ("load", "claim", "export", "write", "verify"))
    build(model, tmp_path / "b.lp", target="portable")
    assert capsys.readouterr().err == ""


# A layer's cell


def test_a_cell_with_a_layer_may_be_run_again_between_builds(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("import layerport as lp\nfrom torch import Tensor", names)

    def cell(factor: float) -> Any:
        text = f"@lp.layer('lp_notebook::scaled')\ndef scaled(x: Tensor) -> Tensor:\n    return x * {factor}\n"
        exec(compile(text, f"<ipython-input-{factor}>", "exec"), names)
        return names["scaled"]

    def of(layer: Callable[..., Tensor]) -> tuple[nn.Module, tuple[Tensor]]:
        class Model(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return layer(x)

        return Model().eval(), (torch.ones(2, 4),)

    for factor in (2.0, 3.0):
        layer = cell(factor)
        report = build(of(layer), tmp_path / "a.lp", target="portable", packs=[Pack(layer)], force=True)
        assert [one.layer for one in report.layers] == ["lp_notebook::scaled"]
        assert lp.load(tmp_path / "a.lp").run({"x": torch.ones(2, 4)})["output"][0, 0] == factor


class Pack:
    """A pack as a notebook makes one."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    @lp.hookimpl
    def layerport_layers(self) -> Any:
        return (self._layer,)
