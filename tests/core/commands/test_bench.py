"""`layerport bench`: on this machine ONNX Runtime; the engine's side against doubles (see `gpu_doubles`).

Real there is the build without plugins, by TensorRT in its child process; the times are those of the doubles.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gpu_doubles import FakeEngine, HostDriver, tensorrt_double
from layerport.bundle.bundle import Bundle
from layerport.cli import main
from layerport.commands import benching
from layerport.engine import flavours
from layerport.errors import UsageError
from layerport.session.portable_runner import PortableRunner
from small_setup import MODELS, Built


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["bench", *arguments])


def test_on_the_cpu_it_says_what_its_figures_are_not(engine_bundle: Built) -> None:
    shown = run(str(engine_bundle.path), "--seconds", "0.05")
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert lines[0] == f"{engine_bundle.path} on x float32[3, 16]"
    assert lines[1].startswith("ONNX Runtime on the CPU runs the portable model: ")
    assert lines[2].split() == ["p50", "ms", "p90", "ms", "p99", "ms", "calls/s", "calls"]
    assert lines[3].startswith("ONNX Runtime, CPU  ") and len(lines[3].split()) == 8
    rows = [" ".join(line.split()) for line in lines[4:6]]
    assert rows == [f"{name} build not measured: no engine runs here" for name in ("plugin", "decomposed")]
    assert lines[6] == f"note: {benching.CPU_NOTE}" and len(lines) == 7


def test_json_and_the_torch_sides_without_a_gpu(engine_bundle: Built) -> None:
    shown = run(str(engine_bundle.path), "--seconds", "0.05", "--json", "--source", f"{MODELS}:net")
    assert shown.exit_code == 0, shown.output
    report = json.loads(shown.stdout)
    assert report["note"] == benching.CPU_NOTE and report["inputs"] == {"x": "float32[3, 16]"}
    first, *others = report["sides"]
    assert first["calls"] >= 10 and 0 < first["p50_ms"] <= first["p90_ms"] <= first["p99_ms"]
    assert first["calls_per_s"] == pytest.approx(1e3 / first["mean_ms"])
    assert [(one["name"], one["not_measured"], one["p50_ms"], one["calls"]) for one in others] == [
        ("plugin build", "no engine runs here", None, 0),
        ("decomposed build", "no engine runs here", None, 0),
        ("Torch eager", "measured beside an engine only", None, 0),
        ("torch.compile", "measured beside an engine only", None, 0),
    ]


def test_all_sides_on_a_gpu(engine_bundle: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = HostDriver()
    monkeypatch.setattr("layerport.engine.gpu.require_driver", lambda: driver)
    portable = PortableRunner(Bundle.open(engine_bundle.path), "as a reference")
    single = np.dtype(np.float32)
    opened: list[bytes] = []

    def make(module: Any) -> FakeEngine:
        return FakeEngine(
            driver,
            module,
            inputs={"x": single},
            outputs={"output": single},
            profiles=[{"x": [[1, 16], [3, 16], [64, 16]]}],
            compute=portable.run,
            shapes=lambda shapes: {"output": shapes["x"]},
        )

    trt = tensorrt_double(make)
    deserialize = trt.Runtime.deserialize_cuda_engine
    monkeypatch.setattr(
        trt.Runtime, "deserialize_cuda_engine", lambda self, data: opened.append(data) or deserialize(self, data)
    )
    monkeypatch.setattr(flavours, "load", lambda name: trt)
    report = benching.bench(engine_bundle.path, source=f"{MODELS}:net", device="cuda", seconds=0.05).to_json()
    assert report["note"] == benching.GPU_NOTE and "Double GPU" in report["device"]
    plugins, decomposed, eager, compiled = report["sides"]
    assert (plugins["name"], decomposed["name"]) == ("plugin build", "decomposed build")
    assert plugins["calls"] >= 10 and decomposed["calls"] >= 10
    assert plugins["not_measured"] is None and decomposed["not_measured"] is None
    for one in (eager, compiled):
        assert one["not_measured"].startswith("Torch 2.") and one["not_measured"].endswith(" here has no CUDA")
    # Both plans are TensorRT's own: one with plugins in it, one without.
    assert [b"layerport_spec" in data for data in opened] == [True, False]
    assert driver.live() == {"memory": 0, "streams": 0, "events": 0, "graphs": 0, "contexts": 0, "pushed": 0}
    assert "in" in driver.calls and "out" not in driver.calls  # inputs go in once, nothing comes back
    portable.close()


def test_a_decomposed_build_that_fails_is_an_answer(engine_bundle: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    from layerport.errors import BuildError

    def refuse(*_: Any) -> Path:
        raise BuildError("TensorRT cannot build the engine")

    monkeypatch.setattr(benching, "build_decomposed", refuse)

    class Engine:
        plan = type("Plan", (), {"file": "rtx-sm_89.plan"})
        to_device = staticmethod(lambda array: array)

    class Session:
        bundle = None
        run = staticmethod(lambda inputs: inputs)

    monkeypatch.setattr(benching, "_engine", lambda session: Engine)
    sides = list(benching._gpu_sides(Session, {}, None, 0.01, False))  # type: ignore[arg-type]
    assert [(side.name, side.missing) for side in sides] == [
        ("plugin build", None),
        ("decomposed build", "TensorRT cannot build the engine"),
    ]


def test_it_measures_for_about_so_long() -> None:
    now = iter(range(10_000))
    times = benching.measure(lambda: None, 40, lambda: float(next(now)))
    assert times == (1.0,) * 20  # each call asks the clock twice
    assert len(benching.measure(lambda: None, 1e-9)) == 10


@pytest.mark.parametrize(("part", "value"), [(50, 5), (90, 9), (99, 10), (1, 1), (100, 10)])
def test_percentiles_are_of_the_values_themselves(part: float, value: int) -> None:
    assert benching.percentile(list(range(1, 11)), part) == value
    assert benching.percentile([7.0], part) == 7.0


@pytest.mark.parametrize("seconds", ["0", "-1", "3601", "nan"])
def test_how_long_is_checked(engine_bundle: Built, seconds: str) -> None:
    shown = run(str(engine_bundle.path), "--seconds", seconds)
    assert shown.exit_code == 2
    assert shown.stderr.startswith(f"error: --seconds {seconds} cannot be measured\n")


def test_a_bundle_without_samples(engine_bundle: Built, tmp_path: Path) -> None:
    path = engine_bundle.copy(tmp_path / "b.lp")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["samples"] = None
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError) as caught:
        benching.bench(path)
    assert caught.value.fault == f"{path} has no samples to run"


def test_it_refuses_to_measure_something_else_than_asked(engine_bundle: Built) -> None:
    shown = run(str(engine_bundle.path), "--device", "cuda")
    assert shown.exit_code == 4
    assert shown.stderr.startswith(f"error: no engine of {engine_bundle.path} runs here: ")
