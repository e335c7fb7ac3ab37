"""Places of a model's graph that compute what a layer computes: proposed by `matching`, proven here.

The proof: the layer's reference is traced on the very values that were found, and gives the very value that stands in
the graph.  A reference that raises on them, or asks something new of a dynamic size, is no match.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from layerport.foreign import torch_private
from layerport.layers.derivation import any_size
from layerport.layers.layer import Layer
from layerport.parameters.signature import Kind
from layerport.search.matching import Binding, Matcher
from layerport.search.misses import Miss, line_of, module_of, where_parted
from layerport.search.model_values import ModelValues
from layerport.search.numbering import Numbers, shape_of
from layerport.search.patterns import Pattern
from layerport.search.tracing import Trace, is_view_or_cast, trace
from layerport.search.values import PRODUCT, Value

EXACT, FORMULA = "exact", "formula"
_MOST_CHOICES = 12
_NEAR = 0.6
_TENSORS = (torch.Tensor, tuple, list)


@dataclass(eq=False)
class Match:
    """A place where a graph computes what a layer computes.

    root: the node of the output that names the place.  outputs: a node for each output, None where nothing takes it.
    tensors: a node for each tensor argument, None for an absent one.  inner: the nodes between, outputs included.
    grade: EXACT, every bit, or FORMULA, as a formula over the real numbers.  error: how far the numbers on the example
    are apart, None where none were needed.
    """

    pattern: Pattern
    root: Node
    outputs: tuple[Node | None, ...]
    tensors: Mapping[str, Node | None]
    attributes: Mapping[str, Any]
    inner: frozenset[Node]
    grade: str
    error: float | None = None

    @property
    def layer(self) -> Layer:
        """The layer that it is."""
        return self.pattern.layer

    @property
    def size(self) -> int:
        """How many of its nodes compute something."""
        return sum(not is_view_or_cast(node) for node in self.inner)


@dataclass(frozen=True)
class Owner:
    """Whose a layer is.

    rank: how early its pack goes where several answer; of equals none does.  preferred: whether the user has said so.
    """

    pack: str = ""
    label: str = ""
    rank: int = 0
    preferred: bool = False


@dataclass
class Finder:
    """Looks for patterns in one model.

    misses: what came near.  farther: of each layer the nearest of the places that did not.
    """

    model: ModelValues
    places: list[Match] = field(default_factory=list)
    misses: list[tuple[Node, Miss]] = field(default_factory=list)
    farther: dict[str, Miss] = field(default_factory=dict)
    _traces: dict[Any, Trace | str] = field(default_factory=dict)

    def find(self, pattern: Pattern) -> None:
        """Add every proven place of a pattern, and what came near."""
        matcher = Matcher(pattern, self.model)
        root = pattern.outputs[pattern.root]
        ops = {part.op for part in root.parts if part not in pattern.leaves} - {PRODUCT}
        # With a coefficient of 1, which an attribute may be, a product of one factor is that factor.
        alone = ops if root.op == PRODUCT and len(root.parts) == 1 and (root, "number") in pattern.slots else ()
        for value, nodes in self.model.nodes.items():
            fits = value.op == root.op and ops <= {part.op for part in value.parts}
            if value.is_constant or not (fits or value.op in alone):
                continue
            bindings = matcher.at(value)
            reason = None
            for binding in bindings:
                answer = self._proven(pattern, binding, nodes)
                if isinstance(answer, Match):
                    self.places.append(answer)
                    break
                reason = reason or answer
            else:
                self._note(pattern, nodes, matcher, reason)

    def _note(self, pattern: Pattern, nodes: list[Node], matcher: Matcher, reason: str | None) -> None:
        share, name, node = 1.0, pattern.layer.name, nodes[-1]
        if reason is None:
            if matcher.parted is None:
                return
            share, own, other = matcher.parted
            if share < _NEAR and name in self.farther and self.farther[name].share >= share:
                return
            there = self.model.nodes.get(other)
            where = f" ({there[0].name})" if there else ""
            reason = f"{where_parted(own, other)}{where}"
        miss = Miss(name, module_of(node), line_of(node), share, reason)
        if share < _NEAR:
            self.farther[name] = miss
        else:
            self.misses.append((node, miss))

    def _proven(self, pattern: Pattern, binding: Binding, nodes: list[Node]) -> Match | str:
        """A place, or why it is none.  nodes: those of the value that the pattern's root would be."""
        attributes = self._attributes(pattern, binding)
        if isinstance(attributes, str):
            return attributes
        reason = "no nodes give its tensors before it"
        for root in sorted(nodes, key=self.model.order.__getitem__, reverse=True):
            for chosen in self._choices(pattern, binding, root):
                answer = self._with(pattern, root, chosen, attributes)
                if isinstance(answer, Match):
                    return answer
                reason = answer
        return reason

    def _attributes(self, pattern: Pattern, binding: Binding) -> dict[str, Any] | str:
        values: dict[str, Any] = dict(pattern.fixed)
        for argument in pattern.layer.signature.attributes:
            if argument.name in values:
                continue
            number = binding.get(argument.name)
            if number is None:
                return f"its attribute {argument.name} stands nowhere"
            if argument.type == "int":
                if not float(number).is_integer():
                    return f"its attribute {argument.name} would be {number:g}, and is a whole number"
                number = int(number)
            values[argument.name] = self.model.as_written(number)
        order = [argument.name for argument in pattern.layer.signature.attributes]
        return {name: values[name] for name in order}

    def _choices(self, pattern: Pattern, binding: Binding, root: Node) -> Iterator[dict[str, Node]]:
        """For each tensor a node that gives it: the earliest first, so that the place is as large as it can be."""
        order = self.model.order
        choices: list[list[Node]] = []
        names = [argument.name for argument in pattern.leaves.values()]
        for leaf in pattern.leaves:
            nodes = [node for node in self.model.nodes.get(binding[leaf], ()) if order[node] < order[root]]
            choices.append(sorted(nodes, key=order.__getitem__)[:3])
        for chosen in itertools.islice(itertools.product(*choices), _MOST_CHOICES):
            yield dict(zip(names, chosen, strict=True))

    def _with(
        self, pattern: Pattern, root: Node, chosen: Mapping[str, Node], attributes: Mapping[str, Any]
    ) -> Match | str:
        tensors = {argument.name: chosen.get(argument.name) for argument in pattern.layer.signature.tensors}
        outputs = self._traced(pattern.layer, pattern.function, tensors, attributes)
        if isinstance(outputs, str):
            return outputs
        nodes = self._output_nodes(pattern, root, outputs)
        if isinstance(nodes, str):
            return nodes
        found = [(numbers, node) for numbers, node in zip(outputs, nodes, strict=True) if node is not None]
        exact = all(self.model.numbers[node].exact is numbers[0].exact for numbers, node in found)
        if pattern.is_spelling:
            # The spelling's own trace was the proof; the reference must take these values too, and give such tensors.
            reference = self._traced(pattern.layer, pattern.layer.reference, tensors, attributes)
            if isinstance(reference, str):
                return reference
            if [kind for _, kind in reference] != [kind for _, kind in outputs]:
                return "its reference gives another type or shape than the spelling"
            exact = False
        inner = self._inner(nodes, chosen)
        if isinstance(inner, str):
            return inner
        place = Match(pattern, root, nodes, tensors, attributes, inner, EXACT if exact else FORMULA)
        return self._why_not_replaceable(place) or place

    def _output_nodes(
        self, pattern: Pattern, root: Node, outputs: list[tuple[Numbers, Any]]
    ) -> tuple[Node | None, ...] | str:
        nodes: list[Node | None] = []
        for place, (numbers, kind) in enumerate(outputs):
            candidates = [root] if place == pattern.root else list(reversed(self.model.nodes.get(numbers.real, [])))
            fitting = [
                node
                for node in candidates
                if self.model.numbers[node].real is numbers.real and _kind(node.meta["val"]) == kind
            ]
            if place == pattern.root and not fitting:
                own, wanted = _kind(root.meta["val"]), kind
                if self.model.numbers[root].real is not numbers.real:
                    return "the reference, traced on the values that are there, computes something else"
                return f"the reference gives {_kind_text(wanted)} there, the model {_kind_text(own)}"
            nodes.append(fitting[0] if fitting else None)
        return tuple(nodes)

    def _traced(
        self,
        layer: Layer,
        function: Callable[..., Any],
        tensors: Mapping[str, Node | None],
        attributes: Mapping[str, Any],
    ) -> list[tuple[Numbers, Any]] | str:
        """The numbers, dtypes and shapes that a function gives for these nodes, or why it gives none."""
        present = {name: node for name, node in tensors.items() if node is not None}
        absent = dict.fromkeys(name for name, node in tensors.items() if node is None)
        kinds = tuple((name, _kind(node.meta["val"])) for name, node in present.items())
        key = (id(function), kinds, tuple((name, repr(value)) for name, value in attributes.items()))
        made = self._traces.get(key)
        if made is None:
            fakes = {name: node.meta["val"] for name, node in present.items()}
            made = self._traces[key] = _traced_on(function, fakes, {**absent, **attributes})
        if isinstance(made, str):
            return made
        leaves = {node: self.model.numbers[present[name]] for name, node in made.inputs.items()}
        numbers = self.model.numbering.graph(made.graph, leaves)
        return [(numbers[node], _kind(node.meta["val"])) for node in made.outputs]

    def _inner(self, outputs: tuple[Node | None, ...], chosen: Mapping[str, Node]) -> frozenset[Node] | str:
        """The nodes from the tensors to the outputs, or why there are none."""
        # What the model computes twice is one value.
        same = {self.model.numbers[node].exact for node in chosen.values()}
        ends = {node for node, numbers in self.model.numbers.items() if numbers.exact in same}
        found: set[Node] = set()
        waiting = [node for node in outputs if node is not None and node not in ends]
        while waiting:
            node = waiting.pop()
            if node in found or node in ends:
                continue
            if node.op == "placeholder":
                if node in self.model.constants:
                    continue
                return f"it also takes {node.name}"
            found.add(node)
            waiting += [one for one in node.all_input_nodes if isinstance(one.meta.get("val"), _TENSORS)]
        return frozenset(found)

    def _why_not_replaceable(self, place: Match) -> str | None:
        order, outputs = self.model.order, {node for node in place.outputs if node is not None}
        last = max((order[node] for node in place.tensors.values() if node is not None), default=-1)
        stays: dict[Node, Node] = {}
        for node in sorted(place.inner, key=order.__getitem__, reverse=True):
            # A view that stays keeps what it looks at.
            outside = [user for user in node.users if user not in place.inner and "_assert_" not in str(user.target)]
            outside += [stays[user] for user in node.users if user in stays]
            if node in outputs:
                if any(order[user] <= last for user in outside):
                    return f"its output {node.name} is needed before its inputs are there"
                if node in self.model.written:
                    return f"{node.name} is written to an input or a buffer of the model"
            elif outside and not self._is_constant(node):
                if not is_view_or_cast(node):
                    return f"its inner value {node.name} is needed elsewhere, by {outside[0].name}"
                stays[node] = outside[0]
        if any(node in place.inner for node in place.tensors.values()):
            return "one of its tensors is made within it"
        return None

    def _is_constant(self, node: Node) -> bool:
        numbers = self.model.numbers.get(node)
        return numbers is not None and isinstance(numbers.real, Value) and numbers.real.is_constant


