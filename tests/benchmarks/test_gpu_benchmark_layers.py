"""The checks of `benchmarks/gpu` on every built-in layer, over the stand-ins of `test_gpu_benchmark_run`."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import layerport_builtin_layers
from benchmarks.test_gpu_benchmark_run import gpu, timing_stand_ins  # noqa: F401
from host_cuda import HostCuda, cuda_fixture  # noqa: F401
from host_torch_cuda import stand_in_fixture  # noqa: F401
from layerport.layers.cuda_operator import CudaOperator
from layerport.packs import conversions
from layerport.packs.conversions import installed_packs

LAYERS = sorted(file.parent.name for file in Path(layerport_builtin_layers.__file__).parent.glob("*/case.py"))
# What the stand-in lacks: a second device, a C compiler.
ALLOWED = ("RuntimeError: tensors on two devices were taken", "skipped: ")


@pytest.fixture
def case(request: pytest.FixtureRequest, stand_in: HostCuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A layer's case, whose CUDA implementation Torch calls for CPU tensors, which are "cuda" here."""
    found = importlib.import_module(f"layerport_builtin_layers.{request.param}.case").CASE
    layer = found.layer
    monkeypatch.setattr(layer._torch.cuda, "_environment", lambda: stand_in)
    monkeypatch.setattr(conversions, "installed_packs", installed_packs)  # the stand-in has none
    monkeypatch.setattr("layerport.kernels.launcher.require_driver", lambda: stand_in.driver)
    ask = CudaOperator._ask_pack
    answer = lambda *args: {place: stand_in.know(tensor) for place, tensor in ask(*args).items()}  # noqa: E731
    monkeypatch.setattr(CudaOperator, "_ask_pack", answer)
    layer._torch.cuda._plans.clear()
    library = torch.library.Library(layer.namespace, "FRAGMENT")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it overrides is the layer's own
        library.impl(layer.short_name, layer._torch.cuda, "CPU", allow_override=True)
    yield found
    library._destroy()
    layer._torch.cuda._plans.clear()
    layer._torch.cuda._steps.clear()


EVERY = bool(os.environ.get("LAYERPORT_TEST_FAMILIES"))
# Parameters, two outputs, several launches, a size that depends on data, converted weights, a state.
KINDS = ["rms_norm", "add_rms_norm", "group_norm_silu", "nms", "weight_only_linear", "ssd_scan"]


@pytest.mark.parametrize("case", LAYERS, indirect=True)
def test_every_layer_behaves(gpu: Any, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(gpu.behaviour, "TURNS", 2)
    found = gpu.behaviour.torch_checks(case)
    assert {name: fault for name, fault in found.items() if fault and not fault.startswith(ALLOWED)} == {}


@pytest.mark.parametrize("case", LAYERS, indirect=True)
def test_the_plugin_of_every_layer(gpu: Any, case: Any, stand_in: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    import plugins

    monkeypatch.setattr(plugins, "chosen", lambda case, chosen=plugins.chosen: chosen(case)[:1])
    stand_in.driver.learn_all(monkeypatch)
    found = list(plugins.check_plugins(case, "sm_90", seed=3))
    assert found and [one for one in found if one["fault"]] == []
    assert any(one["variant"] == gpu.checks.CONTROL for one in found)


@pytest.mark.parametrize("case", LAYERS if EVERY else KINDS, indirect=True)
def test_every_layer_is_timed(gpu: Any, case: Any, stand_in: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    timing_stand_ins(stand_in, monkeypatch)
    stand_in.driver.learn_all(monkeypatch)
    monkeypatch.setattr("layerport.layers.cuda_operator.cuda", lambda: stand_in)
    # No reference: its views of an input would be taken for the input's memory.
    monkeypatch.setattr(gpu.timing, "rivals_of", lambda layer: {"a sum": lambda x, *_: x + x, "none": lambda *_: 1 / 0})
    monkeypatch.setattr(gpu.timing, "_MOST_COPIES", 2)
    monkeypatch.setattr(gpu.timing, "LEAST_CALLS", 2)
    one = gpu.checks.smallest(case, "float16", 100)
    found = gpu.timing._timed(case, one)
    assert found["ours"] > 0 and {name: type(time) for name, time in found["rivals"].items()} == {
        "a sum": float,
        "none": str,
    }
    assert gpu.timing.call_costs(case, "sm_90")["enqueue without TensorRT"] > 0


@pytest.mark.parametrize("name", LAYERS)
def test_rivals_compute_the_same(gpu: Any, name: str) -> None:  # noqa: F811
    """Those that Torch has; weights that are not packed are other numbers."""
    import rivals

    case = importlib.import_module(f"layerport_builtin_layers.{name}.case").CASE
    one = gpu.checks.smallest(case, "float32", 100)
    arguments = one.arguments(one.tensors(seed=3))
    for what, rival in rivals._TORCH.get(name, {}).items():
        outputs = rival(*arguments)
        if name == "weight_only_linear":
            assert outputs.shape == one.expected(one.tensors(seed=3))[0].shape
            continue
        expected = one.expected(one.tensors(seed=3))
        got = outputs if isinstance(outputs, tuple) else (outputs,)
        assert [each.shape for each in got] == [each.shape for each in expected], what
