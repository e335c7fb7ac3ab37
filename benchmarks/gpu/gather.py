"""Brings the results of several runs on one kind of GPU together, for the tables of the docs.

    python benchmarks/gpu/gather.py first.json second.json > benchmarks/results/gpu_figures.json

Of each layer the last run that made a step counts; what no run made is absent.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from run import COMPARING, counts


def gathered(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the tables show: the machine, and of each layer its comparisons, its behaviour and its times."""
    layers: dict[str, dict[str, Any]] = {}
    for run in runs:
        for name, layer in run["layers"].items():
            kept = layers.setdefault(name, {})
            kept["kernels"] = layer["kernels"]
            for step in COMPARING:
                if step in layer:
                    right, wrong, _ = counts(layer[step])
                    kept[step] = {"right": right, "wrong": wrong, "controls": layer[step]["controls"]}
            if "behaviour" in layer:
                kept["behaviour"] = {name: fault or "right" for name, fault in layer["behaviour"].items()}
            if "compute-sanitizer" in layer:
                kept["compute-sanitizer"] = layer["compute-sanitizer"]
            if "host" in layer:
                kept["host"] = {name: round(cost, 2) for name, cost in layer["host"]["microseconds"].items()}
            if layer.get("times"):
                kept["times"] = [_rounded(one) for one in layer["times"]]
    return {"machine": runs[-1]["machine"], "layers": layers}


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    if "skipped" in record:
        return record
    kept = {name: round(record[name], 2) for name in ("ours", "copy")}
    rivals = {name: round(time, 2) if isinstance(time, float) else time for name, time in record["rivals"].items()}
    kernels = {name: round(time, 2) for name, time in record.get("kernels", {}).items()}
    return {"case": record["case"], "bytes": record["bytes"], **kept, "rivals": rivals, "kernels": kernels}


if __name__ == "__main__":
    print(json.dumps(gathered([json.loads(Path(path).read_text()) for path in sys.argv[1:]]), indent=1))
