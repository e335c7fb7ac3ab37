"""Two minutes on a new machine: does each part work at all, and would these checks notice where it does not?

Each layer once against float64 with a changed element that must be called wrong, a transposed input eager and compiled,
and an engine session over a plugin where TensorRT is there.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import behaviour
import torch
from checks import Place, check_case, operators_of, smallest
from timing import is_capturable

from layerport.engine.flavours import FLAVOURS, version_of
from layerport.targets import RTX_ARCHITECTURES
from layerport.testing import Case, LayerCase

SECONDS = 120.0


def probe(
    cases: Mapping[str, LayerCase],
    place: Place,
    *,
    architecture: str,
    seed: int,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, list[dict[str, Any]]]:
    """Records with `what` and `fault` (None, text, or "not run: reason") of each layer, and of "engine"."""
    end = clock() + seconds
    found: dict[str, list[dict[str, Any]]] = {}

    def step(name: str, what: str, check: Callable[[], None]) -> None:
        fault = "not run: the time is up" if clock() > end else behaviour.fault_of(check)
        found.setdefault(name, []).append({"what": what, "fault": fault})

    for name, case in cases.items():
        if clock() > end:
            found[name] = [{"what": "its case", "fault": "not run: the time is up"}]
            continue
        try:
            one = smallest(case, "float32", 100)
            found[name] = [
                _line(record) for record in check_case(one, operators_of(case, place.environment), place, seed)
            ] or [{"what": one.id, "fault": "no kernel takes it"}]
        except Exception as error:  # whatever it is, the next layer is to be tried too
            found[name] = [{"what": "its case", "fault": f"{type(error).__name__}: {error}"}]
            continue
        if not is_capturable(case, one.arguments(one.tensors())):  # nor is it told without data
            continue
        step(name, "transposed", lambda one=one: behaviour.check_transposed(one, one.layer, place.device))
        if behaviour.has_compiler():
            step(name, "transposed and compiled", lambda one=one: _compiled(one, place.device))
        else:
            found[name].append({"what": "compiled", "fault": "not run: torch.compile needs a C compiler"})
    flavour = flavour_for(architecture)
    if isinstance(flavour, str) and flavour.startswith("not run"):
        found["engine"] = [{"what": "a session", "fault": flavour}]
    else:
        for name, case in cases.items():
            step("engine", f"a session over {name}", lambda case=case: check_engine(case, f"{flavour}:{architecture}"))
    return found


def _line(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"what": f"{record['kernel']} {record['case']} {record['variant']}", "fault": record["fault"]}


def _compiled(one: Case, device: str) -> None:
    torch.compiler.reset()
    behaviour.check_transposed(one, torch.compile(lambda *args: one.layer(*args)), device)


def flavour_for(architecture: str) -> str:
    """The flavour of TensorRT that builds for this GPU here, or "not run: ..." with the reason."""
    if version_of("tensorrt") is not None:
        return "tensorrt"
    if version_of("rtx") is None:
        return "not run: neither " + " nor ".join(one.distribution for one in FLAVOURS.values()) + " is installed"
    if architecture not in RTX_ARCHITECTURES:
        return f"not run: TensorRT for RTX does not build for {architecture}"
    return "rtx"


class OneLayer(torch.nn.Module):
    """A layer alone, its parameters as parameters, so that it becomes a plugin."""

    def __init__(self, one: Case, tensors: Mapping[str, torch.Tensor | None]) -> None:
        super().__init__()
        self._one = one
        inputs = {argument.name for argument in one.layer.signature.inputs}
        self.inputs = [name for name, tensor in tensors.items() if name in inputs and tensor is not None]
        self._absent = [name for name, tensor in tensors.items() if tensor is None]
        for name, tensor in tensors.items():
            if tensor is not None and name not in inputs:
                self.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))

    def forward(self, *values: torch.Tensor) -> Any:
        given: dict[str, Any] = dict(self.named_parameters()) | dict.fromkeys(self._absent)
        return self._one.layer(*self._one.arguments(given | dict(zip(self.inputs, values, strict=True))))


def check_engine(case: LayerCase, target: str, open_session: Callable[..., Any] | None = None) -> None:
    """A session of the layer as a plugin: one call, threads on two lanes, CUDA graphs, and GPU memory in and out.

    open_session: as `layerport.load`, which it is where None.  Raises AssertionError or whatever is wrong.
    """
    import layerport as lp

    one = smallest(case, "float32", 100)
    tensors = one.tensors(seed=9)
    module = OneLayer(one, tensors).eval()
    inputs = [tensor for name, tensor in tensors.items() if name in module.inputs and tensor is not None]
    with tempfile.TemporaryDirectory(prefix="layerport-probe-") as folder:
        path = Path(folder, "one.lp")
        report = lp.build((module, tuple(inputs)), path, target=target, verify=False)
        if report.counts.get(case.layer.name, {}).get("plugin") != 1:
            raise RuntimeError(f"the layer became no plugin: {report.counts}")
        expected = one.expected(tensors)
        for graph in (False, True):
            with (open_session or lp.load)(path, device="cuda", cuda_graph=graph, contexts=2) as session:
                given = dict(zip((port.name for port in session.bundle.inputs), inputs, strict=True))
                for _ in range(3):
                    one.check(tuple(session.run(given).values()), expected)
                _on_threads(session, given, lambda got: one.check(tuple(got.values()), expected))
                there = {name: session.runner.to_device(value.numpy()) for name, value in given.items()}
                one.check(tuple(value.numpy() for value in session.run(there).values()), expected)


def _on_threads(session: Any, given: Mapping[str, Any], check: Callable[[Any], None]) -> None:
    faults: list[str | None] = []

    def work() -> None:
        for _ in range(20):
            faults.append(behaviour.fault_of(lambda: check(session.run(given))))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wrong = [fault for fault in faults if fault]
    if len(faults) != 80 or wrong:
        raise RuntimeError(f"of 80 runs on 4 threads {len(faults)} ended, {len(wrong)} wrong: {wrong[:1]}")
