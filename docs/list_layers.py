"""Writes a table of each built-in layer, from its code and what was measured: `python docs/list_layers.py`.

The site shows them below `layer_tables.md`; they stand in no file, so that they cannot fall behind.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
from pathlib import Path
from typing import Any

from layerport.dtypes import DType
from layerport.testing import CaseShape, LayerCase

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import layer_figures

NOT_ON_A_GPU = "not measured on a GPU yet"
GPU_FIGURES = Path(__file__).parents[1] / "benchmarks" / "results" / "gpu_figures.json"


def page() -> str:
    """The tables as Markdown."""
    figures = json.loads(layer_figures.FILE.read_text())
    gpu = json.loads(GPU_FIGURES.read_text())
    lines = []
    for case in layer_figures.cases([]):
        lines += ["", f"## {case.layer.short_name}", "", f"| `{case.layer.name}` | version {case.layer.version} |"]
        lines += ["|---|---|", *(f"| {name} | {_cell(said)} |" for name, said in rows(case, figures, gpu))]
    return "\n".join(lines) + "\n"


def rows(case: LayerCase, figures: dict[str, Any], gpu: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of a layer; what was measured of another version of it is left out.

    gpu: what `benchmarks/gpu/gather.py` wrote.
    """
    layer = case.layer
    measured = figures.get(layer.name, {})
    if measured.get("version") != layer.version:
        measured = {}
    rules = {argument.name: " and ".join(map(str, argument.rules)) for _, argument in layer.signature.ruled}
    attributes = [
        f"`{one.name}`{f' ({rules[one.name]})' if one.name in rules else ''}" for one in layer.signature.attributes
    ]
    small = [one for one in case.shapes if not one.gpu_only]
    return [
        ("computes", " ".join((inspect.getdoc(layer.reference) or "").split("\n\n")[0].split())),
        ("a plugin for", layer.purpose or "not stated: TensorRT may do as well alone"),
        ("signature", f"`{layer.signature.schema(layer.short_name)}`"),
        ("attributes", ", ".join(attributes) or "none"),
        ("dtypes", "; ".join(layer_figures.choice_text(one) for one in case.dtypes)),
        (
            "shapes tried",
            f"{len(small)} on the CPU ({'; '.join(one.reason for one in small)}), "
            f"{len(case.shapes) - len(small)} more for a GPU",
        ),
        ("error on the CPU", _errors(measured.get("errors", {}))),
        *((f"registers of `{name}`", _resources(by)) for name, by in measured.get("resources", {}).items()),
        ("bytes", _bytes(case)),
        (
            f"on {gpu['machine']['gpu']}",
            _on_a_gpu(gpu["layers"].get(layer.name, {}), [one.name for one in layer.kernels]),
        ),
        ("time there", _times(gpu["layers"].get(layer.name, {}).get("times", []), layer.short_name)),
    ]


def _errors(errors: dict[str, dict[str, float]]) -> str:
    told = []
    for dtypes, by_output in errors.items():
        one = [f"{error:.1e}" if len(by_output) == 1 else f"{name} {error:.1e}" for name, error in by_output.items()]
        told.append(f"{dtypes}: {', '.join(one)}")
    return "; ".join(told) or "not measured"


def _resources(by_architecture: dict[str, list[int]]) -> str:
    told = []
    for architecture, (least, most, spilled) in by_architecture.items():
        span = str(least) if least == most else f"{least}-{most}"
        told.append(f"{architecture} {span}{f', {spilled} bytes spilled' if spilled else ''}")
    return "; ".join(told)


def _on_a_gpu(found: dict[str, Any], kernels: list[str]) -> str:
    if not found:
        return NOT_ON_A_GPU
    told = []
    for step, what in (("checked", "in Torch"), ("plugins", "by the two plugins, without TensorRT")):
        if one := found.get(step):
            wrong = f", {one['wrong']} wrong" if one["wrong"] else ""
            told.append(f"{one['right']} comparisons with float64 right{wrong} {what}")
    behaviour = found.get("behaviour", {})
    right = [name.replace("_", " ") for name, said in behaviour.items() if said == "right"]
    told += [f"right as well: {', '.join(right)}"] if right else []
    told += [
        f"{name.replace('_', ' ')}: {said}"
        for name, said in behaviour.items()
        if said != "right" and not said.startswith("skipped")
    ]
    told += ["memcheck found nothing"] if found.get("compute-sanitizer", "").startswith("fine") else []
    if later := [f"`{name}`" for name in kernels if name not in found["kernels"]]:
        told.append(f"written since, and not run there: {', '.join(later)}")
    return "; ".join(told)


def _times(records: list[dict[str, Any]], name: str) -> str:
    told = []
    for one in records:
        if "skipped" in one:
            continue
        rivals = ", ".join(f"{rival} {time:,.1f}" for rival, time in one["rivals"].items() if not isinstance(time, str))
        case = one["case"].removeprefix(f"{name}-").replace("_", " ")
        told.append(f"{case}: {one['ours']:,.1f} µs (copy {one['copy']:,.1f}{f', {rivals}' if rivals else ''})")
    return "; ".join(told) or NOT_ON_A_GPU


def _bytes(case: LayerCase) -> str:
    """The least that has to move at the case's largest shape for a GPU: each tensor once."""
    shapes = [one for one in case.shapes if one.gpu_only] or list(case.shapes)
    largest = max(shapes, key=_elements)
    given = [size for size in largest.shapes.values() if size is not None]
    total = sum(math.prod(size) for size in given) * DType.of("float16").itemsize
    return f'at least {total:,} in 16 bits are read for "{largest.reason}", each once'


def _elements(shape: CaseShape) -> int:
    return sum(math.prod(size) for size in shape.shapes.values() if size is not None)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*") if "`" not in text else text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
