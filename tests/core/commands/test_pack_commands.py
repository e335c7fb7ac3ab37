"""`layerport packs` and `layerport layers`: what they list, and what they do not import for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from layerport.commands.packs import layers_report, packs_report, render_layers, render_packs
from packs.installer import Site

# The commands


def test_the_listing_from_metadata(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.install("raise SystemExit\n", name="b", version="2.0")
    site.install("good", name="a")
    report = packs_report(environ={"LAYERPORT_DISABLE_PACKS": "a,c"})
    json.dumps(report.to_json())
    render_packs(report)
    lines = capsys.readouterr().out.splitlines()
    b, a = site.modules
    assert [line.split() for line in lines[:3]] == [
        ["name", "distribution", "version", "entry", "point", "status"],
        ["a", "a-layers", "1.0", a, "disabled"],
        ["b", "b-layers", "2.0", b, "installed"],
    ]
    assert lines[3].startswith("warning: LAYERPORT_DISABLE_PACKS names 'c'")


def test_the_listing_after_loading(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.install("import not_there_at_all\n", name="broken")
    namespace = site.install("prints", name="loud")
    report = packs_report(load=True, environ={})
    json.dumps(report.to_json())
    assert [(pack.name, pack.status) for pack in report.packs] == [
        ("broken", "failed"),
        ("loud", "loaded"),
    ]
    capsys.readouterr()
    render_packs(report)
    out = capsys.readouterr().out
    assert f"loaded  {namespace}::same\n" in out
    assert "broken (broken-layers) failed: importing broken_pack" in out
    assert "loud (loud-layers) warning: printed to stderr at import: a complaint" in out


def test_the_listing_of_nothing_says_what_to_install(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    render_packs(packs_report(environ={}))
    assert "pip install layerport-builtin-layers" in capsys.readouterr().out


def test_the_layers_of_every_pack(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    namespace = site.install("good")
    site.install("good", name="a", namespace="conflict_listed")
    site.install("good", name="b", namespace="conflict_listed")
    report = layers_report(environ={})
    swish = report.to_json()["layers"][1]
    assert swish == {
        "name": f"{namespace}::swish",
        "version": 3,
        "signature": "swish(Tensor x, Tensor scale, float beta=1.0) -> Tensor",
        "inputs": ["x"],
        "parameters": ["scale"],
        "attributes": ["beta"],
        "rules": {},
        "dtypes": ["float32", "scale:float32 *:float16"],
        "toolchains": ["cuda"],
        "purpose": None,
        "pack": {"name": "fake", "distribution": "fake-layers", "version": "1.0"},
    }
    json.dumps(report.to_json())
    render_layers(report)
    out = capsys.readouterr().out
    assert "reference only" in out
    assert (
        "conflict: layer conflict_listed::swish is provided by a (a-layers 1.0) and b (b-layers 1.0); "
        "choose with --prefer name or LAYERPORT_DISABLE_PACKS=name" in out
    )


def test_the_listing_imports_no_framework_and_no_pack(site: Site) -> None:
    site.install("good")
    code = (
        "import sys\nfrom layerport.commands.packs import packs_report, render_packs\n"
        "render_packs(packs_report())\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'numpy', 'tensorrt_rtx', 'pluggy', 'rich', 'ml_dtypes'}\n"
        f"print(sorted((heavy | {{{site.modules[0]!r}}}) & set(sys.modules)))\n"
    )
    path = os.pathsep.join([str(site.folder), *sys.path])
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert site.modules[0] in child.stdout
    assert child.stdout.splitlines()[-1] == "[]"
