"""`layerport explain`: which modules are claimed by which layer and why not others; each parameter's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import layerport.front
from layerport.commands.reports import print_lookalikes
from layerport.commands.tables import as_html, print_table, say
from layerport.layers.layer import BoundLayer
from layerport.packs import host as pack_host
from layerport.sizes.dims import parse_ranges
from layerport.system.records import Record

if TYPE_CHECKING:
    from layerport.front.claim_records import ClaimRecord
    from layerport.front.lookalikes import Lookalike
    from layerport.front.sources import Inputs
    from layerport.packs.records import Rewrite
    from layerport.parameters.signature import Attribute
    from layerport.parameters.steps import Step
    from layerport.search.misses import Miss
    from layerport.search.searching import FoundPlace
    from layerport.sizes.dims import Ranges


@dataclass(frozen=True)
class ExplainedParameter(Record):
    """A parameter of a claimed layer, in the standard form; sources, tied: as in `layerport.Origin`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    tied: tuple[str, ...]


@dataclass(frozen=True)
class ExplainedClaim(Record):
    """A claim, and of one that binds a layer what that holds, and how each parameter came to the standard form."""

    claim: ClaimRecord
    bound: bool
    parameters: tuple[ExplainedParameter, ...] = ()
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The claim's own entries with the others beside them, which a claim that binds no layer lacks."""
        own = super().to_json()
        entry: dict[str, Any] = own.pop("claim")
        return {**entry, **own} if own.pop("bound") else entry


@dataclass(frozen=True)
class Explanation(Record):
    """The claims on a model, the layers found in its graph, what is neither though it looks so, and packs that failed.

    missed: what came near in the graph, and where it parted.  unsearched: why a layer cannot be searched for.
    absent: why a layer is nowhere in the graph.
    notes: each layer that is used instead of another pack's.
    """

    source: str
    claims: tuple[ExplainedClaim, ...]
    lookalikes: tuple[Lookalike, ...]
    found: tuple[FoundPlace, ...]
    missed: tuple[Miss, ...]
    unsearched: Mapping[str, str]
    absent: Mapping[str, str]
    failed_packs: Mapping[str, str]
    dropped_packs: tuple[str, ...]
    notes: tuple[str, ...]

    def _repr_html_(self) -> str:
        return as_html(print_explanation, self)


def explain(
    source: str,
    layer: str | None = None,
    *,
    inputs: Inputs = (),
    ranges: Ranges = (),
    packs: Sequence[object] = (),
    prefer: Sequence[object] = (),
) -> Explanation:
    """The claims on a model, with the conversion steps of the chosen ones, and what is found in its graph.

    layer: only what involves it.  packs, prefer: as in `layerport.build`.  Raises as that does, up to the export.
    """
    with pack_host.importing_torch():
        claim_layers, open_source = layerport.front.claims.claim_layers, layerport.front.sources.open_source
        found_layers = layerport.front.found_layers

    loaded = pack_host.load(*packs, prefer=prefer)
    if layer is not None:
        loaded.layer(layer)
    made = open_source(source, inputs=inputs, ranges=ranges)
    claims: Sequence[Any] = ()
    lookalikes: Sequence[Lookalike] = ()
    dropped: Sequence[Any] = ()
    with pack_host.blamed(loaded):
        if isinstance(made.model, Path):  # nothing is claimed in an .onnx file
            file = layerport.front.onnx_files.read_model(made.model, parse_ranges(ranges), loaded)
            find = found_layers.find_wishes(loaded, find=(), refused=())
            findings = layerport.front.found_in_onnx.find_in_onnx(file, made.kwargs, loaded, find).findings
        else:
            claimed = claim_layers(made, loaded)
            claims, lookalikes, dropped = claimed.claims, claimed.lookalikes, claimed.dropped
            find = found_layers.find_wishes(loaded, find=(), refused=(), dropped=dropped)
            findings = layerport.front.export.find_in(made, claimed.model, find, claimed.outputs)
    found_layers.require_found(findings, find)
    rows = []
    for claim in claims:
        if layer is not None and not any(layer in candidate.layers for candidate in claim.candidates):
            continue
        rows.append(_explained(claim.record(), claim.chosen.answer if claim.chosen else None))
    taken = [(one.layer, one.module) for one in findings.places]
    left = [one.without(taken) for one in lookalikes]
    return Explanation(
        source=source,
        claims=tuple(rows),
        lookalikes=tuple(one for one in left if one is not None and layer in (None, one.layer)),
        found=tuple(one for one in findings.places if layer in (None, one.layer)),
        missed=tuple(one for one in findings.misses if layer in (None, one.layer)),
        unsearched={name: why for name, why in findings.unsearched.items() if layer in (None, name)},
        absent={name: why for name, why in findings.absent.items() if layer in (None, name)},
        failed_packs={one.info.name: str(one.failure) for one in loaded.failed},
        dropped_packs=tuple(one.warning for one in dropped),
        notes=loaded.notes,
    )


