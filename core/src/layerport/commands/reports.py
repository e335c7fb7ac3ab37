"""What `build`, `verify` and `inspect` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import layerport.checks
import layerport.engine
from layerport.bundle.bundle import PLUGINS, Bundle
from layerport.bundle.entries import ClaimEntry, LayerEntry, LossEntry, Manifest
from layerport.bundle.manifest import realised_counts
from layerport.commands.tables import print_table, say
from layerport.errors import UsageError
from layerport.system.records import plain

if TYPE_CHECKING:
    from layerport.building import BuildReport
    from layerport.checks.kernel_checks import KernelCheck
    from layerport.checks.verification import Verification
    from layerport.engine.alone import Alone
    from layerport.front.lookalikes import Lookalike
    from layerport.search.searching import FoundPlace


@dataclass(frozen=True)
class Inspection:
    """What is in a bundle: its manifest, every file of which was checked.

    alone: what TensorRT makes of each plugin's decomposed form by itself; None where nobody asked.
    """

    bundle: str
    manifest: Manifest
    alone: tuple[Alone, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The manifest as a program reads it, with the bundle's path and what became of each layer before it."""
        counts = realised_counts((one["layer"], one["realised"]) for one in self.manifest["layers"])
        alone = {} if self.alone is None else {"alone": plain(self.alone)}
        return {"bundle": self.bundle, "counts": counts, **self.manifest, **alone}


def print_build(report: BuildReport) -> None:
    """The summary of a build: target, what became of each layer and why, the claims that did not hold, the figures."""
    print_layers(report)
    if report.plan_bytes is not None:
        ran = report.verification is not None and report.verification.on_gpu
        say(f"plan: {report.plan_bytes / 2**20:.1f} MiB" + ("" if ran else "; no GPU has run it in this build"))
    if report.verification is not None:
        print_verification(report.verification)
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in report.seconds.items())
    say(f"wrote {report.path} ({seconds})")


def print_layers(report: BuildReport, *, file: TextIO | None = None) -> None:
    """The target, what became of each layer and why, and the claims that did not hold."""
    say(f"target {report.target} ({report.target_reason})", file=file)
    _print_layers(plain(report.layers), _kernel_answers(report), file=file)
    claims: list[ClaimEntry] = plain(report.claims)
    _print_evidence(claims, file=file)
    _print_losses(claims, plain(report.losses), file=file)
    _print_refused(claims, file=file)
    print_found(report.found, file=file)
    if report.missed:
        say(f"{len(report.missed)} places came near to a layer; `layerport explain` shows where each parted", file=file)
    print_lookalikes(report.lookalikes, file=file)
    for warning in report.warnings:
        say(f"note: {warning}", file=file)


def _kernel_answers(report: BuildReport) -> dict[str, str] | None:
    """What is known of the kernels of each plugin node, None before anything was checked."""
    if report.verification is None:
        return None
    by_node: dict[str, list[KernelCheck]] = {}
    for check in report.verification.kernels:
        for node in check.nodes:
            by_node.setdefault(node, []).append(check)
    return {node: str(layerport.checks.kernel_checks.worst(checks)) for node, checks in by_node.items()}


def print_verification(result: Verification) -> None:
    """The figures of each output, then what is shown of the portable model, of the kernels and of the engine."""
    print_table(
        ["output", "type", "max abs", "max rel", "cosine", "answer"],
        [
            [
                one.name,
                f"{one.dtype}[{', '.join(map(str, one.shape))}]",
                f"{one.max_abs:.3g}",
                f"{one.max_rel:.3g}",
                f"{one.cosine:.9f}",
                one.answer,
            ]
            for one in result.outputs
        ],
    )
    say(f"portable model: {_shouted(result.portable)}" + ("" if result.on_gpu else f" ({result.device})"))
    _print_kernels(result.kernels)
    if result.engine != "none":
        say(f"engine: {_shouted(result.engine)}" + (f" ({result.device})" if result.on_gpu else ""))
    if result.note:
        say(f"note: {result.note}")


