"""`layerport bench`: how fast a bundle runs, beside what else could run the model.

On a GPU: the engine with its plugins, the same model built without them, and Torch where a source is given, each with
its inputs and outputs in GPU memory.  Elsewhere: ONNX Runtime, whose figures say nothing about the engine.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import layerport.engine
import layerport.foreign
import layerport.front
from layerport.bundle.plugin_spec import PluginSet, to_bytes
from layerport.commands.tables import print_table, say
from layerport.engine.child import BuildProcess
from layerport.engine.gpu import Gpu
from layerport.errors import LayerportError, UsageError
from layerport.session.session import load
from layerport.system.records import Record

if TYPE_CHECKING:
    from layerport.bundle.bundle import Bundle
    from layerport.engine.engine_session import EngineRunner
    from layerport.session.session import Session

CPU_NOTE = "these are figures of ONNX Runtime on the CPU; they say nothing about the engine on a GPU"
GPU_NOTE = "inputs and outputs are in GPU memory; a call counts until its outputs are complete"
PERCENTILES = (50, 90, 99)
_WARM_UP = 10
_LEAST_CALLS = 10
_MOST_CALLS = 100_000

Call = Callable[[], Any]


@dataclass(frozen=True)
class Side(Record):
    """One row of the table: what ran, the seconds of each call, or why there are none."""

    name: str
    seconds: tuple[float, ...] = ()
    missing: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Latencies in milliseconds and calls per second, None where nothing was measured."""
        figures: dict[str, Any] = {f"p{part}_ms": None for part in PERCENTILES} | {"mean_ms": None, "calls_per_s": None}
        if self.seconds:
            ordered = sorted(self.seconds)
            figures = {f"p{part}_ms": 1e3 * percentile(ordered, part) for part in PERCENTILES}
            figures["mean_ms"] = 1e3 * sum(ordered) / len(ordered)
            figures["calls_per_s"] = len(ordered) / sum(ordered)
        return {"name": self.name, "calls": len(self.seconds), **figures, "not_measured": self.missing}


@dataclass(frozen=True)
class Bench(Record):
    """What a `bench` measured: a row for each side, where it ran and why there, and what the figures do not show.

    inputs: dtype and shape of each input, as text.
    """

    bundle: str
    device: str
    note: str
    inputs: Mapping[str, str]
    sides: tuple[Side, ...]


def percentile(ordered: Sequence[float], part: float) -> float:
    """The value below or at which `part` percent of ascending values are (nearest rank)."""
    return ordered[max(0, math.ceil(part / 100 * len(ordered)) - 1)]


def bench(
    bundle: str | Path,
    *,
    source: str | None = None,
    device: str = "auto",
    seconds: float = 3.0,
    cuda_graph: bool = False,
) -> Bench:
    """Measure a bundle on its samples; the report has a row for each side.

    source: the model it was built from, for Torch's figures.  seconds: how long each side is measured.
    Raises as `layerport.load` does, and UsageError for a bundle without samples.
    """
    if not 0 < seconds <= 3600:
        raise UsageError(f"--seconds {seconds:g} cannot be measured", "give more than 0, and at most 3600")
    with load(bundle, device=device, cuda_graph=cuda_graph, contexts=1) as session:
        if not session.bundle.manifest.get("samples"):
            raise UsageError(f"{bundle} has no samples to run", "build it again without --no-verify")
        arrays = session.bundle.samples()[0]
        on_gpu = _engine(session) is not None
        sides = list(_gpu_sides(session, arrays, source, seconds, cuda_graph)) if on_gpu else []
        if not on_gpu:
            sides = [Side("ONNX Runtime, CPU", measure(lambda: session.run(arrays), seconds))]
            sides += [Side(name, missing="no engine runs here") for name in ("plugin build", "decomposed build")]
            if source is not None:
                sides += [Side(name, missing="measured beside an engine only") for name in TORCH_SIDES]
        return Bench(
            bundle=str(bundle),
            device=session.why,
            note=GPU_NOTE if on_gpu else CPU_NOTE,
            inputs={name: f"{array.dtype.name}{list(array.shape)}" for name, array in arrays.items()},
            sides=tuple(sides),
        )


def measure(call: Call, seconds: float, clock: Callable[[], float] = time.perf_counter) -> tuple[float, ...]:
    """The time of each call, after some that warm up, for about so long and at least ten calls."""
    for _ in range(_WARM_UP):
        call()
    times: list[float] = []
    end = clock() + seconds
    while len(times) < _MOST_CALLS:
        begun = clock()
        call()
        done = clock()
        times.append(done - begun)
        if done >= end and len(times) >= _LEAST_CALLS:
            break
    return tuple(times)


