"""Checks and times every kernel of every installed pack on this machine's GPU: one table, one JSON.

    python benchmarks/gpu/run.py --probe                                 # two minutes: does everything work at all?
    python benchmarks/gpu/run.py --output results.json                   # on the machine with the GPU
    python benchmarks/gpu/run.py --prepare cache --arch sm_90            # elsewhere before: fills a kernel cache
    LAYERPORT_CACHE_DIR=cache python benchmarks/gpu/run.py               # then needs no compiler

Exit code 0: all is right, whatever the speed; 1: a check failed or could not be made; 2: there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
COMPARING = ("checked", "plugins")
_PACKAGES = ("torch", "triton", "tensorrt_rtx", "tensorrt", "liger_kernel", "cuda-bindings", "layerport", "numpy")


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    if options.prepare:
        os.environ["LAYERPORT_CACHE_DIR"] = str(Path(options.prepare).resolve())
    import checks

    from layerport.packs import host as packs

    cases, without = checks.layer_cases(packs.load())
    if unknown := sorted(set(options.only or ()) - cases.keys()):
        print(f"no case of {', '.join(unknown)}; to repair: use one of {', '.join(cases) or 'none'}")
        return 1
    if options.only:
        cases = {name: cases[name] for name in options.only}
    if options.prepare:
        count = checks.prepare(cases, options.arch)
        print(f"{count} kernels for {options.arch} are in {options.prepare}")
        return 0
    if fault := gpu_fault():
        print(f"no GPU run: {fault}; to repair: run this on a machine with an NVIDIA GPU and a CUDA build of torch")
        return 2
    import torch

    from layerport.layers.cuda_operator import cuda

    # Whoever ends this run must end what it started too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    place, seed = checks.Place(), int.from_bytes(os.urandom(3), "little")
    if options.smallest:
        case = cases[options.smallest]
        found = list(checks.check_layer(case, place, seed=seed, large=False))
        if not found:  # Torch calls the reference, an engine the kernel
            from plugins import check_plugins

            found = list(check_plugins(case, cuda().architecture(torch.cuda.current_device()), seed))
        return int(not found or any(one["fault"] for one in found))
    architecture = cuda().architecture(torch.cuda.current_device())
    result: dict[str, Any] = {"machine": machine(architecture), "seed": seed, "without cases": without, "layers": {}}
    if options.probe:
        from probe import probe

        result["probe"] = probe(cases, place, architecture=architecture, seed=seed)
    else:
        measure(result, cases, place, architecture, options)
    write(result, options.output)
    print(table(result))
    return int(failed(result))


def measure(
    result: dict[str, Any], cases: Mapping[str, Any], place: Any, architecture: str, options: argparse.Namespace
) -> None:
    """Fill the result, layer by layer and step by step; a step that raises is recorded and ends nothing else."""
    import behaviour
    import checks
    import plugins
    import timing

    def host(case: Any) -> dict[str, Any]:
        costs = timing.call_costs(case, architecture)
        return {"microseconds": costs, "misses": timing.cost_misses(costs)}

    library = plugins.native_library(options.native) if options.native else None
    steps: dict[str, Callable[[Any], Any]] = {
        "checked": lambda case: checked(checks.check_layer(case, place, seed=result["seed"], large=not options.quick)),
        "plugins": lambda case: checked(plugins.check_plugins(case, architecture, result["seed"], library)),
        "behaviour": behaviour.torch_checks,
        "host": host,
        "times": lambda case: timing.time_layer(case, quick=options.quick),
    }
    for name, case in cases.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        layer = result["layers"][name] = {"errors": {}, "kernels": [kernel.name for kernel in case.layer.kernels]}
        for step, run in steps.items():
            if options.step and step not in options.step:
                continue
            attempt(layer, step, lambda run=run, case=case: run(case))  # type: ignore[misc]
            write(result, options.output)
    if options.bundle:
        attempt(result, "plan", lambda: behaviour.plan_check(options.bundle))
        write(result, options.output)
    # Last, because it is slow and may be cut off.
    for name in () if options.step and "compute-sanitizer" not in options.step else cases:
        layer = result["layers"][name]
        attempt(layer, "compute-sanitizer", lambda name=name: behaviour.sanitize(Path(__file__).resolve(), name))  # type: ignore[misc]
        write(result, options.output)


def attempt(record: dict[str, Any], step: str, run: Callable[[], Any]) -> None:
    """Keep what a step gives, or in `errors` what it raises."""
    try:
        record[step] = run()
    except Exception as error:  # whatever it is, the next step is to be made too
        record.setdefault("errors", {})[step] = f"{type(error).__name__}: {error}"
        traceback.print_exc()


def checked(records: Any) -> dict[str, Any]:
    """How many checks there were, how many of them were changed elements, and the faults."""
    from checks import CONTROL

    found = list(records)
    controls = sum(one["variant"] == CONTROL for one in found)
    return {"count": len(found), "controls": controls, "faults": [one for one in found if one["fault"]]}


def gpu_fault() -> str | None:
    """Why nothing can run on a GPU here, None where it can."""
    try:
        import torch
    except ImportError as error:
        return str(error)
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    return None


def machine(architecture: str) -> dict[str, Any]:
    """GPU, driver and versions."""
    import torch

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split("\n")[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        driver = "unknown"
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "gpu": torch.cuda.get_device_name(),
        "architecture": architecture,
        "driver": driver,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": versions,
    }


def failed(result: dict[str, Any]) -> bool:
    """Whether anything was wrong or could not be made, which slowness is not."""
    from checks import CONTROL

    for layer in result["layers"].values():
        if layer["errors"] or wrong_checks(layer) or shows_nothing(layer):
            return True
        if any(fault and not fault.startswith("skipped") for fault in layer.get("behaviour", {}).values()):
            return True
        if layer.get("compute-sanitizer", "").startswith("exit code"):
            return True
    for name, found in result.get("probe", {}).items():
        if any(one["fault"] and not one["fault"].startswith(("not run", "skipped")) for one in found):
            return True
        if name != "engine" and not any(one["what"].endswith(CONTROL) for one in found):
            return True
    if not result["layers"] and len(result.get("probe", {})) < 2:
        return True  # nothing was checked
    return bool(result.get("errors")) or plan_is_wrong(result.get("plan", {}))


def plan_is_wrong(said: Mapping[str, str]) -> bool:
    """Whether a plan's outputs differ, in a session or in the C++ program, which ends with 1 then."""
    program = "run_plan . ended with exit code 1:" in said.get("without Python", "")
    return program or "do not match" in said.get("verified", "")


