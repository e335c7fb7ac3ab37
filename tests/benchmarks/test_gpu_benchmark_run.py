"""A whole run of `benchmarks/gpu` without a GPU: its own code, line by line, over stand-ins for `torch.cuda`.

"cuda" is the CPU's memory here, a graph replays the launches that it saw, kernels are run by the host harness, and
events measure nothing: so no figure means anything.  What it shows is that a first run on a GPU does not end with a
fault of the benchmark's own.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from benchmarks.test_gpu_benchmark import FOLDER, large_case
from host_cuda import HostCuda, cuda_fixture, scaled  # noqa: F401
from host_driver import HostLaunchDriver


class OnCpu(TorchFunctionMode):
    """Tensors that are asked for on "cuda" come on the CPU, in memory that the driver knows."""

    def __init__(self, environment: HostCuda) -> None:
        super().__init__()
        self.environment = environment

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def here(value: Any) -> Any:
            return "cpu" if isinstance(value, str) and value == "cuda" else value

        known = {name: here(value) for name, value in (kwargs or {}).items()}
        made = function(*map(here, args), **known)
        if type(made) in (torch.Tensor, torch.nn.Parameter) and made.device.type == "cpu":
            self.environment.know(made)
        return made


class Graph:
    """A graph of the launches that were made while it was captured."""

    capturing: Graph | None = None

    def __init__(self) -> None:
        self.launches: list[Any] = []
        self.memory: list[torch.Tensor] = []  # of its own, as a real one has

    def replay(self) -> None:
        for launch in self.launches:
            launch()


class Driver(HostLaunchDriver):
    def cuLaunchKernel(self, *arguments: Any) -> Any:
        if Graph.capturing is not None:
            *front, table, extra = arguments
            kept = self.copy_of(front[0], table)
            Graph.capturing.launches.append(lambda: HostLaunchDriver.cuLaunchKernel(self, *front, kept, extra))
        return super().cuLaunchKernel(*arguments)

    def copy_of(self, kernel: int, table: int) -> int:
        """The argument table of a launch, which the launcher changes for the next one."""
        import ctypes
        import hashlib

        sizes = self.known[hashlib.sha256(self.libraries[kernel]).hexdigest()][3].parameter_sizes
        places = (ctypes.c_void_p * len(sizes)).from_address(table)
        slots = [ctypes.create_string_buffer(ctypes.string_at(place, 8), 8) for place in places]
        copy = (ctypes.c_void_p * len(sizes))(*(ctypes.addressof(slot) for slot in slots))
        self.kept = [*getattr(self, "kept", []), (slots, copy)]
        return ctypes.addressof(copy)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, cuda: HostCuda) -> Iterator[HostCuda]:
    """`torch.cuda` and the rest of a CUDA build, as far as the benchmark uses them."""
    import torch._dynamo  # what it takes from torch.cuda must be the real thing

    driver = Driver()
    driver.known = cuda.driver.known
    learnt = cuda.driver
    monkeypatch.setattr(learnt, "learn", driver.learn)
    cuda.driver = driver

    know = cuda.know

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if Graph.capturing is not None:
            Graph.capturing.memory.append(tensor)
        return know(tensor)

    monkeypatch.setattr(cuda, "know", keep)

    @contextmanager
    def capture(graph: Graph, pool: Any = None) -> Iterator[None]:
        Graph.capturing, cuda.captures = graph, True
        try:
            yield
        finally:
            Graph.capturing, cuda.captures = None, False

    stream = SimpleNamespace(cuda_stream=7, wait_stream=lambda other: None, synchronize=lambda: None)
    clock = itertools.count(1)
    event = SimpleNamespace(
        record=lambda: None, synchronize=lambda: None, elapsed_time=lambda other: next(clock) % 3 + 1.0
    )

    @contextmanager
    def nothing(*_: Any) -> Iterator[None]:
        yield

    fakes = {
        "Stream": lambda: stream,
        "current_stream": lambda *_: stream,
        "stream": nothing,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "CUDAGraph": Graph,
        "graph": capture,
        "graph_pool_handle": lambda: (0, 1),
        "Event": lambda **_: event,
        "current_device": lambda: 0,
        "get_device_name": lambda: "a stand-in",
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    real = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": real("cpu"))

    class Thread(threading.Thread):
        """A mode is in force in one thread."""

        def run(self) -> None:
            with OnCpu(cuda):
                super().run()

    monkeypatch.setattr(threading, "Thread", Thread)
    with OnCpu(cuda):
        yield cuda


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
    for name in ("checks", "run", "timing", "behaviour", "probe"):
        sys.modules.pop(name, None)


def test_a_whole_run(gpu: Any, stand_in: HostCuda, layer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    case = large_case(layer)
    place = gpu.checks.Place(lambda: stand_in)
    monkeypatch.setattr(gpu.timing, "rivals_of", lambda layer: {"eager": layer.reference, "none": lambda *_: 1 / 0})
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