def print_bench(report: Bench) -> None:
    """Print a `bench`."""
    say(f"{report.bundle} on {', '.join(f'{name} {kind}' for name, kind in report.inputs.items())}")
    say(report.device)
    print_table(
        ["", *(f"p{part} ms" for part in PERCENTILES), "calls/s", "calls"],
        [
            [
                one["name"],
                *(_figure(one[f"p{part}_ms"]) for part in PERCENTILES),
                _figure(one["calls_per_s"]),
                str(one["calls"]) if one["calls"] else f"not measured: {one['not_measured']}",
            ]
            for one in (side.to_json() for side in report.sides)
        ],
    )
    say(f"note: {report.note}")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def _engine(session: Session) -> EngineRunner | None:
    return session.runner if isinstance(session.runner, layerport.engine.engine_session.EngineRunner) else None


def _gpu_sides(
    session: Session, arrays: Mapping[str, Any], source: str | None, seconds: float, graph: bool
) -> Iterator[Side]:
    engine = _engine(session)
    assert engine is not None
    inputs = {name: engine.to_device(array) for name, array in arrays.items()}
    yield Side("plugin build", measure(lambda: session.run(inputs), seconds))
    try:
        with decomposed(session.bundle, engine, graph) as other:
            tensors = {name: other.read(name, value) for name, value in inputs.items()}
            yield Side("decomposed build", measure(lambda: other.run(tensors), seconds))
    except LayerportError as error:
        yield Side("decomposed build", missing=error.fault)
    if source is not None:
        yield from _torch_sides(source, seconds)


@contextmanager
def decomposed(bundle: Bundle, engine: EngineRunner, cuda_graph: bool) -> Iterator[EngineRunner]:
    """The bundle's model as an engine without plugins: every layer from its body.  Built now, from the bundle alone."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="layerport-bench-")))
        data = build_decomposed(bundle, engine.plan.file, folder).read_bytes()
        plan = replace(engine.plan, layers=(), classes=frozenset())
        runner = layerport.engine.engine_session.EngineRunner(
            bundle, plan, data, Gpu(engine.gpu.driver, engine.gpu.number), cuda_graph=cuda_graph, contexts=1
        )
        stack.callback(runner.close)
        yield runner


def build_decomposed(bundle: Bundle, file: str, folder: Path) -> Path:
    """Build the plan of this name once more into a folder, with no plugin.  Needs neither Torch nor a pack.

    Raises BuildError with what TensorRT said.
    """
    (entry,) = (one for one in bundle.manifest["targets"] if one["file"] == file)
    (folder / "plugins").write_bytes(to_bytes(PluginSet({}, {})))
    with BuildProcess(entry["flavour"]) as process:
        process.build(
            {
                "model": str(bundle.model()),
                "plugins": str(folder / "plugins"),
                "plan": str(folder / "plan"),
                "flavour": entry["flavour"],
                "architectures": entry["architectures"],
                "profile": entry["profile"],
                "options": entry.get("options") or {},
            },
            lambda event: None,
        )
    return folder / "plan"


TORCH_SIDES = ("Torch eager", "torch.compile")


def _torch_sides(source: str, seconds: float) -> Iterator[Side]:
    """Torch on the source's own example inputs, in inference mode, each call waited for."""
    import torch

    if not torch.cuda.is_available():
        missing = f"Torch {torch.__version__} here has no CUDA"
        yield from (Side(name, missing=missing) for name in TORCH_SIDES)
        return
    made = layerport.front.sources.open_source(source)
    if not isinstance(made.model, torch.nn.Module):
        yield from (Side(name, missing=f"source {source} is no Torch module") for name in TORCH_SIDES)
        return
    model = made.model.cuda().eval()
    tree_map = layerport.foreign.torch_private.pytree.tree_map_only
    args, kwargs = tree_map(torch.Tensor, torch.Tensor.cuda, (made.args, dict(made.kwargs)))

    def calling(function: Any) -> Call:
        def call() -> None:
            with torch.inference_mode():
                function(*args, **kwargs)
            torch.cuda.synchronize()

        return call

    for name, function in zip(TORCH_SIDES, (model, torch.compile(model)), strict=True):
        try:
            yield Side(name, measure(calling(function), seconds))
        except Exception as error:  # what a compiler cannot do is an answer here
            yield Side(name, missing=f"{type(error).__name__}: {str(error).strip().splitlines()[0]:.200}")