def _explained(claim: ClaimRecord, answer: BoundLayer | Rewrite | None) -> ExplainedClaim:
    if not isinstance(answer, BoundLayer):
        return ExplainedClaim(claim, bound=False)
    return ExplainedClaim(
        claim,
        bound=True,
        parameters=tuple(
            ExplainedParameter(one.name, one.dtype, one.shape, one.sources, one.tied) for one in answer.origins
        ),
        attributes=answer.parameters.attributes,
        steps=answer.steps,
    )


def _evidence(claim: ClaimRecord) -> str:
    """The evidence of a claim: that of one that holds with its kind before it."""
    kind = layerport.front.claim_records.EVIDENCE.get(claim.evidence.kind, "")
    return f"{kind}: {claim.evidence.summary}" if claim.status == "claimed" else claim.evidence.summary


def print_explanation(result: Explanation) -> None:
    """Print an `explain`: one row a module, then the way of each parameter."""
    if not result.claims:
        say("no installed pack claims a module of this model")
    else:
        print_table(
            ["module", "class", "status", "layers", "why", "evidence"],
            [
                [
                    one.claim.module or "(root)",
                    one.claim.module_class,
                    one.claim.status,
                    " + ".join(one.claim.layers),
                    one.claim.reason,
                    _evidence(one.claim),
                ]
                for one in result.claims
            ],
        )
    for one in result.claims:
        for parameter in one.parameters:
            tied = f", tied to {', '.join(parameter.tied)}" if parameter.tied else ""
            say(
                f"{one.claim.module or '(root)'}: {parameter.name}: "
                f"from {', '.join(parameter.sources) or 'no tensor of the model'}{tied}"
            )
        for step in one.steps:
            result_type = f"{step.dtype}{list(step.shape)}" if step.dtype else "its next form"
            say(
                f"{one.claim.module or '(root)'}: {step.path}: {step.source_type} to {result_type}, "
                f"{step.action} of {step.nbytes} bytes by {step.by}"
            )
    if result.found:
        print_table(
            ["found", "grade", "module", "line", "attributes"],
            [
                [
                    one.layer,
                    one.grade if one.error is None else f"{one.grade}, off by {one.error:.2g}",
                    one.module or "(root)",
                    one.line,
                    ", ".join(f"{name}={value}" for name, value in one.attributes.items()),
                ]
                for one in result.found
            ],
        )
    for miss in result.missed:
        where = f"{miss.module or '(root)'}{f' ({miss.line})' if miss.line else ''}"
        say(f"near {miss.layer}, {miss.share:.0%} of it: {where}: {miss.reason}")
    for name, why in result.unsearched.items():
        say(f"not searched in the graph: {name}: {why}")
    for name, why in result.absent.items():
        say(f"not found: {name}: {why}")
    print_lookalikes(result.lookalikes)
    for name, failure in result.failed_packs.items():
        say(f"pack {name} failed to load: {failure}")
    for warning in (*result.dropped_packs, *result.notes):
        say(f"note: {warning}")
