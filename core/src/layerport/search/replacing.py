"""Puts a layer's operator into a graph, in the place of the nodes that compute the same."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node

from layerport.foreign import torch_private
from layerport.search.model_values import ModelValues
from layerport.search.ordering import sort
from layerport.search.places import Match, is_input
from layerport.search.running import VIEWS, evaluated

# The operators of found places are named so, which tells them from those that the model's code calls itself.
PREFIX = "layerport_found_"
# Where a constant's node keeps the names of the placeholders that it was computed from.
COMPUTED_FROM = "layerport_computed_from"


def replace(model: ModelValues, program: torch.export.ExportedProgram, places: Sequence[Match]) -> dict[str, Match]:
    """Edit the program's graph in place; the place of each new node by the node's name.

    A parameter that the model computes from its constants alone becomes a constant of its own.
    """
    graph, module = model.graph, program.graph_module
    torch_private.with_own_constants(program)
    now: dict[Node, Node] = {}
    made: dict[str, Match] = {}
    for number, place in enumerate(places):
        arguments: list[Any] = []
        for argument in place.layer.signature.arguments:
            if argument.name in place.attributes:
                value = place.attributes[argument.name]
                arguments.append(list(value) if isinstance(value, tuple) else value)
                continue
            node = place.tensors[argument.name]
            if node is not None and not is_input(place, argument.name) and node.op != "placeholder":
                node = _constant(model, program, node)
            arguments.append(now.get(node, node) if node is not None else None)
        after = max((one for one in arguments if isinstance(one, Node)), key=_position(graph))
        if after.op == "placeholder":
            after = [node for node in graph.nodes if node.op == "placeholder"][-1]
        name = f"{PREFIX}{number}"
        with graph.inserting_after(after):
            layer = graph.create_node("call_function", place.layer.operator, tuple(arguments), name=name)
        layer.meta = _meta(place)
        made[layer.name] = place
        several = len(place.outputs) > 1
        for index, output in enumerate(place.outputs):
            if output is None:
                continue
            new = layer
            if several:
                with graph.inserting_after(layer):
                    new = graph.create_node("call_function", operator.getitem, (layer, index))
                new.meta = {**_meta(place), "val": output.meta["val"]}
            output.replace_all_uses_with(new)
            program.graph_signature.replace_all_uses(output.name, new.name)
            now |= dict.fromkeys(twins(model, place, output), new)
    if made:
        sort(graph)
        _free_of_strides(graph)
    graph.eliminate_dead_code(_is_needed)
    graph.lint()
    module.recompile()
    return made


def twins(model: ModelValues, place: Match, output: Node) -> list[Node]:
    """An output and the inner nodes that give the same, before a view or a cast that changes nothing.

    Another place may take any of them.
    """
    wanted = model.numbers[output].exact
    return [node for node in place.inner if node in model.numbers and model.numbers[node].exact is wanted]


def _is_needed(node: Node) -> bool:
    """Whether a node stays though nothing takes its output."""
    return node.op in ("placeholder", "output") or node.is_impure()


def _free_of_strides(graph: torch.fx.Graph) -> None:
    """Let views copy where they must: a layer's output is contiguous, what was there may have had other strides."""
    for node in graph.nodes:
        if node.op == "call_function" and str(node.target) in VIEWS:
            node.target = torch.ops.aten.reshape.default


def _position(graph: torch.fx.Graph) -> Any:
    order: Mapping[Node, int] = {node: place for place, node in enumerate(graph.nodes)}
    return order.__getitem__


def _constant(model: ModelValues, program: torch.export.ExportedProgram, node: Node) -> Node:
    """A constant with the value of a node that depends on constants only."""
    graph = model.graph
    name = f"{PREFIX}{node.name}"
    known: Node | None = next((one for one in graph.nodes if one.target == name), None)
    if known is not None:
        return known
    program.constants[name] = evaluated(model, [node], {})[node].detach().contiguous()
    with graph.inserting_before(next(iter(graph.nodes))):
        made: Node = graph.create_node("placeholder", name, name=name)
    made.meta = {"val": node.meta["val"], COMPUTED_FROM: sorted(one.name for one in _placeholders(node))}
    argument = TensorArgument(name=made.name)
    program.graph_signature.input_specs.insert(0, InputSpec(InputKind.CONSTANT_TENSOR, argument, name))
    return made


def _placeholders(node: Node) -> set[Node]:
    found: set[Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += one.all_input_nodes
    return {one for one in found if one.op == "placeholder"}


def _meta(place: Match) -> dict[str, Any]:
    kept: dict[str, Any] = {
        key: place.root.meta[key] for key in ("nn_module_stack", "stack_trace") if key in place.root.meta
    }
    values = [None if node is None else node.meta["val"] for node in place.outputs]
    return {**kept, "val": values[0] if len(values) == 1 else tuple(values)}