def counts(found: dict[str, Any]) -> tuple[int, int, int]:
    """How many comparisons of a step were right, wrong and skipped."""
    skipped = sum(one["fault"].startswith("skipped") for one in found["faults"])
    return found["count"] - len(found["faults"]), len(found["faults"]) - skipped, skipped


def wrong_checks(layer: dict[str, Any]) -> list[dict[str, Any]]:
    """The checks of a layer that found something wrong."""
    found = [one for step in COMPARING for one in layer.get(step, {"faults": ()})["faults"]]
    return [one for one in found if not one["fault"].startswith("skipped")]


def shows_nothing(layer: dict[str, Any]) -> bool:
    """Whether numbers were compared, and no comparison was shown to see a changed element."""
    steps = [layer[step] for step in COMPARING if step in layer]
    return bool(steps) and not sum(step["controls"] for step in steps)


def table(result: dict[str, Any]) -> str:
    """The result in lines."""
    about = result["machine"]
    lines = [f"{about['gpu']} ({about['architecture']}), driver {about['driver']}, CUDA {about['cuda']}", ""]
    for name, layer in result["layers"].items():
        lines += [f"{name}:", *(f"  FAILED {step}: {error}" for step, error in layer["errors"].items())]
        for step in COMPARING:
            if found := layer.get(step):
                right, wrong, skipped = counts(found)
                said = f"{right} right, {wrong} wrong, {skipped} skipped; {found['controls']} changed elements"
                lines.append(f"  {step}: {said}")
        if shows_nothing(layer):
            lines.append("  WRONG: no comparison was shown to see a changed element")
        for one in wrong_checks(layer)[:20]:
            lines.append(f"  WRONG {one['kernel']} {one['case']} {one['variant']}: {one['fault']}")
        lines += [f"  {check}: {fault or 'right'}" for check, fault in layer.get("behaviour", {}).items()]
        if "compute-sanitizer" in layer:
            lines.append(f"  compute-sanitizer: {layer['compute-sanitizer']}")
        if host := layer.get("host"):
            lines += [f"  host: {what}: {cost:.2f} us" for what, cost in host["microseconds"].items()]
            lines += [f"  MISSED {miss}" for miss in host["misses"]]
        lines += [*_times(layer.get("times") or []), ""]
    for name, checks in result.get("probe", {}).items():
        lines += [f"{name}:", *(f"  {one['what']}: {one['fault'] or 'right'}" for one in checks), ""]
    lines += [f"FAILED {step}: {error}" for step, error in result.get("errors", {}).items()]
    lines += [f"not checked, no case: {name}" for name in result["without cases"]]
    lines += [f"plan: {key}: {value}" for key, value in result.get("plan", {}).items()]
    return "\n".join(lines)


def _times(records: list[dict[str, Any]]) -> list[str]:
    lines = [f"  {'case':58} {'us':>9} {'of copy':>8}  rivals, us"] if records else []
    for one in records:
        if "skipped" in one:
            lines.append(f"  {one['case']:58} skipped: {one['skipped']}")
            continue
        rivals = ", ".join(
            f"{rival} {time:.1f}" if isinstance(time, float) else f"{rival} -" for rival, time in one["rivals"].items()
        )
        missed = "  MISSED: " + "; ".join(one["misses"]) if one["misses"] else ""
        lines.append(f"  {one['case']:58} {one['ours']:9.1f} {one['of_copy']:8.2f}  {rivals}{missed}")
        lines += [f"    {name:56} {time:9.1f}" for name, time in one.get("kernels", {}).items()]
    return lines


def write(result: dict[str, Any], path: str | None) -> None:
    """Keep what is known so far, for a run that is cut off."""
    if path:
        temporary = Path(f"{path}.writing")
        temporary.write_text(json.dumps(result, indent=1))
        temporary.replace(path)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="the JSON file to write")
    parser.add_argument("--only", action="append", help="a layer, namespace::name; may stand several times")
    parser.add_argument("--probe", action="store_true", help="two minutes: each part once, and no times")
    parser.add_argument("--quick", action="store_true", help="no huge cases, float16 times only")
    parser.add_argument("--step", action="append", help="only this step of each layer; may stand several times")
    parser.add_argument("--native", help="the folder that `python tests/native/native_parts.py FOLDER` compiled into")
    parser.add_argument("--bundle", help="a bundle whose plan is to be loaded and verified")
    parser.add_argument("--prepare", help="compile all kernels into this cache folder, without a GPU")
    parser.add_argument("--arch", default="sm_90", help="architecture for --prepare")
    parser.add_argument("--smallest", help=argparse.SUPPRESS)  # what compute-sanitizer runs
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
