"""`layerport explain`: which modules are claimed by which layer and why not others; each parameter's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import layerport.front
from layerport.commands.reports import print_lookalikes
from layerport.commands.tables import print_table, say
from layerport.errors import UsageError
from layerport.layers.layer import BoundLayer
from layerport.packs import host as pack_host


def explain(
    source: str,
    layer: str | None = None,
    *,
    inputs: Sequence[str] = (),
    ranges: Sequence[str] = (),
    packs: Sequence[object] = (),
) -> dict[str, Any]:
    """The claims on a model, with the conversion steps of the chosen ones.

    layer: only the claims that involve it.  Raises as `layerport.build` does, up to the export.
    """
    with pack_host.importing_torch():
        claim_layers, open_source = layerport.front.claims.claim_layers, layerport.front.sources.open_source

    loaded = pack_host.load(*packs)
    if layer is not None:
        loaded.layer(layer)
    made = open_source(source, inputs=inputs, ranges=ranges)
    if isinstance(made.model, Path):
        raise UsageError(
            f"nothing is claimed in {source}: the layers of an .onnx file are nodes already",
            "build it; the table of layers says what became of each",
        )
    with pack_host.blamed(loaded):
        claimed = claim_layers(made, loaded)
    rows = []
    for claim in claimed.claims:
        if layer is not None and not any(layer in candidate.layers for candidate in claim.candidates):
            continue
        entry = claim.to_json()
        answer = claim.chosen.answer if claim.chosen else None
        if isinstance(answer, BoundLayer):
            entry["parameters"] = [
                {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
                for name, array in answer.parameters.items()
            ]
            entry["attributes"] = dict(answer.parameters.attributes)
            entry["steps"] = [step._asdict() for step in answer.steps]
        rows.append(entry)
    lookalikes = [one.to_json() for one in claimed.lookalikes if layer in (None, one.layer)]
    return {
        "source": source,
        "claims": rows,
        "lookalikes": lookalikes,
        "failed_packs": {p.info.name: p.failure for p in loaded.failed},
        "dropped_packs": [one.warning for one in claimed.dropped],
    }


def print_explanation(result: Mapping[str, Any]) -> None:
    """Print an `explain`: one row a module, then the way of each parameter."""
    if not result["claims"]:
        say("no installed pack claims a module of this model")
    else:
        print_table(
            ["module", "class", "status", "layers", "why", "evidence"],
            [
                [
                    one["module"] or "(root)",
                    one["class"],
                    one["status"],
                    " + ".join(one["layers"]),
                    one["reason"],
                    one["evidence"]["summary"],
                ]
                for one in result["claims"]
            ],
        )
    for one in result["claims"]:
        for step in one.get("steps", ()):
            result_type = f"{step['dtype']}{list(step['shape'])}" if step["dtype"] else "its next form"
            say(
                f"{one['module'] or '(root)'}: {step['path']}: {step['source_type']} to {result_type}, "
                f"{step['action']} of {step['nbytes']} bytes by {step['by']}"
            )
    print_lookalikes(result["lookalikes"])
    for name, failure in result["failed_packs"].items():
        say(f"pack {name} failed to load: {failure}")
    for warning in result["dropped_packs"]:
        say(f"note: {warning}")
