"""The logic of `benchmarks/gpu`, without a GPU: what it gathers, what it catches, what it prints.

The kernels run on the CPU behind the stand-ins of `host_cuda`, whose launches compute (by the host harness) or do
nothing; `Nothing` stands in for a whole GPU that computes nothing.  No figure of a GPU comes out of this.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import layerport as lp
from gpu_doubles import FakeEngine, HostDriver, tensorrt_double
from host_cuda import HostCuda, cuda_fixture, scaled  # noqa: F401
from launch_doubles import SilentDriver
from layerport.bundle.bundle import Bundle
from layerport.engine import flavours
from layerport.packs import host as packs
from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.rms_norm.case import CASE as RMS_NORM
from layerport_builtin_layers.silu_mul.case import CASE as SILU_MUL

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the benchmark."""
    from types import SimpleNamespace

    monkeypatch.syspath_prepend(str(FOLDER))
    import behaviour
    import checks
    import probe
    import run
    import timing

    yield SimpleNamespace(checks=checks, run=run, timing=timing, behaviour=behaviour, probe=probe)
    for name in ("checks", "run", "timing", "behaviour", "probe", "plugins", "rivals"):
        sys.modules.pop(name, None)


def case_of(layer: lp.Layer) -> LayerCase:
    return LayerCase(
        layer=layer,
        shapes=(
            CaseShape("a tail", {"x": (7, 41), "weight": (41,)}),
            CaseShape("too narrow", {"x": (4, 2), "weight": (2,)}),
        ),
        dtypes=("float32", "float16"),
        tolerances={"float32": Tolerance(1e-6, 1e-6)},
    )


