"""What `build`, `verify` and `inspect` print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerport.commands.tables import print_table

if TYPE_CHECKING:
    from layerport.building import BuildReport
    from layerport.verification import Verification


def counts(layers: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Per layer, how many nodes were realised in which way."""
    result: dict[str, dict[str, int]] = {}
    for one in layers:
        per_layer = result.setdefault(one["layer"], {})
        per_layer[one["realised"]] = per_layer.get(one["realised"], 0) + 1
    return result


def print_build(report: BuildReport) -> None:
    """The summary of a build: target, what became of each layer and why, the claims that did not hold, the figures."""
    print(f"target {report.target} ({report.target_reason})")
    _print_layers(report.layers)
    _print_refused(report.claims)
    for warning in report.warnings:
        print(f"note: {warning}")
    if report.plan_bytes is not None:
        ran = report.verification is not None and report.verification.on_gpu
        print(f"engine: {report.plan_bytes / 2**20:.1f} MiB" + ("" if ran else "; no GPU has run it in this build"))
    if report.verification is not None:
        print_verification(report.verification)
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in report.seconds.items())
    print(f"wrote {report.path} ({seconds})")


def print_verification(result: Verification) -> None:
    """The figures of each output and the answer."""
    print_table(
        ["output", "type", "max abs", "max rel", "cosine", "answer"],
        [
            [
                one.name,
                f"{one.dtype}[{', '.join(map(str, one.shape))}]",
                f"{one.max_abs:.3g}",
                f"{one.max_rel:.3g}",
                f"{one.cosine:.9f}",
                "pass" if one.passed else f"FAIL{': ' + one.fault if one.fault else ''}",
            ]
            for one in result.outputs
        ],
    )
    print(f"verify: {'passed' if result.passed else 'FAILED'} ({result.device})")
    if result.note:
        print(f"note: {result.note}")


def inspect_bundle(path: str | Path) -> dict[str, Any]:
    """What is in a bundle, every file checked against the manifest."""
    from layerport.bundle import Bundle

    bundle = Bundle.open(path)
    for name in bundle.manifest["files"]:
        bundle.file(name)
    manifest = dict(bundle.manifest)
    return {"bundle": str(path), "counts": counts(manifest["layers"]), **manifest}


def print_inspection(summary: Mapping[str, Any]) -> None:
    """An `inspect_bundle`, as tables."""
    print(f"{summary['bundle']}, written by layerport {summary['layerport']}")
    for kind in ("inputs", "outputs"):
        for port in summary[kind]:
            print(f"{kind[:-1]} {port['name']}: {port['dtype']}[{', '.join(map(str, port['dims']))}]")
    for dim in summary["dims"]:
        print(f"dim {dim['name']}: {dim['min']}..{dim['opt']}..{dim['max'] or 'any'}")
    _print_layers(summary["layers"])
    _print_refused(summary["claims"])
    for one in summary["targets"]:
        print(f"engine for {one['target']}: {one['file']}, {one['plugins']} plugins, TensorRT {one['tensorrt']}")
    if not summary["targets"]:
        print("no engine: the bundle is portable")
    print_table(
        ["file", "bytes", "sha256"],
        [[name, str(one["bytes"]), one["sha256"][:16]] for name, one in sorted(summary["files"].items())],
    )


def _print_layers(layers: list[dict[str, Any]]) -> None:
    groups: dict[tuple[str, ...], int] = {}
    for one in layers:
        pack = f"{one['pack']} {one['pack_version'] or ''}".strip()
        key = (one["layer"], str(one["version"]), pack, one["realised"], one["reason"])
        groups[key] = groups.get(key, 0) + 1
    if not groups:
        print("the model has no layer of an installed pack")
        return
    print_table(
        ["layer", "version", "pack", "realised", "nodes", "why"],
        [[*key[:4], str(number), key[4]] for key, number in groups.items()],
    )
    for layer, reason in dict.fromkeys(
        (one["layer"], why) for one in layers for why in one.get("kernels_left_out", ())
    ):
        print(f"kernel left out of {layer}: {reason}")


def _print_refused(claims: list[dict[str, Any]]) -> None:
    left = [one for one in claims if one["status"] != "claimed"]
    for one in left[:20]:
        print(f"left as it is: {one['module'] or '(root)'} ({one['class']}): {one['status']}: {one['reason']}")
    if len(left) > 20:
        print(f"left as they are: {len(left) - 20} more; `layerport inspect --json` lists them")
