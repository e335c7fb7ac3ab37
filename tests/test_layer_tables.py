"""The tables of the built-in layers: each is there, made from the code, with what was measured of this version."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

import layerport as lp
from layerport_builtin_layers import plugin

ROOT = Path(__file__).parents[1]
# Written since a GPU ran the others.
NOT_RUN = ("grid_sample", "causal_conv1d", "ssd_scan", "index_add")


def dtypes_of(layer: lp.Layer) -> set[str]:
    choices = [one for kernel in layer.kernels for one in kernel.dtypes]
    return {dtype for one in choices for dtype in ([one] if isinstance(one, str) else one.values())}


def test_every_layer_has_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page = runpy.run_path(str(ROOT / "docs" / "list_layers.py"))["page"]()
    for layer in plugin.layerport_layers():
        table = page.partition(f"\n## {layer.short_name}\n")[2].partition("\n## ")[0]
        rows = dict(line.strip("| ").split(" | ", 1) for line in table.splitlines() if line.startswith("| "))
        assert rows[f"`{layer.name}`"] == f"version {layer.version}"
        assert rows["signature"] == f"`{layer.signature.schema(layer.short_name)}`".replace("|", "\\|")
        assert all(f"`{one.name}`" in rows["attributes"] for one in layer.signature.attributes)
        assert {dtype for dtype in dtypes_of(layer) if dtype not in rows["dtypes"]} <= {"int64", "int32"}, layer.name
        assert rows["a plugin for"].startswith(layer.purpose or "not stated")
        on_gpu, time_there = rows["on NVIDIA H100 80GB HBM3"], rows["time there"]
        if layer.short_name in NOT_RUN:
            assert on_gpu == time_there == "not measured on a GPU yet"
            continue
        assert "0 wrong" not in on_gpu and "float64 right" in on_gpu
        assert "µs (copy" in time_there or layer.short_name == "selective_scan"


def test_what_was_measured_is_of_layers_that_there_are() -> None:
    figures = json.loads((ROOT / "benchmarks" / "results" / "layer_figures.json").read_text())
    versions = {layer.name: layer.version for layer in plugin.layerport_layers()}
    assert len(figures) >= 6
    for name, one in figures.items():
        assert one["version"] == versions[name], "run python benchmarks/layer_figures.py"
        assert one["errors"] and max(error for by in one["errors"].values() for error in by.values()) < 2e-2
        assert all(spilled == 0 for by in one["resources"].values() for _, _, spilled in by.values())
