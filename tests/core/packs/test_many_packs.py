"""Twenty packs in one environment: a build imports each once, and asks only those that can answer."""

from __future__ import annotations

import sys
import types
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from layerport.building import build
from packs.installer import Site

PACK = """
import layerport as lp
import seen_of_packs as seen
from torch import Tensor

seen.calls["import", "NAMESPACE"] += 1


@lp.layer("NAMESPACE::triple")
def triple(x: Tensor) -> Tensor:
    return x * 3.0


SOURCE = '''
extern "C" __global__ void k(const float* x, float* y, long long n) {
    const long long i = blockIdx.x * 64ll + threadIdx.x;
    if (i < n) y[i] = x[i] * 3.0f;
}
'''


@triple.kernel(lp.cuda(SOURCE, "k"), dtypes=("float32",))
def launch(x, y):
    return lp.Launch(grid=lp.cdiv(x.numel(), 64), block=64, args=(x, y, x.numel()))


@lp.hookimpl
def layerport_layers():
    seen.calls["layers", "NAMESPACE"] += 1
    return (triple,)


@lp.hookimpl
def layerport_convert_parameters(layer, parameters):
    seen.calls["convert", "NAMESPACE"] += 1


@lp.hookimpl
def layerport_create_plugin(layer, bound):
    seen.calls["create", "NAMESPACE"] += 1
"""
CLAIM = """

@lp.hookimpl
def layerport_export_parameters(module):
    seen.calls["export", "NAMESPACE"] += 1
    return triple.bind() if type(module).__name__ == "NAMESPACE" else None
"""


def test_each_is_imported_once_and_asked_where_it_can_answer(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[tuple[str, str]] = Counter()
    seen = types.ModuleType("seen_of_packs")
    seen.calls = calls  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "seen_of_packs", seen)
    claiming = {"lp_many_3", "lp_many_17"}
    names = [f"lp_many_{number}" for number in range(20)]
    for name in names:
        site.install(PACK + (CLAIM if name in claiming else ""), name=name, namespace=name)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return x * 3.0

    own = type("lp_many_17", (nn.Module,), {"forward": forward})
    model = nn.Sequential(own(), nn.Linear(4, 4), own()).eval()
    report = build((model, (torch.ones(2, 4),)), tmp_path / "a.lp", target="rtx:sm_89")
    assert [one.layer for one in report.layers] == 2 * ["lp_many_17::triple"]
    assert report.verification is not None and report.verification.passed
    assert {name: calls["import", name] for name in names} == dict.fromkeys(names, 1)
    assert {name: calls["layers", name] for name in names} == dict.fromkeys(names, 1)
    modules = len(list(model.modules()))
    assert {key: number for key, number in calls.items() if key[0] not in ("import", "layers")} == {
        **{("export", name): modules for name in claiming},
        ("convert", "lp_many_17"): 2,
        ("create", "lp_many_17"): 2,
    }
