"""The order of a graph in which layers take the places of nodes: whether there is one, and to bring nodes into it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch.fx import Node

from layerport.search.places import Match

Item = TypeVar("Item", bound=Hashable)


def placeable(places: Sequence[Match], order: Mapping[Node, int]) -> tuple[list[Match], list[Match]]:
    """The places that can be taken together, and those that cannot.

    A place with several outputs may give one before its inputs are all there, and need what another makes of that.
    """
    late = [place for place in places if _is_late(place, order)]
    if not late or _sorted(order, _with_places(places)) is not None:
        return list(places), []
    return [place for place in places if place not in late], late


def sort(graph: torch.fx.Graph) -> None:
    """Bring a graph's nodes into an order in which each comes after what it takes; as it was where that can be."""
    nodes = list(graph.nodes)
    ordered = _sorted(nodes, lambda node: node.all_input_nodes)
    assert ordered is not None
    if ordered != nodes:
        for node in ordered[:-1]:
            nodes[-1].prepend(node)


def _is_late(place: Match, order: Mapping[Node, int]) -> bool:
    last = max((order[node] for node in place.tensors.values() if node is not None), default=-1)
    return any(node is not None and order[node] < last for node in place.outputs)


def _with_places(places: Sequence[Match]) -> Callable[[Node], Sequence[Node]]:
    """What nodes take once the places are: an output of a place its inputs."""
    inputs = {
        output: [node for node in place.tensors.values() if node is not None]
        for place in places
        for output in place.outputs
        if output is not None
    }
    return lambda node: inputs.get(node, node.all_input_nodes)


def _sorted(items: Iterable[Item], needs: Callable[[Item], Sequence[Item]]) -> list[Item] | None:
    """The items, each after what it needs; None where there is no such order."""
    done: dict[Item, None] = {}
    begun: set[Item] = set()
    for item in items:
        waiting = [item]
        while waiting:
            one = waiting[-1]
            left = [need for need in needs(one) if need not in done] if one not in done else []
            if not left:
                done[waiting.pop()] = None
            elif one in begun:
                return None
            else:
                begun.add(one)
                waiting += reversed(left)
    return list(done)
