"""The values of a model's graph: which nodes compute each, and what those are made from."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch.export.graph_signature import InputKind
from torch.fx import Node

from layerport.search.numbering import Numbering, Numbers
from layerport.search.tracing import is_view_or_cast
from layerport.search.values import CONSTANT, INPUT, Value

_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_MOST_OPERANDS = 64
# Where a node that stands for a part of an ONNX node keeps that one's name.
ONNX_NODE = "layerport_onnx_node"


class ModelValues:
    """A graph of Torch operators, numbered.

    exact, real: the algebras.  numbers: of each node.  order: the place of each node.  nodes: those of a real value.
    constants: the tensors of the placeholders that are none of the model's inputs.  literals: the numbers that such
    tensors are, where the model's code has numbers.  written: nodes whose values go to an input or a buffer.
    hidden: nodes that nothing can take the place of.
    """

    def __init__(
        self,
        graph: torch.fx.Graph,
        constants: Mapping[Node, torch.Tensor],
        literals: Mapping[Node, float],
        *,
        written: Set[Node] = frozenset(),
        hidden: Set[Node] = frozenset(),
    ) -> None:
        self.graph, self.constants, self.written = graph, constants, written
        self.numbering = Numbering()
        self.exact, self.real = self.numbering.exact, self.numbering.real
        self.order = {node: place for place, node in enumerate(self.graph.nodes)}
        self._numbers_of_code = literals
        leaves = {
            node: self._leaf(node)
            for node in self.graph.nodes
            if node.op == "placeholder" and isinstance(node.meta.get("val"), torch.Tensor)
        }
        self.numbers: dict[Node, Numbers] = self.numbering.graph(self.graph, leaves)
        self.nodes: dict[Value, list[Node]] = {}
        for node, numbers in self.numbers.items():
            if isinstance(numbers.real, Value) and node not in hidden:
                self.nodes.setdefault(numbers.real, []).append(node)
        self._literals = sorted(_literals(self.graph))
        self._operands: dict[Value, tuple[Value, ...]] = {}

    def _leaf(self, node: Node) -> Numbers:
        made = self.numbering.leaf(CONSTANT if node in self.constants else INPUT, node.name, node.meta["val"])
        number = self._numbers_of_code.get(node)
        return made if number is None else Numbers(made.exact, self.real.table.literal(number))

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
        """What the nodes of a view look at, each by itself and through others that are views too.

        And what the view within an operator does, which no node stands for.
        """
        found = dict.fromkeys(self.real.table.views.get(value, ()))
        waiting = [*self.nodes.get(value, ())]
        while waiting:
            node = waiting.pop()
            for one in node.all_input_nodes[:1] if is_view_or_cast(node) else ():
                numbers = self.numbers.get(one)
                if numbers is None:
                    continue
                if not isinstance(numbers.real, Value):  # several outputs, as of a split
                    waiting.append(one)
                elif numbers.real is not value and numbers.real not in found:
                    found[numbers.real] = None
                    waiting += self.nodes.get(numbers.real, ())
        return list(found)

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


def values_of(program: torch.export.ExportedProgram) -> ModelValues:
    """The values of an exported program's graph."""
    constants = _constants(program)
    kinds = {spec.arg.name: spec.kind for spec in program.graph_signature.input_specs}
    literals = {
        node: float(tensor)
        for node, tensor in constants.items()
        if kinds[node.name] is InputKind.CONSTANT_TENSOR and tensor.is_floating_point() and tensor.numel() == 1
    }
    return ModelValues(program.graph, constants, literals, written=_written(program))


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