def _shouted(answer: str) -> str:
    return answer.upper() if answer == "failed" else answer


def _print_kernels(checks: Sequence[KernelCheck]) -> None:
    right = [one for one in checks if one.answer == "right"]
    if checks:
        worst = f", max error {max(one.max_error or 0.0 for one in right):.1e}" if right else ""
        say(f"kernels: {len(right)} of {len(checks)} right{worst}")
    for one in checks:
        if one.answer != "right":
            nodes = f"{len(one.nodes)} node{'s' if len(one.nodes) > 1 else ''}"
            say(f"kernel {one.kernel or '(none)'} of {one.layer}, {nodes}: {one}")


def inspect_bundle(path: str | Path, *, alone: bool = False) -> Inspection:
    """What is in a bundle, every file checked against the manifest.

    alone: whether to build the decomposed form of each plugin too, for the bundle's first engine.  Raises BuildError
    for a damaged bundle, UsageError for one without an engine, of which `alone` can tell nothing.
    """
    bundle = Bundle.open(path)
    for name in bundle.manifest["files"]:
        bundle.file(name)
    return Inspection(str(path), bundle.manifest, _alone(bundle) if alone else None)


def _alone(bundle: Bundle) -> tuple[Alone, ...]:
    if not (engines := bundle.manifest["targets"]):
        raise UsageError(
            "the bundle has no engine, so no plugin that TensorRT's own kernels could be compared with",
            "build it for a target such as rtx:sm_89",
        )
    flavour, architectures = engines[0]["flavour"], engines[0]["architectures"]
    with layerport.engine.child.BuildProcess(flavour) as process:
        return process.build_alone(
            {
                "model": str(bundle.model()),
                "plugins": str(bundle.file(PLUGINS)),
                "dims": {name: (dim.min, dim.opt, dim.greatest) for name, dim in bundle.dims.items()},
                "flavour": flavour,
                "architectures": architectures,
            }
        )


def print_inspection(inspection: Inspection) -> None:
    """An `inspect_bundle`, as tables."""
    summary = inspection.manifest
    say(f"{inspection.bundle}, written by layerport {summary['layerport']}")
    for kind, ports in (("input", summary["inputs"]), ("output", summary["outputs"])):
        for port in ports:
            dims = ("?" if dim is None else str(dim) for dim in port["dims"])
            say(f"{kind} {port['name']}: {port['dtype']}[{', '.join(dims)}]")
    for dim in summary["dims"]:
        say(f"dim {dim['name']}: {dim['min']}..{dim['opt']}..{dim['max'] or 'any'}")
    for condition in summary.get("conditions", ()):
        say(f"only where {condition['condition']}, for {condition['layer'] or 'the model'}; a session checks it")
    _print_layers(summary["layers"])
    alone: dict[tuple[str, str], int] = {}
    for one in inspection.alone or ():
        alone[one.layer, str(one)] = alone.get((one.layer, str(one)), 0) + len(one.nodes)
    for (layer, what), count in alone.items():
        say(f"TensorRT alone, for {count} node{'s' if count > 1 else ''} of {layer}: {what}")
    _print_evidence(summary["claims"])
    _print_losses(summary["claims"], samples.get("losses", {}) if (samples := summary.get("samples")) else {})
    _print_refused(summary["claims"])
    for engine in summary["targets"]:
        say(
            f"engine for {engine['target']}: {engine['file']}, {engine['plugins']} plugins, "
            f"TensorRT {engine['tensorrt']}"
        )
    if not summary["targets"]:
        say("no engine: the bundle is portable")
    print_table(
        ["file", "bytes", "sha256"],
        [[name, str(one["bytes"]), one["sha256"][:16]] for name, one in sorted(summary["files"].items())],
    )


