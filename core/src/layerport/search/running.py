"""The numbers at a place: parts of a model's graph run on its example inputs, beside the layer's reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg

from layerport.search.model_values import ModelValues
from layerport.search.places import FORMULA, Match, is_input

# What asks for strides that a value has no more once another operator makes it.
VIEWS = ("aten.view.default", "aten._unsafe_view.default")
Compare = Callable[[Sequence[Any], Sequence[Any]], tuple[float, str | None]]
"""How far the second outputs are from the first, and why that is too much, None where it is not."""


Run = Callable[[Iterable[Node]], Mapping[Node, Any]]
"""What these nodes give on the model's example inputs."""


def run_program(model: ModelValues, program: torch.export.ExportedProgram, inputs: Sequence[Any]) -> Run:
    """Runs a program's graph.  inputs: the example's, flat."""
    return lambda nodes: evaluated(model, nodes, _given(model, program, inputs))


def check_numbers(model: ModelValues, places: Sequence[Match], run: Run, compare: Compare) -> list[tuple[Match, str]]:
    """Run the model up to the places that are equal as formulas only, and note how far each is from its layer.

    Parameters are varied too: ones and zeros, as fresh weights are, show no difference.
    Answers with the places that are too far off, or where the numbers prove nothing, and why.
    """
    asked = [place for place in places if place.grade == FORMULA]
    if not asked:
        return []
    ends = {node for place in asked for node in _leaves(model, place)}
    try:
        with torch.random.fork_rng(devices=[]):
            values = run(ends)
            return [(place, why) for place in asked if (why := _checked(model, place, values, compare)) is not None]
    except Exception as error:
        text = str(error).partition("\n")[0]
        return [(place, f"the graph does not run on the example: {type(error).__name__}: {text}") for place in asked]


def _checked(model: ModelValues, place: Match, values: Mapping[Node, Any], compare: Compare) -> str | None:
    outputs = [node for node in place.outputs if node is not None]
    leaves = _leaves(model, place)
    for is_varied in (False, True):
        # Nothing else that is known: the output of this place may be an input of another one.
        varied = {node: values[node] for node in leaves}
        for name, node in place.tensors.items():
            if is_varied and node is not None and not is_input(place, name):
                changed = _varied(values[node])
                varied |= {one: changed for one in leaves if _are_one(model, one, node)}
        wanted = evaluated(model, outputs, varied)
        arguments = {name: None if node is None else varied[node].detach() for name, node in place.tensors.items()}
        with torch.no_grad():
            answer = place.layer.reference(**arguments, **place.attributes)
        results = answer if isinstance(answer, (tuple, list)) else (answer,)
        got = [one for one, node in zip(results, place.outputs, strict=True) if node is not None]
        expected = [wanted[node] for node in outputs]
        if not any(_tells(one) for one in expected):
            return "its numbers on the example inputs are zero or not finite, and prove nothing"
        error, fault = compare(expected, got)
        place.error = max(error, place.error or 0.0)
        if fault is not None:
            return f"it is the same as a formula, and its numbers differ: {fault}"
    return None


def evaluated(model: ModelValues, wanted: Iterable[Node], known: Mapping[Node, Any]) -> dict[Node, Any]:
    """The values of some nodes, and of those that are known.  known: what need not be computed."""
    values: dict[Node, Any] = {**model.constants, **known}
    needed: set[Node] = set()
    waiting = list(wanted)
    keep = set(waiting)
    while waiting:
        node = waiting.pop()
        if node not in needed and node not in values:
            needed.add(node)
            waiting += node.all_input_nodes
    left = {node: sum(user in needed for user in node.users) for node in needed}
    with torch.no_grad():
        for node in sorted(needed, key=model.order.__getitem__):
            if node.op != "call_function":
                raise ValueError(f"{node.name} is not there")
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            function: Any = torch.ops.aten.reshape.default if str(node.target) in VIEWS else node.target
            values[node] = function(*args, **kwargs)
            for one in node.all_input_nodes:
                if one in left:
                    left[one] -= 1
                    if not left[one] and one not in keep:
                        del values[one]
    return values


def _given(model: ModelValues, program: torch.export.ExportedProgram, inputs: Sequence[Any]) -> dict[Node, Any]:
    places = {node.name: node for node in model.graph.nodes if node.op == "placeholder"}
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    written = {places[spec.arg.name]: spec.target for spec in program.graph_signature.input_specs}
    held = {**program.constants, **program.state_dict}
    given = {node: held[target] for node, target in written.items() if target in held}
    return given | {places[spec.arg.name]: value for spec, value in zip(specs, inputs, strict=True)}


def _leaves(model: ModelValues, place: Match) -> set[Node]:
    """The nodes from which the inner ones of a place are computed."""
    return {one for node in place.inner for one in node.all_input_nodes if one not in place.inner} | {
        node for node in place.tensors.values() if node is not None
    }


def _are_one(model: ModelValues, one: Node, other: Node) -> bool:
    """Whether two nodes give one value, as an axis that is taken away and put back does."""
    return one is other or (one in model.numbers and model.numbers[one].exact is model.numbers[other].exact)


def _varied(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    generator = torch.Generator().manual_seed(0)
    factor = torch.rand(tensor.shape, generator=generator) + 0.5
    offset = torch.randn(tensor.shape, generator=generator) / 4
    return (tensor.detach().float() * factor + offset).to(tensor.dtype)


def _tells(value: Any) -> bool:
    if not isinstance(value, torch.Tensor):
        return False
    return bool((value.isfinite() & (value != 0)).any()) if value.is_floating_point() else bool(value.any())