def computing(gpu: Any, environment: HostCuda, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A place whose launches compute."""
    known = {
        name: lambda tensor, change=change: environment.know(change(tensor))
        for name, change in gpu.checks.VARIANTS.items()
    }
    monkeypatch.setattr(gpu.checks, "VARIANTS", known)
    return gpu.checks.Place(lambda: environment, "cpu", environment.know, lambda tensor: tensor)


class Nothing(torch.Tensor):
    """A tensor on a GPU that computes nothing: whatever is to be written is zero."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_function__(function, types, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            for one in made if isinstance(made, (tuple, list)) else (made,):
                if isinstance(one, Nothing):
                    with contextlib.suppress(RuntimeError):  # one that is expanded is zero already
                        one.zero_()
        return made


class NothingCuda(HostCuda):
    """A stand-in for `Cuda` whose driver launches nothing, in memory that nothing is written to."""

    def __init__(self) -> None:
        super().__init__(SilentDriver("sm_90"))

    def empty(self, shape: Any, strides: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty_strided(shape, strides, dtype=dtype).zero_().as_subclass(Nothing)


def computes_nothing(gpu: Any) -> Any:
    environment = NothingCuda()
    return gpu.checks.Place(
        lambda: environment,
        "cpu",
        lambda tensor: torch.zeros_like(tensor).as_subclass(Nothing),
        lambda tensor: tensor.as_subclass(torch.Tensor).clone(),
    )


def records(gpu: Any, environment: HostCuda, layer: lp.Layer, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    place = computing(gpu, environment, monkeypatch)
    return list(gpu.checks.check_layer(case_of(layer), place, seed=5, large=False))


def test_all_built_in_layers_are_found(gpu: Any, site: Any) -> None:
    from layerport_builtin_layers import plugin

    found, without = gpu.checks.layer_cases(packs.load(plugin))
    assert list(found) == sorted(layer.name for layer in plugin.layerport_layers())
    assert without == []


def test_a_layer_without_a_case_is_named(gpu: Any) -> None:
    from types import SimpleNamespace

    assert gpu.checks.layer_cases(SimpleNamespace(layers=(scaled("no_case"),))) == ({}, ["lp_cuda::no_case"])


def test_a_right_kernel_is_right_in_each_variant(
    gpu: Any,
    cuda: HostCuda,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = records(gpu, cuda, scaled("right"), monkeypatch)
    assert [one["fault"] for one in found] == [None] * 4
    assert {one["variant"] for one in found} == {"contiguous", "misaligned", "strided", gpu.checks.CONTROL}
    assert {one["case"] for one in found} == {"right-a_tail-float32"}  # no kernel takes the others


def test_a_wrong_kernel_is_caught(gpu: Any, cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = scaled("wrong")

    @layer.kernel(
        lp.cuda(
            """
template <typename T> __global__ void short_by_one(const T* x, const T* w, T* y, long long n, long long c, float f) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < n - 1) y[i] = x[i] * w[i % c] * f;
}
""",
            "short_by_one<{x}>",
        ),
        dtypes=("float32",),
        name="short",
    )
    def launch(x: Any, weight: Any, y: Any, factor: float) -> lp.Launch:
        n = x.numel()
        return lp.Launch(grid=lp.cdiv(n, 256), block=256, args=(x, weight, y, n, x.shape[-1], factor))

    found = records(gpu, cuda, layer, monkeypatch)
    faults = {(one["kernel"], one["case"]): one["fault"] for one in found}
    assert faults["wrong_0", "wrong-a_tail-float32"] is None
    assert "1 of 287 elements are wrong; the worst is [6, 40]" in faults["short", "wrong-a_tail-float32"]
    assert "1 of 8 elements are wrong" in faults["short", "wrong-too_narrow-float32"]


def large_case(layer: lp.Layer) -> LayerCase:
    """One for any machine, and one that is compared on the GPU."""
    return LayerCase(
        layer=layer,
        shapes=(
            CaseShape("small", {"x": (7, 41), "weight": (41,)}),
            CaseShape("large", {"x": (10, 41), "weight": (41,)}, gpu_only=True),
        ),
        dtypes=("float32",),
        tolerances={"float32": Tolerance(1e-6, 1e-6)},
    )


def test_the_control_passes_where_something_computes(
    gpu: Any,
    cuda: HostCuda,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = computing(gpu, cuda, monkeypatch)
    for seed in range(5):  # another element each time
        found = list(gpu.checks.check_layer(large_case(scaled("large")), place, seed=seed))
        assert [one["fault"] for one in found] == [None] * 6
        assert [one["case"] for one in found if one["variant"] == gpu.checks.CONTROL] == [
            "large-small-float32",
            "large-large-float32",
        ]


def test_the_control_fails_where_nothing_computes(gpu: Any) -> None:
    """On such a GPU the comparison itself computes nothing too, and calls everything right."""
    case, place = large_case(scaled("idle")), computes_nothing(gpu)
    (one,) = case.cases(gpu_only=True)
    tensors = {name: place.there(tensor) for name, tensor in one.tensors().items()}
    gpu.checks.compare(one, place.environment().empty((10, 41), (41, 1), torch.float32), tensors)
    found = {(each["case"], each["variant"]): each["fault"] for each in gpu.checks.check_layer(case, place, seed=3)}
    small, large = "idle-small-float32", "idle-large-float32"
    for variant in gpu.checks.VARIANTS:
        assert "287 elements are wrong" in found[small, variant]  # compared on the CPU
    assert found[large, "contiguous"] is None
    assert found[large, gpu.checks.CONTROL].startswith("NOT SEEN: element 3 was 0.0, was changed and called right")
    assert len(found) == 5


def test_no_case_of_the_built_in_layers_is_right_where_nothing_computes(gpu: Any) -> None:
    for case in (RMS_NORM, SILU_MUL):
        found = list(gpu.checks.check_layer(case, computes_nothing(gpu), seed=3, large=False))
        # Nothing, and a gate so large that the result vanishes: there zeros are right.
        zeros = {one.id for one in case.cases() if float(one.expected(one.tensors(seed=3))[0].abs().sum()) < 1e-6}
        assert len(found) > 50 and {one["case"] for one in found if one["fault"] is None} == zeros
        assert len(zeros) < len(case.cases()) / 2


def test_a_kernel_that_is_not_launched_is_wrong(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = HostCuda(SilentDriver("sm_90"))
    found = records(gpu, environment, scaled("silent"), monkeypatch)
    assert len(found) == 3 and all("elements are wrong" in one["fault"] for one in found)


def test_values_that_a_control_changes(gpu: Any) -> None:
    case = LayerCase(
        layer=scaled("control"),
        shapes=(CaseShape("x", {"x": (2, 3), "weight": (3,)}),),
        dtypes=("float32",),
        tolerances={"float32": Tolerance(1e-2, 1e-2)},
    )
    (one,) = case.cases()
    for value in (0.0, -3.5, 6e4, float("inf"), float("nan")):
        for dtype in (torch.float32, torch.float16, torch.float64):
            got = torch.full((2, 3), value, dtype=dtype)
            assert gpu.checks.control(one, (got,), {}, (got.double().clone(),), 4) is None, (value, dtype)
    for got in (torch.ones(3, dtype=torch.int64), torch.tensor([True, False])):
        assert gpu.checks.control(one, (got,), {}, (got.clone(),), 1) is None


def test_without_a_gpu_it_says_so(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.run.main([]) == 2
    assert "no GPU run: torch" in capsys.readouterr().out


def test_a_cache_is_prepared_without_a_gpu(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", "")
    arguments = ["--prepare", str(tmp_path), "--arch", "sm_90", "--only", "layerport_builtin::silu_mul"]
    assert gpu.run.main(arguments) == 0
    files = [path for path in (tmp_path / "kernels").rglob("*") if path.is_file()]
    entries = {path: path.stat().st_mtime_ns for path in files if path.stat().st_size > 1000}
    assert len(entries) >= 3
    assert gpu.run.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in entries} == entries  # nothing was compiled again
    assert "kernels for sm_90" in capsys.readouterr().out


def test_a_prepared_cache_frees_the_other_machine_of_compilers(
    gpu: Any,
    cuda: HostCuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that a run compiles, here without NVRTC, Triton and any process: the kernels, and those of a plugin."""
    from layerport.kernels.toolchains import nvrtc
    from layerport.targets import Target
    from layerport.testing.specs import plugin_spec

    monkeypatch.setenv("LAYERPORT_CACHE_DIR", str(tmp_path))
    only = ["--only", SILU_MUL.layer.name]
    assert gpu.run.main([*("--prepare", str(tmp_path), "--arch", "sm_90"), *only]) == 0

    def missing() -> Any:
        raise lp.BuildError("there is no NVRTC", "none")

    monkeypatch.setattr(nvrtc, "toolchain", missing)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.setitem(sys.modules, "triton", None)
    for case in (SILU_MUL,):
        for kernel in case.layer.kernels:
            run = gpu.checks.single(case.layer, kernel.name, lambda: cuda)
            for one in (*case.cases(), *case.cases(gpu_only=True)):
                run.compile("sm_90", *one.arguments(gpu.checks.shapes_of(one)))
        one = gpu.checks.smallest(case)
        assert plugin_spec(case.layer, Target("tensorrt", ("sm_90",)), *one.arguments(one.tensors())) is not None
    with pytest.raises(lp.BuildError, match="there is no NVRTC; and the kernel cache"):
        run.compile("sm_89", *one.arguments(gpu.checks.shapes_of(one)))


def result(gpu: Any, fault: str | None, **changes: Any) -> dict[str, Any]:
    slow = {"case": "slow", "bytes": 1 << 30, "ours": 100.0, "copy": 70.0, "rivals": {"eager": 90.0, "liger": "absent"}}
    costs = {"Library.impl around it": 5.0, "our operator": 6.5, "enqueue without TensorRT": 11.0}
    faults = [{"kernel": "k", "case": "c", "variant": "v", "fault": fault}] if fault else []
    layer = {
        "errors": {},
        "checked": {"count": 3, "controls": 1, "faults": faults},
        "behaviour": {"graph": None, "compiled": "skipped: torch.compile needs a C compiler"},
        "times": [gpu.timing.judged(slow), {"case": "huge", "skipped": "not enough memory", "misses": []}],
        "host": {"microseconds": costs, "misses": gpu.timing.cost_misses(costs)},
        "compute-sanitizer": "not run: there is no compute-sanitizer on PATH",
    }
    return {
        "machine": {"gpu": "a GPU", "architecture": "sm_90", "driver": "1", "cuda": "13"},
        "without cases": ["p::other"],
        "layers": {"p::one": {**layer, **changes}},
    }


def test_the_table_says_what_was_missed(gpu: Any, tmp_path: Path) -> None:
    made = result(gpu, "wrong numbers")
    text = gpu.run.table(made)
    assert "2 right, 1 wrong, 0 skipped; 1 changed elements" in text
    assert "WRONG k c v: wrong numbers" in text
    assert "MISSED: 0.70 of the copy, wanted 0.80; 0.90x the best rival, wanted 0.95" in text
    assert "MISSED our operator: 1.50 us over" in text
    assert "MISSED enqueue: 11.00 us, wanted 10" in text
    assert "skipped: not enough memory" in text
    assert "not checked, no case: p::other" in text
    gpu.run.write(made, str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text()) == made


@pytest.mark.parametrize(("fault", "wrong"), [(None, False), ("skipped: not enough memory", False), ("nan", True)])
def test_only_what_is_wrong_fails(gpu: Any, fault: str | None, wrong: bool) -> None:
    assert gpu.run.failed(result(gpu, fault)) is wrong


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"errors": {"times": "RuntimeError: no"}}, True),
        ({"checked": {"count": 3, "controls": 0, "faults": []}}, True),  # nothing shows that a fault would be seen
        ({"behaviour": {"graph": "AssertionError: no"}}, True),
        ({"compute-sanitizer": "exit code 9: ERROR SUMMARY: 2 errors"}, True),
        ({"compute-sanitizer": "exit code 1: Traceback"}, True),
        ({"compute-sanitizer": "fine: ERROR SUMMARY: 0 errors"}, False),
        ({"compute-sanitizer": "not finished within 240 s"}, False),
    ],
)
def test_what_fails_a_run(gpu: Any, changes: dict[str, Any], wrong: bool) -> None:
    made = result(gpu, None, **changes)
    assert gpu.run.failed(made) is wrong
    gpu.run.table(made)


def test_a_machine_without_nvidia_smi(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    found = gpu.run.machine("sm_90")
    assert (found["gpu"], found["driver"], found["architecture"]) == ("a GPU", "unknown", "sm_90")
    assert found["versions"]["torch"] == torch.__version__


def test_a_step_that_raises_ends_nothing_else(
    gpu: Any,
    cuda: HostCuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here every step that needs a real GPU raises, and the first layer's kernel does not even compile."""
    broken = scaled("broken")

    @broken.kernel(lp.cuda("__global__ void k() { no; }\n", "k"), dtypes=("float32",), name="bad")
    def launch(x: Any, weight: Any, y: Any, factor: float) -> lp.Launch:
        raise RuntimeError("a rule of a pack")

    place = computing(gpu, cuda, monkeypatch)
    cases = {one.name: case_of(one) for one in (broken, scaled("whole"))}
    output = tmp_path / "out.json"
    made: dict[str, Any] = {**result(gpu, None), "seed": 3, "layers": {}}
    options = gpu.run._options(["--output", str(output)])
    seen: list[str] = []
    monkeypatch.setattr(
        gpu.behaviour, "sanitize", lambda script, name: seen.append(name) or (_ for _ in ()).throw(OSError("no fork"))
    )
    gpu.run.measure(made, cases, place, "sm_90", options)
    whole, bad = made["layers"]["lp_cuda::whole"], made["layers"]["lp_cuda::broken"]
    assert whole["checked"] == {"count": 4, "controls": 1, "faults": []}
    assert any("a rule of a pack" in one["fault"] for one in bad["checked"]["faults"])
    for layer in (whole, bad):
        assert layer["errors"]["compute-sanitizer"] == "OSError: no fork"
        assert "host" in layer["errors"]  # Torch has no CUDA here
    assert seen == list(cases)
    assert gpu.run.failed(made)
    assert json.loads(output.read_text())["layers"]["lp_cuda::whole"] == whole
    assert "FAILED compute-sanitizer: OSError: no fork" in gpu.run.table(made)


def tool(folder: Path, text: str) -> str:
    path = folder / "compute-sanitizer"
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_sanitizer_is_told_what_it_needs(gpu: Any, tmp_path: Path) -> None:
    said = tmp_path / "said.json"
    path = tool(
        tmp_path,
        "import json, os, sys\n"
        f"json.dump([sys.argv[1:], os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING']], open({str(said)!r}, 'w'))\n"
        "print('========= ERROR SUMMARY: 0 errors')\n",
    )
    assert gpu.behaviour.sanitize(Path("run.py"), "p::one", tool=path) == "fine: ERROR SUMMARY: 0 errors"
    arguments, caching = json.loads(said.read_text())
    assert caching == "1"
    assert "--report-api-errors no" in " ".join(arguments)
    assert arguments[-3:] == ["run.py", "--smallest", "p::one"]
    path = tool(tmp_path, "import sys\nprint('= ERROR SUMMARY: 2 errors')\nsys.exit(9)\n")
    assert gpu.behaviour.sanitize(Path("run.py"), "p::one", tool=path) == "exit code 9: ERROR SUMMARY: 2 errors"


def test_a_sanitizer_that_hangs_is_ended_with_what_it_started(gpu: Any, tmp_path: Path) -> None:
    path = tool(
        tmp_path,
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n",
    )
    begun = time.monotonic()
    assert gpu.behaviour.sanitize(Path("run.py"), "p::one", 3.0, path) == "not finished within 3 s"
    assert time.monotonic() - begun < 30
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("what the tool started runs on")


class SlowStart:
    """A GPU whose clock is a quarter of its own until it has worked for 80 ms, and that is disturbed now and then."""

    def __init__(self) -> None:
        self.worked = 0.0
        self.order: list[str] = []

    def side(self, name: str, milliseconds: float) -> Any:
        def run() -> float:
            self.order.append(name)
            took = milliseconds * (4 if self.worked < 80 else 1) * (10 if len(self.order) % 7 == 0 else 1)
            self.worked += took
            return took

        return run


def test_figures_are_taken_warm_in_turns_and_medians(gpu: Any) -> None:
    device = SlowStart()
    found = gpu.timing.interleaved({name: device.side(name, time) for name, time in (("a", 0.5), ("b", 1.0))})
    assert found == {"a": 0.5, "b": 1.0}
    assert gpu.timing.WARM_MS >= 100 and gpu.timing.LEAST_CALLS >= 8
    measured = device.order[-2 * gpu.timing.ROUNDS :]
    assert measured[:6] == ["a", "b", "b", "a", "a", "b"]
    idle = gpu.timing.interleaved({"a": lambda: 0.0})  # a GPU that computes nothing ends too
    assert idle == {"a": 0.0}


def test_host_times_are_interleaved(gpu: Any) -> None:
    calls: list[str] = []
    sides = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    found = gpu.timing.host_times(sides, calls=3, wait=lambda: None)
    assert set(found) == {"a", "b"} and all(0 < time < 1000 for time in found.values())
    assert calls[:9] == ["a"] * 3 + ["b"] * 3 + ["a"] * 3


def probed(gpu: Any, place: Any, *layers: lp.Layer, **options: Any) -> dict[str, list[dict[str, Any]]]:
    cases = {layer.name: case_of(layer) for layer in layers}
    found: dict[str, list[dict[str, Any]]] = gpu.probe.probe(cases, place, architecture="sm_90", seed=3, **options)
    return found


def test_a_probe_shows_each_layer_once_and_its_control(
    gpu: Any,
    cuda: HostCuda,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = scaled("probed")
    found = probed(gpu, computing(gpu, cuda, monkeypatch), layer)
    whats = {one["what"]: one["fault"] for one in found[layer.name]}
    assert whats["probed_0 probed-a_tail-float32 contiguous"] is None
    assert whats[f"probed_0 probed-a_tail-float32 {gpu.checks.CONTROL}"] is None
    assert whats["transposed"] is None
    assert "transposed and compiled" in whats or "compiled" in whats
    assert found["engine"] == [{"what": "a session", "fault": "not run: TensorRT for RTX does not build for sm_90"}]
    made = {**result(gpu, None), "layers": {}, "probe": found}
    assert "transposed: right" in gpu.run.table(made)
    assert not gpu.run.failed({**made, "probe": {layer.name: found[layer.name][:4], "engine": found["engine"]}})


def test_a_probe_fails_where_nothing_computes(gpu: Any) -> None:
    layer = scaled("unprobed")
    found = probed(gpu, computes_nothing(gpu), layer)
    assert all("elements are wrong" in one["fault"] for one in found[layer.name] if "contiguous" in one["what"])
    assert gpu.run.failed({**result(gpu, None), "layers": {}, "probe": found})


def test_a_probe_ends_in_time(gpu: Any, cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 100_000, 50))
    place = computing(gpu, cuda, monkeypatch)
    found = probed(gpu, place, scaled("first"), scaled("second"), clock=lambda: float(next(ticks)))
    assert found["lp_cuda::first"][0]["fault"] is None
    assert found["lp_cuda::second"] == [{"what": "its case", "fault": "not run: the time is up"}]
    assert gpu.run.failed({**result(gpu, None), "layers": {}, "probe": found})  # its control was not shown


def test_a_layer_that_raises_does_not_end_a_probe(
    gpu: Any,
    cuda: HostCuda,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken, whole = case_of(scaled("cannot")), case_of(scaled("can"))

    def draw(*_: Any) -> Any:
        raise RuntimeError("a draw of a pack")

    broken = dataclasses.replace(broken, draw=draw)
    cases = {"broken": broken, "whole": whole}
    found = gpu.probe.probe(cases, computing(gpu, cuda, monkeypatch), architecture="sm_90", seed=3)
    assert found["broken"] == [{"what": "its case", "fault": "RuntimeError: a draw of a pack"}]
    assert found["whole"][0]["fault"] is None
    assert gpu.run.failed({**result(gpu, None), "layers": {}, "probe": found})


def test_a_run_that_checks_nothing_fails(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.run.failed({**result(gpu, None), "layers": {}})
    engine = {"engine": [{"what": "a session", "fault": "not run: none"}]}
    assert gpu.run.failed({**result(gpu, None), "layers": {}, "probe": engine})
    assert gpu.run.main(["--only", "p::nothing"]) == 1
    assert "no case of p::nothing; to repair: use one of layerport_builtin::add_layer_norm" in capsys.readouterr().out


def test_a_transposed_input_with_wrong_strides_is_seen(gpu: Any) -> None:
    (one,) = [one for one in case_of(scaled("strides")).cases() if one.id == "strides-a_tail-float32"]
    gpu.behaviour.check_transposed(one, one.layer, "cpu")
    with pytest.raises(RuntimeError, match=r"the strides of the outputs are \[\(1, 7\)\], Torch was told"):
        gpu.behaviour.check_transposed(one, lambda x, w, f: (x * w * f).t().contiguous().t(), "cpu")
    with pytest.raises(AssertionError, match="elements are wrong"):
        gpu.behaviour.check_transposed(one, lambda x, w, f: x * w, "cpu")


@pytest.mark.parametrize("own_graphs", [True, False])
@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_the_engine_of_a_probe(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_graphs: bool, factor: float
) -> None:
    """A real build; its session runs a double of the engine, which computes by the reference, or wrongly."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", str(tmp_path))
    driver = HostDriver()
    sessions: list[Any] = []

    def open_session(path: Path, **options: Any) -> Any:
        bundle = Bundle.open(path)
        shapes = {port.name: port.resolve({}) for port in bundle.inputs}
        kinds = [{port.name: np.dtype(port.dtype) for port in ports} for ports in (bundle.inputs, bundle.outputs)]
        (output,) = bundle.outputs

        def compute(arrays: Any) -> Any:
            values = [torch.from_numpy(arrays[port.name]) for port in bundle.inputs]
            return {output.name: (SILU_MUL.layer.reference(*values) * factor).numpy()}

        trt = tensorrt_double(
            lambda module: FakeEngine(
                driver,
                module,
                inputs=kinds[0],
                outputs=kinds[1],
                profiles=[{name: [shape] * 3 for name, shape in shapes.items()}],
                compute=compute,
                shapes=lambda _: {output.name: output.resolve({})},
            ),
            own_graphs=own_graphs,
        )
        monkeypatch.setattr(flavours, "load", lambda name: trt)
        monkeypatch.setattr("layerport.engine.gpu.require_driver", lambda: driver)
        sessions.append((options["cuda_graph"], options["contexts"]))
        return lp.load(path, **options)

    if factor == 1.0:
        gpu.probe.check_engine(SILU_MUL, "rtx:sm_89", open_session)
        assert sessions == [(False, 2), (True, 2)]
        assert ("graph" in driver.calls) is not own_graphs
    else:
        with pytest.raises(AssertionError, match="elements are wrong"):
            gpu.probe.check_engine(SILU_MUL, "rtx:sm_89", open_session)


def test_a_large_case_is_compared_in_parts(gpu: Any) -> None:
    case = LayerCase(
        layer=scaled("parts"),
        shapes=(CaseShape("large", {"x": (10, 4), "weight": (4,)}, gpu_only=True),),
        dtypes=("float32",),
        tolerances={"float32": Tolerance(1e-6, 1e-6)},
    )
    (one,) = case.cases(gpu_only=True)
    tensors = one.tensors()
    got = case.layer.reference(*one.arguments(tensors))
    gpu.checks.compare(one, got, tensors, most=12)
    got[9, 3] += 1
    with pytest.raises(AssertionError, match=r"1 of 4 elements are wrong; the worst is \[0, 3\]"):
        gpu.checks.compare(one, got, tensors, most=12)
