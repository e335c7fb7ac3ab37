"""The whole search: from a decomposed program and layers to a program that calls the layers, and what was found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch.fx import Node

from layerport.layers.layer import Layer
from layerport.search.misses import Miss, line_of, module_of, operators_of, why_absent
from layerport.search.model_values import ModelValues, values_of
from layerport.search.ordering import placeable
from layerport.search.patterns import patterns_of
from layerport.search.places import Finder, Match, Owner, settled
from layerport.search.replacing import replace
from layerport.search.running import Compare, Run, check_numbers, run_program
from layerport.system.records import Record

_MOST_MISSES = 5


@dataclass(frozen=True)
class FoundPlace(Record):
    """A place that a layer has taken.

    module: the path of its module.  line: of the model's code.  grade: "exact" or "formula".  error: see `Match`.
    operators: how many of the model's operators it stands for.
    """

    layer: str
    node: str
    module: str
    line: str
    grade: str
    error: float | None
    operators: int
    attributes: dict[str, Any]
    spelling: str | None


@dataclass
class Findings:
    """What a search gave.

    places: those that were taken.  misses: what came near.  unsearched: why a layer could not be searched for.
    absent: why a layer that was searched for is at none of these places.
    contested: the places that layers of two packs take, with the packs' names.
    """

    places: list[FoundPlace] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    unsearched: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    contested: dict[str, tuple[str, str]] = field(default_factory=dict)

    def add(self, node: str, place: Match) -> None:
        """Note a place that was taken, by the name of the layer's node."""
        self.places.append(_found(node, place))

    def at(self, node: str) -> FoundPlace | None:
        """The place of a node of the edited graph, by its name."""
        return next((place for place in self.places if place.node == node), None)


def search(
    program: torch.export.ExportedProgram,
    layers: Sequence[Layer],
    inputs: Sequence[Any],
    compare: Compare,
    *,
    asked: Collection[str] = (),
    owners: Mapping[Layer, Owner] = MappingProxyType({}),
) -> Findings:
    """Find the layers in a decomposed program and put their operators in; the program's graph is changed.

    inputs: the example's, flat, on which places that are equal only as formulas are compared.  asked: layers that are
    searched though their author says otherwise.  owners: whose they are, where they are of several packs.
    Raises nothing for what it does not find.
    """
    model = values_of(program)
    findings, places = find(model, layers, run_program(model, program, inputs), compare, asked=asked, owners=owners)
    for name, place in replace(model, program, places).items():
        findings.add(name, place)
    return findings


def find(
    model: ModelValues,
    layers: Sequence[Layer],
    run: Run,
    compare: Compare,
    *,
    asked: Collection[str] = (),
    owners: Mapping[Layer, Owner] = MappingProxyType({}),
) -> tuple[Findings, list[Match]]:
    """The places of layers in a graph, which is left as it is, and what came near; see `search`."""
    findings = Findings()
    finder = Finder(model)
    for layer in layers:
        known = patterns_of(layer, asked=layer.name in asked)
        if known.reason is not None:
            findings.unsearched[layer.name] = known.reason
        for pattern in known.patterns:
            finder.find(pattern)
    places, lost = settled(finder.places, list(layers), model.order, owners)
    refused = check_numbers(model, places, run, compare)
    wrong = {id(place) for place, _ in refused}
    places, late = placeable([place for place in places if id(place) not in wrong], model.order)
    refused += [(place, "an output is needed for its own inputs, once other layers are found") for place in late]
    misses = [(place.root, place.layer.name, 1.0, why) for place, why in refused]
    misses += [
        (
            place.root,
            place.layer.name,
            1.0,
            f"{winner.layer.name} takes the same nodes, {winner.size} of them against {place.size}",
        )
        for place, winner in lost
    ]
    findings.contested = _contested(lost, places, owners)
    inside = {node for place in places for node in place.inner}
    findings.misses = _shown(finder.misses, misses, inside)
    told = {place.layer.name for place in places} | {miss.layer for miss in findings.misses} | {*findings.unsearched}
    within = {miss.layer for _, miss in finder.misses}
    operators = operators_of(model.nodes) if len(told) < len(layers) else set()
    for layer in (one for one in layers if one.name not in told):
        farther = finder.farther.get(layer.name)
        patterns = patterns_of(layer, asked=layer.name in asked).patterns
        findings.absent[layer.name] = why_absent(patterns, operators, farther, layer.name in within)
    return findings, places


def _contested(
    lost: Sequence[tuple[Match, Match]], places: Sequence[Match], owners: Mapping[Layer, Owner]
) -> dict[str, tuple[str, str]]:
    """The places that two packs take alike: nothing says which of the two is meant."""
    found = {}
    for place, winner in lost:
        first, second = (owners.get(one.layer, Owner()) for one in (winner, place))
        alike = (first.rank, winner.size) == (second.rank, place.size)
        if alike and first.pack != second.pack and any(winner is one for one in places):
            line = f" ({line_of(winner.root)})" if line_of(winner.root) else ""
            both = f"{winner.layer.name} of pack {first.label} and {place.layer.name} of pack {second.label}"
            found[f"{module_of(winner.root) or '(root)'}{line}: {both}"] = first.pack, second.pack
    return found


def _found(name: str, place: Match) -> FoundPlace:
    spelling = place.pattern.function.__name__ if place.pattern.is_spelling else None
    return FoundPlace(
        place.layer.name,
        name,
        module_of(place.root),
        line_of(place.root),
        place.grade,
        place.error,
        place.size,
        dict(place.attributes),
        spelling,
    )


def _shown(
    near: Sequence[tuple[Node, Miss]], others: Sequence[tuple[Node, str, float, str]], inside: Collection[Node]
) -> list[Miss]:
    """What is told of near misses: none within a place that was taken, the nearest few of each layer."""
    shown = [Miss(layer, module_of(node), line_of(node), share, why) for node, layer, share, why in others]
    by_layer: dict[str, list[Miss]] = {}
    for node, miss in near:
        if node not in inside:
            by_layer.setdefault(miss.layer, []).append(miss)
    for misses in by_layer.values():
        unlike = {(miss.reason, miss.line): miss for miss in reversed(misses)}
        shown += sorted(unlike.values(), key=lambda miss: -miss.share)[:_MOST_MISSES]
    return shown
