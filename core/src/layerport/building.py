"""The whole pipeline: a Torch model in, a bundle out.  Behind `layerport.build` and `layerport build`."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import layerport.checks
import layerport.engine
import layerport.front
import layerport.packs
from layerport.bundle import bundle as bundles
from layerport.bundle.manifest import realised_counts
from layerport.bundle.plugin_spec import PluginSet, to_bytes
from layerport.engine import flavours
from layerport.engine.child import BuildProcess
from layerport.engine.options import EngineOptions
from layerport.engine.plans import require_installed
from layerport.engine.progress import ProgressEvent, Tell
from layerport.errors import LayerportError, VerifyError
from layerport.packs.clock import reported
from layerport.packs.discovery import STRICT_VARIABLE, switched_on
from layerport.packs.lossy import Asked, parse_lossy
from layerport.parameters.comparison import Loss
from layerport.session.session import Session
from layerport.sizes.dims import Ranges, parse_ranges
from layerport.system import html
from layerport.system.records import plain
from layerport.targets import Target

if TYPE_CHECKING:
    from layerport.checks.verification import Verification
    from layerport.front.claim_records import ClaimRecord
    from layerport.front.layer_records import LayerRecord
    from layerport.front.lookalikes import Lookalike
    from layerport.front.pipeline import Prepared
    from layerport.front.sources import Inputs
    from layerport.front.ways import Realise
    from layerport.packs.host import Packs
    from layerport.search.misses import Miss
    from layerport.search.searching import FoundPlace


@dataclass
class BuildReport:
    """What a build did: the bundle's path, its target and why that one, what became of each layer, claims, times.

    losses: how far lossy claims take each output from the model's own, by its name; empty without such claims.
    found: the places at which a layer was found in the graph.  missed: what came near, and where it parted.
    seconds: wall-clock time by stage; never part of the bundle.
    """

    path: Path
    target: Target
    target_reason: str
    layers: tuple[LayerRecord, ...] = ()
    claims: tuple[ClaimRecord, ...] = ()
    lookalikes: tuple[Lookalike, ...] = ()
    losses: Mapping[str, Loss] = field(default_factory=dict)
    found: tuple[FoundPlace, ...] = ()
    missed: tuple[Miss, ...] = ()
    plan_bytes: int | None = None
    verification: Verification | None = None
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    build_modules: list[str] = field(default_factory=list, repr=False)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Per layer, how many nodes were realised in which way."""
        return realised_counts((one.layer, one.realised) for one in self.layers)

    def to_json(self) -> dict[str, Any]:
        """The report as a program reads it."""
        return {
            "bundle": str(self.path),
            "target": str(self.target),
            "target_reason": self.target_reason,
            "counts": self.counts,
            "layers": plain(self.layers),
            "claims": plain(self.claims),
            "losses": plain(self.losses),
            "lookalikes": plain(self.lookalikes),
            "found": plain(self.found),
            "missed": plain(self.missed),
            "plan_bytes": self.plan_bytes,
            "verification": plain(self.verification),
            "warnings": self.warnings,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }

    def _repr_html_(self) -> str:
        layers = Counter((one.layer, one.version, one.pack, one.realised, one.via, one.reason) for one in self.layers)
        left = [one for one in self.claims if one.status != "claimed"]
        return "".join(
            (
                html.line(f"{self.path}: target {self.target} ({self.target_reason})"),
                html.table(
                    ("layer", "version", "pack", "realised", "via", "why", "nodes"),
                    ((*key, number) for key, number in layers.items()),
                )
                or html.line("the model has no layer of an installed pack"),
                html.table(
                    ("left as it is", "class", "status", "why"),
                    ((one.module or "(root)", one.module_class, one.status, one.reason) for one in left),
                ),
                *(html.line(f"note: {warning}") for warning in self.warnings),
                self.verification._repr_html_() if self.verification is not None else "",
            )
        )


