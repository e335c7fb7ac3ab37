"""One model built, by hand or here, and run in ONNX Runtime alone at the example's sizes and at others."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from zoo.cases import Case, Entry

TOLERANCE = 1e-3  # of the largest value of an output, in float32


@dataclass
class Outcome:
    """What became of one model on one side.

    fault: why it does not hold, None where it does.  error: at the example, relative to the output's largest value.
    others: for each other choice of sizes what it was, with its error or fault, or that ONNX holds such a dim static.
    """

    fault: str | None = None
    error: float | None = None
    others: list[dict[str, Any]] = field(default_factory=list)
    layers: dict[str, int] = field(default_factory=dict)
    seconds: float | None = None
    plan_bytes: int | None = None

    @property
    def passed(self) -> bool:
        """Whether it built and agreed with Torch at the example."""
        return self.fault is None

    def agreed_at(self) -> set[int]:
        """The places of the other sizes at which it agreed with Torch."""
        return {place for place, one in enumerate(self.others) if one["fault"] is None and not one["static"]}


def by_hand(entry: Entry, target: str) -> Outcome:
    """The exporter as a user calls it; the target plays no part."""

    def build(case: Case, folder: Path, outcome: Outcome) -> Path:
        with torch.no_grad():
            program = torch.onnx.export(
                case.model,
                (),
                kwargs=case.feed(case.at(0)),
                dynamic_shapes=case.dynamic_shapes(),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        program.save(folder / "model.onnx")
        return folder / "model.onnx"

    return _judge(entry, build)


def with_layerport(entry: Entry, target: str) -> Outcome:
    """`layerport.build`, which also verifies at the example."""
    import layerport as lp

    def build(case: Case, folder: Path, outcome: Outcome) -> Path:
        source = (case.model, case.feed(case.at(0)), case.dynamic_shapes())
        report = lp.build(source, folder / "model.lp", target=target)
        outcome.plan_bytes = report.plan_bytes
        for name, ways in report.counts.items():
            outcome.layers[name.rpartition("::")[2]] = sum(ways.values())
        assert report.verification is not None
        if not report.verification.passed:
            missed = [
                f"{one.name} {one.fault or f'off by {one.max_abs:.2g}'}"
                for one in report.verification.outputs
                if not one.passed
            ]
            raise AssertionError(f"verify fails: {', '.join(missed)}")
        return report.path / "model.onnx"

    return _judge(entry, build)


SIDES: dict[str, Callable[[Entry, str], Outcome]] = {"by hand": by_hand, "layerport": with_layerport}


def _judge(entry: Entry, build: Callable[[Case, Path, Outcome], Path]) -> Outcome:
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        try:
            case = entry.case()
            begun = time.perf_counter()
            path = build(case, Path(folder), outcome)
            outcome.seconds = round(time.perf_counter() - begun, 2)
            _run(case, path, outcome)
        except Exception as error:
            outcome.fault = _text(error)
    return outcome


def _run(case: Case, path: Path, outcome: Outcome) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    if lost := _lost_dims(case, session):
        raise AssertionError(f"static in the ONNX file, though asked to be dynamic: {', '.join(lost)}")
    outcome.error = _error(case, session, case.at(0))
    if outcome.error > TOLERANCE:
        raise AssertionError(f"ONNX Runtime is off by {outcome.error:.2g} at the example")
    for place in range(1, case.runs):
        sizes = case.at(place)
        one: dict[str, Any] = {"sizes": sizes, "static": False, "error": None, "fault": None}
        outcome.others.append(one)
        try:
            if not _fits(session, _leaves(case.feed(sizes))):
                one["static"] = True
                continue
            one["error"] = _error(case, session, sizes)
            if one["error"] > TOLERANCE:
                one["fault"] = f"off by {one['error']:.2g}"
        except Exception as error:
            one["fault"] = _text(error)


def _leaves(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _lost_dims(case: Case, session: Any) -> list[str]:
    """The named dims that the exporter took for constants, which torch.onnx does without a word."""
    ports = {port.name: port.shape for port in session.get_inputs()}
    return sorted(
        {
            dim.__name__
            for name, axes in case.dynamic_shapes().items()
            for axis, dim in (axes or {}).items()
            if hasattr(dim, "__name__") and isinstance(ports.get(name, {axis: None})[axis], int)
        }
    )


def _fits(session: Any, given: list[torch.Tensor]) -> bool:
    return all(
        not isinstance(dim, int) or dim == size
        for port, tensor in zip(session.get_inputs(), given, strict=True)
        for dim, size in zip(port.shape, tensor.shape, strict=True)
    )


def _error(case: Case, session: Any, sizes: dict[str, int]) -> float:
    """The largest difference over all outputs, each relative to its largest value; infinite where integers differ."""
    feed = case.feed(sizes)
    with torch.no_grad():
        expected = _leaves(case.model(**feed))
    given = {port.name: leaf.numpy() for port, leaf in zip(session.get_inputs(), _leaves(feed), strict=True)}
    worst = 0.0
    for want, got in zip(expected, session.run(None, given), strict=True):
        have = torch.from_numpy(got)
        if want.shape != have.shape or want.dtype != have.dtype:
            raise AssertionError(f"{have.dtype} {list(have.shape)} where Torch gives {want.dtype} {list(want.shape)}")
        if not want.is_floating_point():
            worst = worst if torch.equal(want, have) else math.inf
            continue
        if not bool(want.isfinite().all()):
            raise AssertionError("Torch's own output is not finite, which proves nothing")
        difference = float((want - have).abs().max()) if want.numel() else 0.0
        worst = max(worst, difference / (float(want.abs().max()) or 1.0) if want.numel() else 0.0)
    return worst


def _text(error: BaseException) -> str:
    while error.__cause__ is not None and "layerport" not in type(error).__module__:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' / '.join(lines[:3])[:300]}"
