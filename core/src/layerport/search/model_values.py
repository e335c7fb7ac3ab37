"""The values of a model's graph: which nodes compute each, and what those are made from."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.export.graph_signature import InputKind
from torch.fx import Node

from layerport.search.numbering import Numbering, Numbers
from layerport.search.tracing import is_view_or_cast
from layerport.search.values import CONSTANT, INPUT, Value

_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_MOST_OPERANDS = 64


class ModelValues:
    """A program's graph, numbered.

    exact, real: the algebras.  numbers: of each node.  order: the place of each node.  nodes: those of a real value.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.program = program
        self.graph = program.graph
        self.numbering = Numbering()
        self.exact, self.real = self.numbering.exact, self.numbering.real
        self.order = {node: place for place, node in enumerate(self.graph.nodes)}
        self.constants = _constants(program)
        self._numbers_of_code = self._literal_tensors()
        leaves = {
            node: self._leaf(node)
            for node in self.graph.nodes
            if node.op == "placeholder" and isinstance(node.meta.get("val"), torch.Tensor)
        }
        self.numbers: dict[Node, Numbers] = self.numbering.graph(self.graph, leaves)
        self.nodes: dict[Value, list[Node]] = {}
        for node, numbers in self.numbers.items():
            if isinstance(numbers.real, Value):
                self.nodes.setdefault(numbers.real, []).append(node)
        self.written = _written(program)
        self._literals = sorted(_literals(self.graph))
        self._operands: dict[Value, tuple[Value, ...]] = {}

    def _leaf(self, node: Node) -> Numbers:
        tensor = self.constants.get(node)
        made = self.numbering.leaf(CONSTANT if tensor is not None else INPUT, node.name, node.meta["val"])
        if tensor is not None and node in self._numbers_of_code and tensor.numel() == 1:
            return Numbers(made.exact, self.real.table.literal(float(tensor)))
        return made

    def _literal_tensors(self) -> set[Node]:
        """The placeholders of numbers that the model's code made tensors of."""
        kinds = {spec.arg.name: spec.kind for spec in self.program.graph_signature.input_specs}
        return {
            node
            for node, tensor in self.constants.items()
            if kinds.get(node.name) is InputKind.CONSTANT_TENSOR and tensor.is_floating_point()
        }

    def as_written(self, number: Any) -> Any:
        """A number as the model's code has it, where it is that one but for its last digits."""
        if not isinstance(number, float):
            return number
        place = bisect.bisect_left(self._literals, number)
        near = [
            one for one in self._literals[max(0, place - 1) : place + 2] if math.isclose(one, number, rel_tol=1e-10)
        ]
        return min(near, key=lambda one: abs(one - number)) if near else number

    def viewed(self, value: Value) -> list[Value]:
        """What the nodes of a view look at, each by itself."""
        found = []
        for node in self.nodes.get(value, ()):
            if is_view_or_cast(node):
                for one in node.all_input_nodes[:1]:
                    numbers = self.numbers.get(one)
                    if numbers is not None and isinstance(numbers.real, Value) and numbers.real is not value:
                        found.append(numbers.real)
        return list(dict.fromkeys(found))

    def operands(self, value: Value) -> tuple[Value, ...]:
        """The values that nodes combine to this sum or product, those within other sums or products included."""
        if value not in self._operands:
            found: dict[Value, None] = {part: None for part in value.parts if part in self.nodes}
            waiting = [*self.nodes.get(value, ())]
            seen: set[Node] = set()
            while waiting and len(found) < _MOST_OPERANDS:
                node = waiting.pop(0)
                if node in seen:
                    continue
                seen.add(node)
                for one in node.all_input_nodes:
                    numbers = self.numbers.get(one)
                    if numbers is None or not isinstance(numbers.real, Value):
                        continue
                    if numbers.real is not value:
                        found[numbers.real] = None
                    if numbers.real.op == value.op:
                        waiting.append(one)
            self._operands[value] = tuple(found)
        return self._operands[value]


def _written(program: torch.export.ExportedProgram) -> set[Node]:
    """The nodes whose values the program writes to its inputs or buffers."""
    signature = program.graph_signature
    names = {*signature.buffers_to_mutate, *signature.user_inputs_to_mutate}
    targets = {node for node in program.graph.nodes if node.name in names}
    copied = [node for node in program.graph.nodes if node.target is torch.ops.aten.copy_.default]
    return targets | {one for node in copied for one in node.all_input_nodes}


def _literals(graph: torch.fx.Graph) -> Iterator[float]:
    """The numbers of a graph."""
    for node in graph.nodes:
        for value in (*node.args, *node.kwargs.values()):
            if isinstance(value, float) and math.isfinite(value):
                yield value


def _constants(program: torch.export.ExportedProgram) -> Mapping[Node, torch.Tensor]:
    """The placeholders that are constants of the model, with their tensors; not the buffers that it writes to."""
    signature = program.graph_signature
    written = {*signature.buffers_to_mutate.values()}
    held: dict[str, Any] = {**program.constants, **program.state_dict}
    by_name = {spec.arg.name: spec for spec in signature.input_specs}
    found = {}
    for node in program.graph.nodes:
        spec = by_name.get(node.name) if node.op == "placeholder" else None
        if spec is None or spec.kind not in _CONSTANTS or spec.target in written:
            continue
        if isinstance(tensor := held.get(str(spec.target)), torch.Tensor):
            found[node] = tensor
    return found