def build(
    source: Any,
    out: str | Path,
    *,
    args: Any = None,
    dynamic_shapes: Any = None,
    target: str | Target | None = None,
    ranges: Ranges = (),
    inputs: Inputs = (),
    claim: Collection[str] = (),
    no_claim: Collection[str] = (),
    lossy: Asked = (),
    find: Collection[str] = (),
    no_find: Collection[str] = (),
    decompose: Collection[str] = (),
    realise: Realise = "auto",
    packs: Iterable[object] = (),
    prefer: Iterable[object] = (),
    locked: bool | str | Path = False,
    strict: bool | None = None,
    force: bool = False,
    verify: bool = True,
    options: Mapping[str, Any] | None = None,
    progress: Tell | bool | None = None,
) -> BuildReport:
    """Build a bundle from a model: claim, export, compile, build the engine, verify.

    source: an nn.Module (with `args`, and `dynamic_shapes` in torch.export's form), a tuple of these, an
    ExportedProgram, or a text: `module:callable`, `file.py:callable` or the path of an .onnx file.
    target: such as "rtx:sm_89,sm_120" or "portable"; None takes what is installed, and the report says why.
    ranges: of dynamic dims, a mapping of name to (least, usual, greatest), or texts "NAME=MIN..USUAL..MAX"; the usual
    size may be left out.  inputs: example inputs for a bare module, a mapping of name to (dtype, dims) such as
    {"x": ("float32", ("rows", 64))}, or texts "NAME=DTYPE:DIMS".  claim, no_claim, decompose: layer names.
    lossy: the modules that may be claimed with a loss: a mapping of layer to patterns of module paths, or to
    {pattern: the greatest bound that a claim may declare}, or texts "LAYER=PATTERN:LIMIT"; of several patterns for one
    module the last one counts.  No such claim is made otherwise; the report's `losses` say what it did to the outputs.
    realise: "plugin" (an error where a layer cannot be one), "decompose" or "auto", for all layers, or a mapping of
    layer to one of these; `decompose` is short for the second.
    find: layers that must be found in the model's graph by their references; every other one is searched too, unless
    LAYERPORT_FIND=0.  no_find: layers that are not searched.
    packs: packs to use besides the installed ones (module, object or file path).  prefer: the same, and where several
    packs answer these go before all others, in this order.  locked: a file that `layerport lock` wrote, from which the
    packs may not differ; True for the one in the working folder.
    strict: whether a claim that does not hold is an error; None asks LAYERPORT_STRICT.
    options: what TensorRT shall do, by name, such as {"workspace": 1 << 30}; `layerport build --help` lists them.
    progress: called with a `ProgressEvent` where a stage begins, and with notes and TensorRT's own steps meanwhile;
    True shows them on stderr, on a terminal and in a notebook as a bar.

    Nothing is left at `out` when it raises: UsageError, PackError, BuildError, or VerifyError where a kernel gives
    something else than its layer's reference.  The error's `report` holds what became of each layer by then.
    """
    chosen, reason = _target(target)
    out = Path(out)
    bundles.check_output(out, force=force)
    chosen = flavours.on_this_machine(chosen)
    flavours.require(chosen)
    wanted_options = EngineOptions.of(options, chosen)
    wanted_ranges = parse_ranges(ranges)
    wanted_losses = parse_lossy(lossy)
    ways = layerport.front.ways.Ways.of(realise, decompose)
    report = BuildReport(out, chosen, reason)
    engine = chosen.flavour != "portable"
    # Started now, TensorRT loads while Torch exports.
    with (
        _telling(progress) as tell,
        _told(report),
        reported(lambda text: tell(ProgressEvent("load", "note", text))),
        ExitStack() as stack,
        BuildProcess(chosen.flavour) if engine else nullcontext() as process,
    ):
        clock = _Clock(report.seconds, tell)
        clock.start("load")
        pack_host = layerport.packs.host
        with pack_host.importing_torch():
            sources, pipeline = layerport.front.sources, layerport.front.pipeline
        stack.enter_context(_imports_set_aside())
        loaded = pack_host.load(*packs, prefer=prefer)
        if locked is not False:
            layerport.packs.locking.require_locked(loaded, None if locked is True else Path(locked))
        stack.enter_context(pack_host.blamed(loaded))
        report.warnings += [f"pack {one.info.label} failed to load: {one.failure}" for one in loaded.failed]
        report.warnings += [*loaded.warnings, *loaded.notes]
        report.warnings += [f"pack {one.info.label}: {warning}" for one in loaded for warning in one.warnings]
        made = sources.open_source(source, inputs=inputs, ranges=ranges, args=args, dynamic_shapes=dynamic_shapes)
        with bundles.writing(out, force=force) as folder:
            prepared = pipeline.prepare(
                made,
                loaded,
                folder,
                pipeline.Wishes(
                    target=chosen,
                    ranges=wanted_ranges,
                    claim=tuple(claim),
                    no_claim=tuple(no_claim),
                    find=tuple(find),
                    no_find=tuple(no_find),
                    lossy=wanted_losses,
                    ways=ways,
                    strict=switched_on(STRICT_VARIABLE, os.environ) if strict is None else strict,
                    samples=verify,
                ),
                clock.start,
            )
            del made
            report.layers, report.claims = prepared.layers, prepared.claims
            report.lookalikes = prepared.lookalikes
            report.found, report.missed = tuple(prepared.findings.places), tuple(prepared.findings.misses)
            report.warnings += prepared.warnings
            manifest = prepared.manifest
            report.losses = prepared.losses
            for note in _decomposed(report.layers):
                tell(ProgressEvent("compile", "note", note))
            if engine:
                assert process is not None
                clock.start("engine")
                entry = _engine(process, folder, chosen, prepared, wanted_options, tell, report)
                manifest["targets"] = [entry]
            clock.start("verify")
            written = bundles.write_manifest(folder, manifest, prepared.digests)
            if verify:
                report.verification = _verify(written, loaded)
                _require_right_kernels(report.verification)
            clock.stop()
    return report


