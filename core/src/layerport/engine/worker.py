"""The build process: portable model + plugin specs + target -> plan.  Run as `python -m layerport.engine.worker`.

It reads one JSON request per line on standard input and writes JSON events on its original standard output; everything
that native libraries print goes to standard error.  `build_plan` is the same as a function of files, for any executor.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import layerport.engine
from layerport.engine.progress import ProgressEvent, Tell
from layerport.errors import BuildError

if TYPE_CHECKING:
    from layerport.bundle.plugin_spec import PluginSet
    from layerport.engine.options import EngineOptions
    from layerport.engine.plan_fields import PlanFields
    from layerport.engine.plan_files import WrittenPlan

_PROGRESS_SECONDS = 0.05
# A stream comes in pieces of 64 MiB, each of which is there twice: for a small plan that is more than the plan itself.
_STREAMED_BYTES = 128 << 20


def build_plan(request: Mapping[str, Any], emit: Tell = lambda event: None) -> dict[str, Any]:
    """Build one plan from files and write it.

    request: model, plugins, plan (paths), flavour, architectures, profile (input -> min, opt, max shapes), options
    (as of `EngineOptions.to_json`).
    Returns the size and digest of the plan, TensorRT's warnings and the modules that were loaded.
    Raises BuildError with what TensorRT said.
    """
    from layerport.bundle.plugin_spec import from_bytes
    from layerport.engine import configuring, flavours, native, plugin
    from layerport.engine.options import EngineOptions

    options = EngineOptions(**request.get("options") or {})
    trt = flavours.load(request["flavour"])
    logger = _logger(trt, emit)
    builder = configuring.make_builder(trt, logger)
    plugins = from_bytes(Path(request["plugins"]).read_bytes())
    used = [plugins.specs[key] for key in plugins.nodes.values()]
    names = {one.layer for one in used if one.plugin_class is not None}
    if any(one.plugin_class is None for one in used) and not native.load(trt):
        names.add(plugin.KERNEL_LAYER)
    creators = plugin.register_creators(trt, names, plugins.specs, allow_classes=bool(request.get("allow_classes")))
    job = _Job(trt, builder, logger, creators, request, plugins, options, emit)
    # A plan is checked when it is there: TensorRT may have left the very node away that keeps an image for others.
    written = job.build(all_keep=False) or job.build(all_keep=True)
    if written is None:
        raise BuildError(
            "the plan lacks kernel images that its plugins need",
            "report this, with the model if you can",
            faults=job.faults,
        )
    return {
        "bytes": written.size,
        "sha256": written.sha256,
        "plugins": len(plugins.nodes),
        "warnings": logger.warnings[:20],
        "modules": sorted({name.partition(".")[0] for name in sys.modules}),
        "version": str(trt.__version__),
    }


@dataclass
class _Job:
    """What the ways to build one plan have in common."""

    trt: Any
    builder: Any
    logger: Any
    creators: list[Any]
    request: Mapping[str, Any]
    plugins: PluginSet
    options: EngineOptions
    emit: Tell
    faults: list[str] = field(default_factory=list)

    def build(self, *, all_keep: bool) -> WrittenPlan | None:
        """Write the plan; None where it lacks images.  all_keep: whether each plugin keeps its own, or they share."""
        import onnx

        from layerport.engine import configuring, flavours
        from layerport.engine.bound_model import bind_model
        from layerport.engine.plan_files import write_plan

        trt, builder, logger = self.trt, self.builder, self.logger
        request, creators = self.request, self.creators
        model = bind_model(onnx.load(request["model"], load_external_data=False), self.plugins, all_keep=all_keep)
        # Every flavour and version that is supported makes strongly typed networks without being asked.
        network = builder.create_network()
        parser = trt.OnnxParser(network, logger)
        # The weights are files that this project wrote and checked, beside the model.
        if not parser.parse(model.SerializeToString(), request["model"]):
            reasons = [_parser_error(parser.get_error(place)) for place in range(parser.num_errors)]
            raise _failure("TensorRT cannot read the model", reasons, creators, logger)
        del model
        config = builder.create_builder_config()
        if not flavours.FLAVOURS[request["flavour"]].needs_gpu:
            configuring.set_architectures(trt, config, request["architectures"], logger)
        timing_cache = configuring.configure(trt, config, self.options, logger)
        config.progress_monitor = _monitor(trt, self.emit)
        if config.add_optimization_profile(_profile(builder, network, request["profile"])) < 0:
            raise _failure("TensorRT does not take the ranges of the inputs", logger.errors[-5:], creators, logger)

        model_file = Path(request["model"])
        weights = sum(one.stat().st_size for one in model_file.parent.glob(f"{model_file.name}*"))

        def make(writer: Any) -> bool:
            if weights > _STREAMED_BYTES:
                done = bool(builder.build_serialized_network_to_stream(network, config, writer))
            else:
                plan = builder.build_serialized_network(network, config)
                done = plan is not None and writer.write(memoryview(plan)) > 0
            if not done and writer.failure is None:
                raise _failure("TensorRT cannot build the engine", logger.errors[-5:], creators, logger)
            return done

        written = write_plan(trt, Path(request["plan"]), make, lambda fields: self._is_whole(fields, all_keep))
        if timing_cache is not None:
            timing_cache.save()
        return written

    def _is_whole(self, fields: PlanFields, all_keep: bool) -> bool:
        if not any(one.kernels for one in self.plugins.specs.values()):
            return True
        self.faults = [f"layer {layer}: image {digest[:12]}" for digest, layer in fields.missing.items()]
        # Where a TensorRT does not store fields as they are, each plugin keeps its own images, which needs no proof.
        return not fields.missing and (fields.count > 0 or all_keep)


def _profile(builder: Any, network: Any, shapes: Mapping[str, Any]) -> Any:
    profile = builder.create_optimization_profile()
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
        least, usual, greatest = shapes[tensor.name]
        if any(size < 0 for size in tensor.shape):
            profile.set_shape(tensor.name, least, usual, greatest)
    return profile


def _parser_error(error: Any) -> str:
    return f"node {error.node_name() or '?'} ({error.node_operator() or '?'}): {error.desc()}"


def _failure(what: str, reasons: list[str], creators: list[Any], logger: Any) -> BuildError:
    failures = [one.failure for one in creators if one.failure is not None]
    error = BuildError(
        what,
        "decompose the layer it names (--decompose LAYER), or look at the lines above",
        faults=list(
            dict.fromkeys([*(f"{type(one).__name__}: {one}" for one in failures), *reasons, *logger.errors[-3:]])
        )[:10],
    )
    if failures:
        error.__cause__ = failures[0]
    return error


def _logger(trt: Any, emit: Tell) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
                emit(ProgressEvent("engine", "log", message))
            elif severity == trt.ILogger.WARNING and not message.endswith("has Int64 binding."):
                self.warnings.append(message)

    return Logger()


def _monitor(trt: Any, emit: Tell) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._last = 0.0
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            emit(ProgressEvent("engine", "phase", phase=phase, parent=parent, steps=steps))

        def phase_finish(self, phase: str) -> None:
            emit(ProgressEvent("engine", "finish", phase=phase))

        def step_complete(self, phase: str, step: int) -> bool:
            now = time.monotonic()
            if now - self._last >= _PROGRESS_SECONDS:
                self._last = now
                emit(ProgressEvent("engine", "step", phase=phase, step=step, steps=self._steps.get(phase)))
            return True

    return Monitor()


def main() -> int:
    """Serve requests until standard input ends."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**line: Any) -> None:
        channel.write(json.dumps(line) + "\n")

    def emit(event: ProgressEvent) -> None:
        answer(event="progress", **event.to_json())

    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["command"] == "warm":
                import onnx  # noqa: F401

                from layerport.engine import flavours, plugin  # noqa: F401

                flavours.load(request["flavour"])
                answer(event="ready")
            elif request["command"] == "alone":
                answer(
                    event="result", alone=[one.to_json() for one in layerport.engine.alone_build.build_alone(request)]
                )
            else:
                answer(event="result", **build_plan(request, emit))
        except BaseException as error:  # reported to the parent, which raises it there
            fault = getattr(error, "fault", f"{type(error).__name__}: {error}")
            answer(
                event="failure",
                fault=fault,
                repair=getattr(error, "repair", None),
                faults=list(getattr(error, "faults", ())),
            )
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
