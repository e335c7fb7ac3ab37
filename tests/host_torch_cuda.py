"""Stand-ins for `torch.cuda`: "cuda" is the CPU's memory, a graph replays the launches that it saw, events count.

Kernels are run by the host harness (`host_driver`), so numbers mean something and times do not.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from host_cuda import HostCuda
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

        sizes = self.learnt(kernel)[3].parameter_sizes
        places = (ctypes.c_void_p * len(sizes)).from_address(table)
        slots = [ctypes.create_string_buffer(ctypes.string_at(place, 8), 8) for place in places]
        copy = (ctypes.c_void_p * len(sizes))(*(ctypes.addressof(slot) for slot in slots))
        self.kept = [*getattr(self, "kept", []), (slots, copy)]
        return ctypes.addressof(copy)


@pytest.fixture(name="stand_in")
def stand_in_fixture(monkeypatch: pytest.MonkeyPatch, cuda: HostCuda) -> Iterator[HostCuda]:
    """`torch.cuda` and the rest of a CUDA build, as far as checks on a GPU use them."""
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