def _verify(bundle: bundles.Bundle, packs: Packs) -> Verification:
    with Session(bundle, exact=True) as session:
        return layerport.checks.verification.verify(session, packs=packs)


def _require_right_kernels(verification: Verification) -> None:
    if wrong := verification.wrong_kernels:
        raise VerifyError(
            f"{len(wrong)} kernel{'s give' if len(wrong) > 1 else ' gives'} something else than the reference",
            "correct the kernel, its launch rule or the pack's conversion; "
            "--decompose LAYER builds without the kernel, --no-verify builds all the same",
            faults=[
                f"{one.layer}, kernel {one.kernel}, node {one.nodes[0]}"
                f"{f' and {len(one.nodes) - 1} like it' if len(one.nodes) > 1 else ''}: {one}"
                for one in wrong
            ],
        )


def _decomposed(layers: Sequence[LayerRecord]) -> Iterator[str]:
    """Each layer that gets no plugin though an engine is built, with the reason, said before that takes its time."""
    for (layer, reason), count in Counter(
        (one.layer, one.reason) for one in layers if one.realised == "decomposed"
    ).items():
        yield f"{layer}: {count} node{'s' if count > 1 else ''} without a plugin: {reason}"


@contextmanager
def _imports_set_aside() -> Iterator[None]:
    """Let collections of garbage pass over what is there already, which stays: no interrupt comes through meanwhile.

    Torch and what comes with it are 300,000 objects, half of all that a build has.
    """
    if gc.get_freeze_count():  # the program has set something aside itself, and there is one place only
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _telling(progress: Tell | bool | None) -> Iterator[Tell]:
    """What is told of progress."""
    if progress is True:
        with layerport.engine.shown_progress.shown() as tell:
            yield tell
    else:
        yield progress or (lambda event: None)


@contextmanager
def _told(report: BuildReport) -> Iterator[None]:
    """Let an error carry what became of each layer by then."""
    try:
        yield
    except LayerportError as error:
        error.report = report
        raise


def _engine(
    process: BuildProcess,
    folder: Path,
    target: Target,
    prepared: Prepared,
    options: EngineOptions,
    tell: Tell,
    report: BuildReport,
) -> dict[str, Any]:
    own_classes = [one.to_json() for one in prepared.layers if one.plugin_class]
    if own_classes:
        require_installed(own_classes)
    plugins = folder / bundles.PLUGINS
    if not plugins.exists():
        prepared.digests[bundles.PLUGINS] = bundles.write_hashed(plugins, [to_bytes(PluginSet({}, {}))])
    result = process.build(
        {
            "model": str(folder / bundles.MODEL),
            "plugins": str(plugins),
            "plan": str(folder / target.plan_name),
            "flavour": target.flavour,
            "architectures": list(target.architectures),
            "profile": prepared.profile,
            "options": options.to_json(),
            "allow_classes": bool(own_classes),
        },
        tell,
    )
    prepared.digests[target.plan_name] = result["sha256"]
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
        "options": options.recorded(),
        "profile": prepared.profile,
    }


def _target(target: str | Target | None) -> tuple[Target, str]:
    if target is None:
        return flavours.default_target()
    return Target.parse(str(target)), "asked for"


class _Clock:
    """Times the stages and tells about them."""

    def __init__(self, seconds: dict[str, float], tell: Tell) -> None:
        self._seconds, self._tell = seconds, tell
        self._stage: str | None = None
        self._since = 0.0

    def start(self, stage: str) -> None:
        self.stop()
        self._stage, self._since = stage, time.perf_counter()
        self._tell(ProgressEvent(stage, "stage"))

    def stop(self) -> None:
        if self._stage is not None:
            self._seconds[self._stage] = time.perf_counter() - self._since
            self._stage = None