def settled(
    places: list[Match], layers: list[Layer], order: Mapping[Node, int], owners: Mapping[Layer, Owner]
) -> tuple[list[Match], list[tuple[Match, Match]]]:
    """The places that are taken, and those that lost with the place that they lost to.

    Of two that overlap the one of the preferred pack is taken, then the one with more nodes, then that of the pack that
    goes first, the one with more views, of the layer declared first, then the exact one.
    """

    def standing(place: Match) -> tuple[Any, ...]:
        owner = owners.get(place.layer, Owner())
        early = owner.rank if owner.preferred else math.inf
        grade = place.grade != EXACT, place.pattern.is_spelling
        return early, -place.size, owner.rank, -len(place.inner), rank[place.layer], *grade, order[place.root]

    rank = {layer: place for place, layer in enumerate(layers)}
    taken: list[Match] = []
    lost: list[tuple[Match, Match]] = []
    owner: dict[Node, Match] = {}
    for place in sorted(places, key=standing):
        own = [node for node in place.inner if node in place.outputs or not is_view_or_cast(node)]
        winner = next((owner[node] for node in own if node in owner), None)
        if winner is None:
            taken.append(place)
            owner.update(dict.fromkeys(own, place))
        elif winner.layer is not place.layer or place.root not in winner.inner:
            lost.append((place, winner))
    return sorted(taken, key=lambda one: order[one.root]), lost


