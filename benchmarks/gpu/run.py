"""Checks and times every kernel of every installed pack on this machine's GPU: one table, one JSON.

    python benchmarks/gpu/run.py --output results.json                   # on the machine with the GPU
    python benchmarks/gpu/run.py --prepare cache --arch sm_90            # elsewhere before: fills a kernel cache
    LAYERPORT_CACHE_DIR=cache python benchmarks/gpu/run.py               # then needs no compiler

Exit code 0: all is right, whatever the speed; 1: a check failed; 2: there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
_PACKAGES = ("torch", "triton", "tensorrt_rtx", "tensorrt", "liger_kernel", "cuda-bindings", "layerport", "numpy")


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    if options.prepare:
        os.environ["LAYERPORT_CACHE_DIR"] = str(Path(options.prepare).resolve())
    import checks

    from layerport import packs

    cases, without = checks.layer_cases(packs.load())
    if options.only:
        cases = {name: case for name, case in cases.items() if name in options.only}
    if options.prepare:
        count = checks.compile_everything(cases, options.arch)
        print(f"{count} kernels for {options.arch} are in {options.prepare}")
        return 0
    if fault := gpu_fault():
        print(f"no GPU run: {fault}; to repair: run this on a machine with an NVIDIA GPU and a CUDA build of torch")
        return 2
    import behaviour
    import timing
    import torch

    from layerport.adapters.torch_cuda import Cuda, cuda

    class Poisoned(Cuda):
        """Outputs begin as bytes of 0xFF, NaN in every dtype, so that an element that is not written shows."""

        def __init__(self) -> None:
            super().__init__()
            allocate = self.empty

            def poisoned(*args: Any) -> torch.Tensor:
                made = allocate(*args)
                if made.numel() and made.ndim:
                    made.view(torch.uint8).fill_(0xFF)
                return made

            self.empty = poisoned

    seed = int.from_bytes(os.urandom(3), "little")
    if options.smallest:
        case = next(case for name, case in cases.items() if name == options.smallest)
        found = list(checks.check_layer(case, Poisoned, device="cuda", seed=seed, large=False))
        return int(any(one["fault"] for one in found))
    architecture = cuda().architecture(torch.cuda.current_device())
    result: dict[str, Any] = {"machine": machine(architecture), "seed": seed, "without cases": without, "layers": {}}
    for name, case in cases.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        found = list(checks.check_layer(case, Poisoned, device="cuda", seed=seed, large=not options.quick))
        torch.cuda.empty_cache()
        costs = timing.call_costs(case, architecture)
        result["layers"][name] = {
            "checked": len(found),
            "faults": [one for one in found if one["fault"]],
            "behaviour": behaviour.torch_checks(case),
            "times": timing.time_layer(case, quick=options.quick),
            "host": {"microseconds": costs, "misses": timing.cost_misses(costs)},
            "compute-sanitizer": behaviour.sanitize(Path(__file__).resolve(), name),
        }
        write(result, options.output)
    if options.bundle:
        result["plan"] = behaviour.plan_check(options.bundle)
    write(result, options.output)
    print(table(result))
    return int(failed(result))


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

    said = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], capture_output=True, text=True
    )
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "gpu": torch.cuda.get_device_name(),
        "architecture": architecture,
        "driver": said.stdout.strip().rpartition(", ")[2],
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": versions,
    }


def failed(result: dict[str, Any]) -> bool:
    """Whether anything was wrong, which slowness is not."""
    for layer in result["layers"].values():
        if any(not one["fault"].startswith("skipped") for one in layer["faults"]):
            return True
        if any(layer["behaviour"].values()) or layer["compute-sanitizer"].startswith("exit code 9"):
            return True
    return "do not match" in result.get("plan", {}).get("verified", "")


def table(result: dict[str, Any]) -> str:
    """The result in lines."""
    about = result["machine"]
    lines = [f"{about['gpu']} ({about['architecture']}), driver {about['driver']}, CUDA {about['cuda']}", ""]
    for name, layer in result["layers"].items():
        wrong = [one for one in layer["faults"] if not one["fault"].startswith("skipped")]
        skipped = len(layer["faults"]) - len(wrong)
        lines.append(f"{name}: {layer['checked'] - len(layer['faults'])} right, {len(wrong)} wrong, {skipped} skipped")
        lines += [f"  WRONG {one['kernel']} {one['case']} {one['variant']}: {one['fault']}" for one in wrong[:20]]
        lines += [f"  {check}: {fault or 'right'}" for check, fault in layer["behaviour"].items()]
        lines.append(f"  compute-sanitizer: {layer['compute-sanitizer']}")
        lines += [f"  host: {what}: {cost:.2f} us" for what, cost in layer["host"]["microseconds"].items()]
        lines += [f"  MISSED {miss}" for miss in layer["host"]["misses"]]
        if layer["times"]:
            lines.append(f"  {'case':58} {'us':>9} {'of copy':>8}  rivals, us")
        for one in layer["times"]:
            rivals = ", ".join(
                f"{rival} {time:.1f}" if isinstance(time, float) else f"{rival} -"
                for rival, time in one["rivals"].items()
            )
            missed = "  MISSED: " + "; ".join(one["misses"]) if one["misses"] else ""
            lines.append(f"  {one['case']:58} {one['ours']:9.1f} {one['of_copy']:8.2f}  {rivals}{missed}")
        lines.append("")
    lines += [f"not checked, no case: {name}" for name in result["without cases"]]
    if "plan" in result:
        lines += [f"plan: {key}: {value}" for key, value in result["plan"].items()]
    return "\n".join(lines)


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
    parser.add_argument("--quick", action="store_true", help="no huge cases, float16 times only")
    parser.add_argument("--bundle", help="a bundle whose plan is to be loaded and verified")
    parser.add_argument("--prepare", help="compile all kernels into this cache folder, without a GPU")
    parser.add_argument("--arch", default="sm_90", help="architecture for --prepare")
    parser.add_argument("--smallest", help=argparse.SUPPRESS)  # what compute-sanitizer runs
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
