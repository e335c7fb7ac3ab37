"""The whole pipeline: a Torch model in, a bundle out.  Behind `layerport.build` and `layerport build`."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerport import bundle as bundles
from layerport.dims import DimRange, apply_ranges, parse_ranges, require_limits
from layerport.engine import flavours
from layerport.engine.child import BuildProcess
from layerport.errors import BuildError
from layerport.targets import Target

if TYPE_CHECKING:
    from layerport.front.export import ExportedModel
    from layerport.front.realise import Realisation
    from layerport.front.sources import Source
    from layerport.packs import Packs
    from layerport.plugin_spec import PluginSet
    from layerport.verification import Verification

Progress = Callable[[str, dict[str, Any] | None], None]


@dataclass
class BuildReport:
    """What a build did: the bundle's path, its target and why that one, what became of each layer, claims, times.

    seconds: wall-clock time by stage; never part of the bundle.
    """

    path: Path
    target: Target
    target_reason: str
    layers: list[dict[str, Any]] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    plan_bytes: int | None = None
    verification: Verification | None = None
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    build_modules: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Per layer, how many nodes were realised in which way."""
        counts: dict[str, dict[str, int]] = {}
        for one in self.layers:
            per_layer = counts.setdefault(one["layer"], {})
            per_layer[one["realised"]] = per_layer.get(one["realised"], 0) + 1
        return counts

    def to_json(self) -> dict[str, Any]:
        """The report as a program reads it."""
        return {
            "bundle": str(self.path),
            "target": str(self.target),
            "target_reason": self.target_reason,
            "counts": self.counts,
            "layers": self.layers,
            "claims": self.claims,
            "plan_bytes": self.plan_bytes,
            "verification": self.verification.to_json() if self.verification else None,
            "warnings": self.warnings,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


def build(
    source: Any,
    out: str | Path,
    *,
    args: Any = None,
    dynamic_shapes: Any = None,
    target: str | Target | None = None,
    ranges: Collection[str] = (),
    inputs: Collection[str] = (),
    claim: Collection[str] = (),
    no_claim: Collection[str] = (),
    decompose: Collection[str] = (),
    packs: Iterable[object] = (),
    strict: bool = False,
    force: bool = False,
    verify: bool = True,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Build a bundle from a Torch model: claim, export, compile, build the engine, verify.

    source: an nn.Module (with `args`, and `dynamic_shapes` in torch.export's form), a tuple of these, an ExportedProgram,
    or a text `module:callable` / `file.py:callable`.
    target: such as "rtx:sm_89,sm_120" or "portable"; None takes what is installed, and the report says why.
    ranges: "NAME=MIN..USUAL..MAX" for dynamic dims.  inputs: "NAME=DTYPE:DIMS" example inputs, for a source text that
    gives a bare module.  claim, no_claim, decompose: layer names.
    packs: packs to use besides the installed ones (module, object or file path).
    options: `workspace` (bytes), `optimization_level` for TensorRT.
    progress: called with the stage's name, and TensorRT's progress events meanwhile.

    Nothing is left at `out` when it raises: UsageError, PackError or BuildError.
    """
    tell = progress or (lambda stage, event: None)
    chosen, reason = _target(target)
    out = Path(out)
    bundles.check_output(out, force=force)
    flavours.require(chosen)
    wanted_ranges = parse_ranges(ranges)
    report = BuildReport(out, chosen, reason)
    engine = chosen.flavour != "portable"
    # Started now, TensorRT loads while Torch exports.
    with BuildProcess(chosen.flavour) if engine else nullcontext() as process:
        clock = _Clock(report.seconds, tell)
        clock.start("load")
        from layerport import packs as pack_host
        from layerport.front import sources

        loaded = pack_host.load(*packs)
        report.warnings += [f"pack {one.info.label} failed to load: {one.failure}" for one in loaded.failed]
        report.warnings += loaded.warnings
        if isinstance(source, (str, Path)):
            made = sources.open_source(
                str(source), inputs=inputs, ranges=ranges, args=args, dynamic_shapes=dynamic_shapes
            )
        else:
            made = sources.as_source(source, args=args, dynamic_shapes=dynamic_shapes)
        with bundles.writing(out, force=force) as folder:
            dims, manifest, profile = _front(
                made, loaded, folder, chosen, wanted_ranges, claim, no_claim, decompose, strict, report, clock
            )
            del made
            gc.collect()
            if engine:
                assert process is not None
                clock.start("engine")
                entry = _engine(process, folder, chosen, profile, manifest, options, tell, report)
                manifest["targets"] = [entry]
            clock.start("verify")
            bundles.write_manifest(folder, manifest)
            if verify:
                from layerport.verification import verify as check

                report.verification = check(folder)
            clock.stop()
    return report


def _front(
    source: Source,
    packs: Packs,
    folder: Path,
    target: Target,
    ranges: Mapping[str, tuple[int, int | None, int]],
    claim: Collection[str],
    no_claim: Collection[str],
    decompose: Collection[str],
    strict: bool,
    report: BuildReport,
    clock: _Clock,
) -> tuple[Mapping[str, DimRange], dict[str, Any], dict[str, Any]]:
    """The front half: everything up to the files that the engine half reads."""
    import torch

    from layerport.front.bodies import Bodies
    from layerport.front.claims import claim_layers
    from layerport.front.export import export_model
    from layerport.front.nodes import layer_nodes
    from layerport.front.portable import write_portable
    from layerport.front.realise import realise
    from layerport.front.samples import write_samples
    from layerport.plugin_spec import to_bytes

    clock.start("claim")
    model: Any = source.model
    if isinstance(model, torch.export.ExportedProgram):
        with torch.no_grad():
            outputs = model.module()(*source.args, **source.kwargs)
    else:
        claimed = claim_layers(source, packs, required=claim, refused=no_claim, strict=strict)
        model, outputs = claimed.model, claimed.outputs
        report.claims = [one.to_json() for one in claimed.claims]
    clock.start("export")
    exported = export_model(source, model, packs.layers, outputs)
    dims = apply_ranges(exported.dims, ranges)
    if target.flavour != "portable":
        require_limits(dims, str(target))
    nodes = layer_nodes(exported.model, packs)
    bodies = Bodies({dim.name: dim.opt for dim in dims.values()})
    bodies.attach(exported.model, nodes)
    clock.start("compile")
    realisations, plugins = realise(nodes, bodies, packs, target, decompose)
    report.layers = [_layer_entry(one, packs) for one in realisations]
    clock.start("write")
    write_samples(source, exported, outputs, folder)
    write_portable(exported.model, folder)
    if plugins.specs:
        (folder / bundles.PLUGINS).write_bytes(to_bytes(plugins))
    return dims, _manifest(exported, dims, report, plugins), _profile(exported, dims)


def _layer_entry(one: Realisation, packs: Packs) -> dict[str, Any]:
    info = packs.owner(one.node.layer).info
    return {
        "node": one.node.name,
        "layer": one.node.layer.name,
        "version": one.node.layer.version,
        "module": one.node.module,
        "pack": info.name,
        "distribution": info.distribution,
        "pack_version": info.version,
        "parameters": one.node.bound.parameters.digest,
        "realised": one.realised,
        "reason": one.reason,
        "plugin": one.spec.key if one.spec else None,
        "plugin_class": one.spec.plugin_class if one.spec else None,
    }


def _manifest(
    exported: ExportedModel, dims: Mapping[str, DimRange], report: BuildReport, plugins: PluginSet
) -> dict[str, Any]:
    tools = ("torch", "onnx", "onnx-ir", "onnxscript", "nvidia-cuda-nvrtc")
    return {
        "layerport": metadata.version("layerport"),
        "inputs": [port.to_json() for port in exported.inputs],
        "outputs": [port.to_json() for port in exported.outputs],
        "dims": [dim.to_json() for dim in dims.values()],
        "layers": report.layers,
        "claims": report.claims,
        "targets": [],
        "tools": {name: version for name in tools if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _profile(exported: ExportedModel, dims: Mapping[str, DimRange]) -> dict[str, list[list[int]]]:
    """Per input its least, usual and greatest shape."""
    from layerport.expressions import parse

    sizes = [
        {name: dim.min for name, dim in dims.items()},
        {name: dim.opt for name, dim in dims.items()},
        {name: dim.opt if dim.max is None else dim.max for name, dim in dims.items()},
    ]
    return {
        port.name: [[dim if isinstance(dim, int) else parse(dim).evaluate(env) for dim in port.dims] for env in sizes]
        for port in exported.inputs
    }


def _engine(
    process: BuildProcess,
    folder: Path,
    target: Target,
    profile: Mapping[str, Any],
    manifest: Mapping[str, Any],
    options: Mapping[str, Any] | None,
    tell: Progress,
    report: BuildReport,
) -> dict[str, Any]:
    plugins = folder / bundles.PLUGINS
    if not plugins.exists():
        from layerport.plugin_spec import PluginSet, to_bytes

        plugins.write_bytes(to_bytes(PluginSet({}, {})))
    result = process.build(
        {
            "model": str(folder / bundles.MODEL),
            "plugins": str(plugins),
            "plan": str(folder / target.plan_name),
            "flavour": target.flavour,
            "architectures": list(target.architectures),
            "profile": profile,
            "options": dict(options or {}),
            "allow_classes": any(one["plugin_class"] for one in manifest["layers"]),
        },
        lambda event: tell("engine", event),
    )
    report.plan_bytes = result["bytes"]
    report.build_modules = result["modules"]
    report.warnings += result["warnings"]
    return {
        "target": str(target),
        "flavour": target.flavour,
        "architectures": list(target.architectures),
        "file": target.plan_name,
        "plugins": result["plugins"],
        "tensorrt": result["version"],
        "profile": profile,
    }


def _target(target: str | Target | None) -> tuple[Target, str]:
    if target is None:
        return flavours.default_target()
    chosen = Target.parse(target) if isinstance(target, str) else target
    if chosen.flavour == "tensorrt" and not chosen.architectures:
        native = flavours.native_architecture()
        if native is None:
            raise BuildError(
                "target tensorrt builds on the GPU that it targets, and there is none here",
                "build there, or use --target rtx:sm_89 or portable",
            )
        chosen = Target("tensorrt", (native,))
    return chosen, "asked for"


class _Clock:
    """Times the stages and tells about them."""

    def __init__(self, seconds: dict[str, float], tell: Progress) -> None:
        self._seconds, self._tell = seconds, tell
        self._stage: str | None = None
        self._since = 0.0

    def start(self, stage: str) -> None:
        self.stop()
        self._stage, self._since = stage, time.perf_counter()
        self._tell(stage, None)

    def stop(self) -> None:
        if self._stage is not None:
            self._seconds[self._stage] = time.perf_counter() - self._since
            self._stage = None
