"""Layers that nobody claimed, found in the exported graph by their references: which are searched, and when.

The search runs on the graph that torch.onnx decomposes, with the operators that torch.onnx asks for.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from layerport.errors import UsageError
from layerport.foreign.torch_private import pytree
from layerport.front.comparison import compare
from layerport.front.complex_numbers import with_real_pairs
from layerport.front.copies import copy_of_inputs
from layerport.front.sources import Source
from layerport.layers.layer import Layer
from layerport.packs.discovery import switched_on
from layerport.packs.host import DroppedPack, Pack, Packs
from layerport.packs.ownership import how_to_choose
from layerport.search.places import Owner
from layerport.search.searching import Findings, search

FIND_VARIABLE = "LAYERPORT_FIND"


@dataclass(frozen=True)
class FindWishes:
    """What is searched for.

    layers: in the order in which their packs declare them.  required: names of layers that must be found, which are
    searched whatever their author says.  owners: whose the layers are.
    """

    layers: tuple[Layer, ...] = ()
    required: tuple[str, ...] = ()
    owners: Mapping[Layer, Owner] = field(default_factory=dict)


def find_wishes(
    packs: Packs, *, find: Sequence[str], refused: Collection[str], dropped: Sequence[DroppedPack] = ()
) -> FindWishes:
    """What a build searches for: every layer of the packs, none with LAYERPORT_FIND=0, and those of `find` anyway.

    refused: layers that are left out.  dropped: packs whose hooks failed, whose layers are left out too.
    Raises UsageError for a layer that is wanted and refused, or that no pack provides.
    """
    for name in (*find, *refused):
        packs.layer(name)
    if both := sorted(set(find) & set(refused)):
        raise UsageError(f"{', '.join(both)} is to be found, and is refused", "leave one of the two options away")
    everything = switched_on(FIND_VARIABLE, {FIND_VARIABLE: os.environ.get(FIND_VARIABLE) or "1"})
    out = {layer.name for one in dropped for layer in one.pack.layers} | set(refused)
    layers = [layer for layer in packs.layers if layer.name not in out and (everything or layer.name in find)]
    return FindWishes(tuple(layers), tuple(find), {layer: _owner(packs, packs.owner(layer)) for layer in layers})


def _owner(packs: Packs, pack: Pack) -> Owner:
    return Owner(pack.info.address, pack.info.label, packs.rank(pack), packs.is_preferred(pack))


class SearchedError(Exception):
    """Ends an export behind the search."""


def searched(
    program: torch.export.ExportedProgram, source: Source, wishes: FindWishes, *, only: bool = False
) -> tuple[torch.export.ExportedProgram, Callable[[], Findings]]:
    """A program that puts the layers in as soon as it is decomposed, and what that found, to be asked afterwards.

    only: whether decomposing it ends with SearchedError, for who wants to know what would be found.
    """
    made = copy.copy(program)
    findings: list[Findings] = []

    def decomposed(*args: Any, **kwargs: Any) -> torch.export.ExportedProgram:
        result: torch.export.ExportedProgram = program.run_decompositions(*args, **kwargs)
        with_real_pairs(result)
        if not wishes.layers:
            return result
        inputs = pytree.tree_leaves(copy_of_inputs((source.args, dict(source.kwargs))))
        findings.append(search(result, wishes.layers, inputs, compared, asked=wishes.required, owners=wishes.owners))
        if only:
            raise SearchedError
        return result

    made.run_decompositions = decomposed
    return made, lambda: findings[-1] if findings else Findings()


def require_found(findings: Findings, wishes: FindWishes) -> None:
    """Raise UsageError where a layer that must be found is nowhere, or where two packs' layers are at one place."""
    if findings.contested:
        packs = next(iter(findings.contested.values()))
        raise UsageError(
            f"layers of two packs are found at the same place ({len(findings.contested)} such)",
            f"{how_to_choose(packs[0])}, or leave one out with --no-find LAYER",
            faults=list(findings.contested)[:20],
        )
    found = {place.layer for place in findings.places}
    if lacking := [name for name in wishes.required if name not in found]:
        near = [f"{one.layer}, {one.module or 'the root'}: {one.reason}" for one in findings.misses]
        near += [f"{name} cannot be searched for: {why}" for name, why in findings.unsearched.items()]
        near += [f"{name} is nowhere: {why}" for name, why in findings.absent.items()]
        raise UsageError(
            f"not found in the model: {', '.join(lacking)}",
            "leave --find away, or mend the reference, or add a @layer.spelling",
            faults=[line for line in near if any(line.startswith(name) for name in lacking)][:20],
        )


def compared(expected: Sequence[Any], got: Sequence[Any]) -> tuple[float, str | None]:
    """How far a layer's outputs are from the model's, and why that is too much, None where it is not."""
    difference = compare(expected, got)
    return difference.error, difference.fault
