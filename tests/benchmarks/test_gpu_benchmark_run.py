"""A whole run of `benchmarks/gpu` without a GPU: its own code, line by line, over stand-ins for `torch.cuda`.

"cuda" is the CPU's memory here, a graph replays the launches that it saw, kernels are run by the host harness, and
events measure nothing: so no figure means anything.  What it shows is that a first run on a GPU does not end with a
fault of the benchmark's own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.test_gpu_benchmark import FOLDER, large_case
from host_cuda import HostCuda, cuda_fixture, scaled  # noqa: F401
from host_torch_cuda import stand_in_fixture  # noqa: F401


@pytest.fixture
def layer(stand_in: HostCuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A layer whose CUDA implementation Torch calls for CPU tensors, which are "cuda" here."""
    made = scaled("whole_run")
    assert made._torch.cuda is not None
    monkeypatch.setattr(made._torch.cuda, "_environment", lambda: stand_in)
    library = torch.library.Library(made.namespace, "FRAGMENT")
    library.impl(made.short_name, made._torch.cuda, "CPU")
    yield made
    library._destroy()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import behaviour
    import checks
    import probe
    import run
    import timing

    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(timing, "WARM_MS", 1.0)
    real = timing.host_times
    monkeypatch.setattr(timing, "host_times", lambda sides: real(sides, calls=2))
    monkeypatch.setattr(behaviour, "has_compiler", lambda: False)
    monkeypatch.setattr(behaviour, "shutil", SimpleNamespace(which=lambda name: None))
    yield SimpleNamespace(behaviour=behaviour, checks=checks, probe=probe, run=run, timing=timing)
    for name in ("checks", "run", "timing", "behaviour", "probe", "plugins", "rivals"):
        sys.modules.pop(name, None)


def timing_stand_ins(stand_in: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the timing of calls asks of Torch and the driver, on the CPU."""
    impl = torch.library.Library.impl

    def on_cpu(library: Any, name: Any, call: Any, key: str = "", **more: Any) -> Any:
        return impl(library, name, call, "CPU" if key == "CUDA" else key, **more)

    monkeypatch.setattr(torch.library.Library, "impl", on_cpu)
    empty = torch.empty  # within an operator that Torch calls, the mode is off

    def empty_here(*sizes: Any, **options: Any) -> torch.Tensor:
        if type(options.get("device")) is not int:
            return empty(*sizes, **options)
        return stand_in.know(empty(*sizes, **{**options, "device": "cpu"}))

    monkeypatch.setattr(torch, "empty", empty_here)
    # The launcher of `enqueue` asks for a driver of its own.
    monkeypatch.setattr("layerport.kernels.launcher.require_driver", lambda: stand_in.driver)


def test_a_whole_run(gpu: Any, stand_in: HostCuda, layer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    case = large_case(layer)
    place = gpu.checks.Place(lambda: stand_in)
    monkeypatch.setattr(gpu.timing, "rivals_of", lambda layer: {"eager": layer.reference, "none": lambda *_: 1 / 0})
    timing_stand_ins(stand_in, monkeypatch)
    options = gpu.run._options(["--output", str(tmp_path / "out.json")])
    made: dict[str, Any] = {"machine": {}, "seed": 3, "without cases": [], "layers": {}}
    gpu.run.measure(made, {layer.name: case}, place, "sm_90", options)
    found = made["layers"][layer.name]
    assert found["errors"] == {}
    assert found["checked"] == {"count": 6, "controls": 2, "faults": []}
    faults = dict.fromkeys(("compiled", "transposed_and_compiled"), "skipped: torch.compile needs a C compiler")
    faults["wrong_device"] = "RuntimeError: tensors on two devices were taken"  # "cuda" and the CPU are one here
    assert {name: fault for name, fault in found["behaviour"].items() if fault} == faults
    assert {"graph", "stream", "threads", "gradients", "transposed", "not_seen_in_a_capture"} <= set(found["behaviour"])
    (times,) = found["times"]
    assert times["rivals"].keys() == {"eager", "none"} and times["rivals"]["none"].startswith("ZeroDivisionError")
    assert set(found["host"]["microseconds"]) >= {"our operator", "enqueue without TensorRT"}
    assert gpu.run.failed(made)
    found["behaviour"]["wrong_device"] = None
    assert not gpu.run.failed(made)


def test_a_whole_probe(gpu: Any, stand_in: HostCuda, layer: Any) -> None:
    place = gpu.checks.Place(lambda: stand_in)
    found = gpu.probe.probe({layer.name: large_case(layer)}, place, architecture="sm_90", seed=3)
    faults = {one["what"]: one["fault"] for one in found[layer.name]}
    assert faults.pop("compiled") == "not run: torch.compile needs a C compiler"
    assert len(faults) == 5 and set(faults.values()) == {None}
    assert [one["fault"][:7] for one in found["engine"]] == ["not run"]