def _print_layers(
    layers: Sequence[LayerEntry], kernels: Mapping[str, str] | None = None, *, file: TextIO | None = None
) -> None:
    groups: dict[tuple[str, ...], int] = {}
    for one in layers:
        pack = f"{one['pack']} {one['pack_version'] or ''}".strip()
        checked = () if kernels is None else (kernels.get(one["node"], ""),)
        key = (one["layer"], str(one["version"]), pack, one["realised"], one["reason"], *checked)
        groups[key] = groups.get(key, 0) + 1
    if not groups:
        say("the model has no layer of an installed pack", file=file)
        return
    print_table(
        ["layer", "version", "pack", "realised", "nodes", "why", *(() if kernels is None else ("kernel",))],
        [[*key[:4], str(number), *key[4:]] for key, number in groups.items()],
        file=file,
    )
    for layer, reason in dict.fromkeys(
        (one["layer"], why) for one in layers for why in one.get("kernels_left_out", ())
    ):
        say(f"kernel left out of {layer}: {reason}", file=file)


def _print_evidence(claims: Sequence[ClaimEntry], *, file: TextIO | None = None) -> None:
    held = [one["evidence"] for one in claims if one["status"] == "claimed" and one.get("bound") is None]
    if held:
        probed = sum(any(probe["proves_nothing"] is None for probe in one["probes"]) for one in held)
        line = f"claims: {len(held)} modules agree with their layers on the example inputs, {probed} on probes too"
        proven = sum(one["kind"] == "structure" for one in held)
        line += f"; {proven} are proven by structure" if proven else ""
        say(line, file=file)


def _print_losses(claims: Sequence[ClaimEntry], losses: Mapping[str, LossEntry], *, file: TextIO | None = None) -> None:
    """What lossy claims do to their modules, by layer, and to the outputs of the model."""
    own = [one for one in claims if one["status"] == "claimed" and one.get("bound") is not None]
    for layers in dict.fromkeys(tuple(one["layers"]) for one in own):
        errors = [one["max_relative_error"] or 0.0 for one in own if tuple(one["layers"]) == layers]
        bounds = [one["bound"] or 0.0 for one in own if tuple(one["layers"]) == layers]
        say(
            f"lossy: {' + '.join(layers)} in the place of {len(errors)} module{'s'[: len(errors) > 1]}, off by up to "
            f"{max(errors):.2g} (relative) on the example inputs, {max(bounds):g} is declared",
            file=file,
        )
    for name, loss in losses.items():
        say(
            f"lossy: output {name} is off the model's own by up to {loss['error']:.2g} (relative), "
            f"cosine {loss['cosine']:.6f}",
            file=file,
        )


def print_found(places: Sequence[FoundPlace], *, file: TextIO | None = None) -> None:
    """How many places of each layer were found in the graph, and what that rests on."""
    for layer in dict.fromkeys(one.layer for one in places):
        own = [one for one in places if one.layer == layer]
        exact = sum(one.grade == "exact" for one in own)
        compared = [one.error or 0.0 for one in own if one.grade != "exact"]
        line = f"found in the graph: {layer}, {len(own)} place{'s'[: len(own) > 1]}, {exact} to the bit"
        if compared:
            line += f", {len(compared)} as a formula that agrees within {max(compared):.2g} on the example inputs"
        say(line, file=file)


def print_lookalikes(lookalikes: Sequence[Lookalike], *, file: TextIO | None = None) -> None:
    """What looks like a layer and no pack answers for, a line for each class."""
    for one in lookalikes[:10]:
        what = f"{one.module_class} ({one.count} at {one.module or '(root)'}{' and so on' if one.count > 1 else ''})"
        say(f"looks like {one.layer} and is not claimed: {what}: {one.reason}", file=file)
    if len(lookalikes) > 10:
        say(f"{len(lookalikes) - 10} more classes look like a layer; `--json` lists them", file=file)


def _print_refused(claims: Sequence[ClaimEntry], *, file: TextIO | None = None) -> None:
    left = [one for one in claims if one["status"] != "claimed"]
    for one in left[:20]:
        line = f"left as it is: {one['module'] or '(root)'} ({one['class']}): {one['status']}: {one['reason']}"
        say(line, file=file)
    if len(left) > 20:
        say(f"left as they are: {len(left) - 20} more; `layerport inspect --json` lists them", file=file)