def _traced_on(
    function: Callable[..., Any], fakes: Mapping[str, torch.Tensor], constants: Mapping[str, Any]
) -> Trace | str:
    modes = [mode for fake in fakes.values() if (mode := getattr(fake, "fake_mode", None)) is not None]
    env = modes[0].shape_env if modes else None
    try:
        with any_size():
            if env is None:
                return trace(function, fakes, constants, symbolic=False)
            with torch_private.without_new_guards(env):
                with modes[0]:  # contiguous, as a layer's inputs are: strides may ask for more than the shapes do
                    plain = {name: torch.empty(one.shape, dtype=one.dtype) for name, one in fakes.items()}
                return trace(function, plain, constants, symbolic=True)
    except Exception as error:
        text = str(error).partition("\n")[0]
        if type(error).__name__ == "_ShapeEnvGuardError":
            return f"the reference asks something new of a dynamic size: {text}"
        return f"the reference does not take it: {type(error).__name__}: {text}"


def _kind(tensor: torch.Tensor) -> tuple[torch.dtype, Any]:
    return tensor.dtype, shape_of(tensor)


def _kind_text(kind: tuple[torch.dtype, Any]) -> str:
    return f"{str(kind[0]).removeprefix('torch.')}{list(kind[1])}"


def is_input(place: Match, name: str) -> bool:
    """Whether a tensor argument of the layer is a run-time input."""
    return place.layer.signature[name].kind is Kind.INPUT
