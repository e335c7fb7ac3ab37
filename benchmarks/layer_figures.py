"""Errors and resources of the built-in layers, for the tables of the site: writes `results/layer_figures.json`.

An error is that of the kernel, run on the CPU with every case that is not for a GPU only, against the reference in
float64: the greatest |difference| / max(1, |expected|) over finite values.  Resources are read from the cubins.  It
takes minutes, and no GPU.  `--layer` measures only some layers and keeps what the file says of the others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import kernel_resources
import torch

from layerport.packs import host as pack_host
from layerport.testing import Case, LayerCase, run_kernel
from layerport.testing.conformance.subjects import subjects_of

FILE = Path(__file__).parent / "results" / "layer_figures.json"
PACK = "builtin_layers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", action="append", default=[], help="only this one")
    options = parser.parse_args()
    figures = json.loads(FILE.read_text()) if FILE.exists() else {}
    for case in cases(options.layer):
        figures[case.layer.name] = figures_of(case)
        print(case.layer.name, figures[case.layer.name]["errors"], flush=True)
        FILE.write_text(json.dumps(dict(sorted(figures.items())), indent=1) + "\n")


def cases(only: list[str]) -> list[LayerCase]:
    """The cases of the built-in layers, or of those that are named."""
    packs = pack_host.load()
    (pack,) = (one for one in packs if one.info.name == PACK)
    return [one.layer_case for one in subjects_of(packs, pack, only) if one.layer_case is not None]


def figures_of(layer_case: LayerCase) -> dict[str, Any]:
    """The figures of a layer: errors by dtypes and output, registers and bytes of spills by kernel and architecture."""
    errors: dict[str, dict[str, float]] = {}
    for case in layer_case.cases():
        known = errors.setdefault(choice_text(case.choice), {})
        for name, error in errors_of(case).items():
            known[name] = max(known.get(name, 0.0), error)
    entries = kernel_resources.entries_of(layer_case.layer, kernel_resources.ARCHITECTURES)
    kernel_resources.read_all(entries)
    return {"version": layer_case.layer.version, "errors": errors, "resources": resources(entries)}


def errors_of(case: Case) -> dict[str, float]:
    """How far each output of a kernel is from the reference in float64, relative where that is more than 1."""
    tensors = case.tensors()
    got = run_kernel(case.layer, *case.arguments(tensors))
    found = {}
    outputs = got if isinstance(got, tuple) else (got,)
    for name, output, wanted in zip(case.layer.signature.output_names, outputs, case.expected(tensors), strict=True):
        value = torch.from_numpy(output.astype("float64"))
        apart = ((value - wanted).abs() / wanted.abs().clamp_min(1))[wanted.isfinite()]
        found[name] = float(f"{float(apart.max()) if apart.numel() else 0.0:.1e}")
    return found


def resources(entries: list[dict[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """By kernel and architecture the least and the most registers over all dtypes, and the most bytes of spills."""
    found: dict[str, dict[str, list[int]]] = {}
    for entry in entries:
        for architecture, one in entry["architectures"].items():
            if "failure" in one:
                continue
            least, most, spilled = found.setdefault(entry["kernel"], {}).get(architecture, [10**6, 0, 0])
            registers = one["registers"]
            found[entry["kernel"]][architecture] = [
                min(least, registers),
                max(most, registers),
                max(spilled, one["local_bytes"]),
            ]
    return found


def choice_text(choice: Any) -> str:
    """A choice of dtypes as text: "float32", or "x float32, others float16"."""
    if isinstance(choice, str):
        return choice
    return ", ".join(f"{'others' if name == '*' else name} {dtype}" for name, dtype in choice.items())


if __name__ == "__main__":
    main()
