"""From a graph of Torch operators to values: each node in both algebras."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from layerport.foreign import torch_private
from layerport.search.algebras import Algebra, Exact, Real, category
from layerport.search.formulas import RULES as FORMULAS
from layerport.search.norms import RULES as NORMS
from layerport.search.rules import RULES, SAME, TAKE_NUMBERS, Call
from layerport.search.values import HOLE, LITERAL, Shape, Value

# What says where and how a tensor lies, not what is in it.
_NO_MEANING = frozenset(
    {"cudnn_enabled", "device", "layout", "pin_memory", "memory_format", "non_blocking", "copy", "implicit"}
)
_RULES = {**RULES, **FORMULAS, **NORMS}
# They take a number, of no shape, for a tensor that is that number everywhere.
_ELEMENTWISE = TAKE_NUMBERS | FORMULAS.keys()
_DIMS = frozenset({"dim", "dims", "dim0", "dim1", "axis"})


@dataclass(frozen=True, eq=False)
class Numbers:
    """What a node gives: a value in each algebra, or a tuple of them where it gives several."""

    exact: Any
    real: Any


class Numbering:
    """Two tables, and graphs numbered in them."""

    def __init__(self) -> None:
        self.exact = Exact()
        self.real = Real()

    def leaf(self, op: str, name: str, meta: Any) -> Numbers:
        """An input or a constant of the model."""
        shape = shape_of(meta)
        return Numbers(self.exact.table.leaf(op, name, shape), self.real.table.leaf(op, name, shape))

    def graph(self, graph: torch.fx.Graph, leaves: Mapping[Node, Numbers]) -> dict[Node, Numbers]:
        """Number every node that gives tensors.  leaves: what the placeholders are, and nodes that are known."""
        numbers: dict[Node, Numbers] = dict(leaves)
        for node in graph.nodes:
            if node not in numbers and node.op in ("call_function", "get_attr", "placeholder"):
                made = self._node(node, numbers)
                if made is not None:
                    numbers[node] = made
        return numbers

    def _node(self, node: Node, numbers: Mapping[Node, Numbers]) -> Numbers | None:
        meta = node.meta.get("val")
        metas = [one for one in (meta if isinstance(meta, (tuple, list)) else [meta]) if isinstance(one, torch.Tensor)]
        if not metas:
            return None
        if node.target is operator.getitem:
            source, index = numbers.get(node.args[0]), node.args[1]  # type: ignore[arg-type]
            if source is not None and isinstance(source.real, tuple):
                return Numbers(source.exact[index], source.real[index])  # type: ignore[index]
        several = isinstance(meta, (tuple, list))
        if not _is_function(node) or (isinstance(meta, (tuple, list)) and len(metas) != len(meta)):
            shape = shape_of(metas[0])
            name = f"{node.target} at {node.name}"
            return Numbers(self.exact.table.unique(name, shape), self.real.table.unique(name, shape))
        return Numbers(
            _numbered(self.exact, node, metas, numbers, "exact", several),
            _numbered(self.real, node, metas, numbers, "real", several),
        )


def _is_function(node: Node) -> bool:
    """Whether a node's outputs follow from its inputs alone."""
    target: Any = node.target
    if not torch_private.is_operator(target):
        return False
    if torch.Tag.nondeterministic_seeded in target.tags and not _is_quiet_dropout(node):
        return False
    return not torch_private.schema(target).is_mutable


def _is_quiet_dropout(node: Node) -> bool:
    arguments = arguments_of(node)
    return "dropout" in str(node.target) and arguments.get("train") is False


def arguments_of(node: Node) -> dict[str, Any]:
    """The arguments of a node by their names in the operator's schema, defaults filled in."""
    schema = torch_private.schema(node.target).arguments
    found = {}
    for place, argument in enumerate(schema):
        if place < len(node.args):
            found[argument.name] = node.args[place]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        else:
            found[argument.name] = argument.default_value
    return found


def _numbered(
    algebra: Algebra, node: Node, metas: list[torch.Tensor], numbers: Mapping[Node, Numbers], which: str, several: bool
) -> Any:
    namespace, _, name = torch_private.schema(node.target).name.partition("::")
    is_known = namespace in ("aten", "prims")
    op = SAME.get(name, name) if is_known else f"{namespace}::{name}"

    def read(value: Any) -> Any:
        if isinstance(value, Node):
            known = numbers.get(value)
            if known is not None:
                found = getattr(known, which)
                if isinstance(found, Value) and found.op == LITERAL and op not in _ELEMENTWISE:
                    meta = value.meta["val"]
                    sizes = (("sizes", shape_of(meta)),)
                    return algebra.operator("expand", (found,), sizes, shape_of(meta), meta.dtype)
                return found
            return size_of(value.meta.get("val"))
        if isinstance(value, (list, tuple)):
            return tuple(map(read, value))
        return value

    arguments = {key: read(value) for key, value in arguments_of(node).items()}
    tensors = list(_nodes_with_tensors(node))
    source = (
        tensors[0].meta["val"].dtype if tensors and isinstance(tensors[0].meta["val"], torch.Tensor) else metas[0].dtype
    )
    shapes, dtypes = tuple(map(shape_of, metas)), tuple(one.dtype for one in metas)
    if is_known and (rule := _RULES.get(op)) is not None:
        result = rule(algebra, Call(op, arguments, source, shapes, dtypes))
        if result is not None:
            return result
    return _operator(algebra, op, arguments, shapes, dtypes, several)


def _operator(
    algebra: Algebra,
    op: str,
    arguments: Mapping[str, Any],
    shapes: tuple[Shape, ...],
    dtypes: tuple[torch.dtype, ...],
    several: bool,
) -> Any:
    args: list[Value] = []
    rank = len(shapes[0])

    def literal(value: Any, name: str) -> Any:
        if isinstance(value, Value):
            args.append(value)
            return HOLE
        if isinstance(value, tuple):
            return tuple(literal(one, name) for one in value)
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int) and name in _DIMS and value >= 0:
            return value - (len(args[0].shape) if args and op != "stack" else rank)
        if isinstance(value, torch.dtype):
            return category(value) if algebra.is_real else str(value)
        if isinstance(value, float):
            return value if algebra.is_real else repr(value)
        return value if isinstance(value, (int, str)) or hasattr(value, "free_symbols") else str(value)

    literals = tuple((name, literal(value, name)) for name, value in arguments.items() if name not in _NO_MEANING)
    if op in ("softmax", "log_softmax"):
        literals = tuple(entry for entry in literals if entry[0] not in ("dtype", "half_to_float"))
    if not several:
        return algebra.operator(op, args, literals, shapes[0], dtypes[0])
    return tuple(
        algebra.operator(op, args, (*literals, ("output", str(place))), shape, dtype)
        for place, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    )


def _nodes_with_tensors(node: Node) -> Iterator[Node]:
    for one in node.all_input_nodes:
        if isinstance(one.meta.get("val"), torch.Tensor):
            yield one


def shape_of(tensor: torch.Tensor) -> Shape:
    """A tensor's shape: ints and sympy expressions."""
    return tuple(map(size_of, tensor.shape))


def size_of(size: Any) -> Any:
    """A size as an int or a sympy expression; anything else as it is."""
    if isinstance(size, torch.SymInt):
        expression = size.node.expr
        return int(expression) if expression.is_number else expression
    return size
