"""Where the parameters of a model's layer calls came from, read off the exported program.

A claimed layer brings along what was noted when its pack bound it; of any other call, the way from the model's
parameters to the argument stands in the graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from layerport.front.claimed_layers import ClaimedLayer
from layerport.layers.layer import Layer
from layerport.parameters.origins import Origin
from layerport.parameters.steps import Step
from layerport.search.replacing import COMPUTED_FROM

BY_MODEL = "the model"


@dataclass(frozen=True)
class Origins:
    """Where parameters came from.

    calls: by the name of the call in the exported program.  claimed: by the path of the module and the layer's name.
    """

    calls: Mapping[str, tuple[Origin, ...]]
    claimed: Mapping[tuple[str, str], tuple[Origin, ...]]

    def of(self, call: str, module: str, layer: Layer) -> tuple[Origin, ...]:
        """What is known of one call of a layer."""
        return self.claimed.get((module, layer.name)) or self.calls.get(call, ())


def read_origins(program: torch.export.ExportedProgram, model: Any, layers: Iterable[Layer]) -> Origins:
    """What a program says of its calls of these layers.

    model: the module that it was exported from, with the claimed layers in it.
    """
    claimed: dict[tuple[str, str], tuple[Origin, ...]] = {}
    tensors: dict[str, Origin] = {}
    if isinstance(model, torch.nn.Module):
        for path, module in model.named_modules(remove_duplicate=False):
            if isinstance(module, ClaimedLayer):
                claimed[path, module.layer.name] = module.origins
                tensors |= {f"{path}.{one.name}" if path else one.name: one for one in module.origins}
    reader = _Reader(program, tensors)
    operators = {layer.operator: layer for layer in layers}
    calls = {
        node.name: reader.call(node, operators[node.target])
        for node in program.graph.nodes
        if node.op == "call_function" and node.target in operators
    }
    return Origins(calls, claimed)


class _Reader:
    """Follows the arguments of calls back to the parameters of a program."""

    def __init__(self, program: torch.export.ExportedProgram, claimed: Mapping[str, Origin]) -> None:
        signature = program.graph_signature
        self._names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._constants = signature.inputs_to_lifted_tensor_constants
        self._claimed = claimed
        self._order = {node: place for place, node in enumerate(program.graph.nodes)}

    def call(self, node: torch.fx.Node, layer: Layer) -> tuple[Origin, ...]:
        origins = []
        for place, argument in enumerate(layer.signature.arguments):
            if argument not in layer.signature.params:
                continue
            value = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            if isinstance(value, torch.fx.Node) and (found := self._follow(value, f"{layer.name}.{argument.name}")):
                origins.append(replace(found, name=argument.name))
        return tuple(origins)

    def _follow(self, node: torch.fx.Node, path: str) -> Origin | None:
        """Where a value came from; None where it is no constant of the model."""
        left, needed = [node], {node}
        while left:
            new = [one for one in left.pop().all_input_nodes if one not in needed]
            needed.update(new)
            left += new
        sources: list[str] = []
        tied: list[str] = []
        steps: list[Step] = []
        for one in sorted(needed, key=self._order.__getitem__):
            if one.op == "placeholder" and one.name in self._names:
                known = self._claimed.get(self._names[one.name])
                sources += known.sources if known else (self._names[one.name],)
                tied += known.tied if known else ()
                steps += known.steps if known else ()
            elif one.op == "call_function":
                steps.append(_step(one, path))
            elif COMPUTED_FROM in one.meta:
                sources += (self._names[name] for name in one.meta[COMPUTED_FROM] if name in self._names)
            elif one.name not in self._constants:
                return None
        dtype, shape = _type(node)
        return Origin("", dtype, shape, tuple(dict.fromkeys(sources)), tuple(dict.fromkeys(tied)), tuple(steps))


def _step(node: torch.fx.Node, path: str) -> Step:
    dtype, shape = _type(node)
    value = node.meta.get("val")
    size = value.element_size() if isinstance(value, torch.Tensor) and dtype else 0
    action = str(getattr(node.target, "__name__", node.target)).partition(".")[0]  # "transpose" of "transpose.int"
    return Step("torch.Tensor", dtype, shape, math.prod(shape) * size, action.strip("_"), BY_MODEL, path)


def _type(node: torch.fx.Node) -> tuple[str, tuple[int, ...]]:
    """dtype and sizes of a value; what is no tensor, or depends on sizes, has none."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not all(isinstance(size, int) for size in value.shape):
        return "", ()
    return str(value.dtype).removeprefix("torch."), tuple(value.shape)
