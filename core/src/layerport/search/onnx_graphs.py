"""An ONNX graph as a graph of Torch operators, in which layers are searched as in an exported program.

What an operator does is in `onnx_rules` and `onnx_activations`; one without a rule is a value that equals no other.
Sizes are symbolic as torch.export's are, and what the graph computes of sizes alone is followed in Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.export import Dim
from torch.fx import Node
from torch.fx.node import map_aggregate, map_arg

from layerport.errors import UsageError
from layerport.foreign import torch_private
from layerport.layers.derivation import any_size, quiet_export
from layerport.parameters.conversion import from_standard, to_standard
from layerport.parameters.frameworks.onnx_dtypes import to_dtype
from layerport.parameters.frameworks.torch_dtypes import from_dtype
from layerport.search.model_values import ONNX_NODE, ModelValues
from layerport.search.onnx_activations import ACTIVATION_RULES
from layerport.search.onnx_rules import RULES, Graph, NoRuleError
from layerport.search.onnx_sizes import SIZE_RULES
from layerport.sizes.expressions import parse

_RULES = RULES | ACTIVATION_RULES
_MOST_KNOWN = 64  # elements of a tensor of sizes
_ROOTS = {math.sqrt(number): None for number in range(2, 1025)}
_CLOSED_FORMS = np.array(
    [*_ROOTS, *(1 / root for root in _ROOTS), math.pi, math.sqrt(2 / math.pi), math.e, math.log(2), 1 / 3, 2 / 3]
)


@dataclass(frozen=True, eq=False)
class OnnxValues:
    """The values of an ONNX graph.

    values: the graph's values by the node that gives each.  sizes: of the example, by the symbolic size.
    """

    model: ModelValues
    values: Mapping[Node, ir.Value]


def read_graph(model: ir.Model, sizes: Mapping[str, int]) -> OnnxValues:
    """The values of a model's main graph.  sizes: the example's, by dynamic dim."""
    reader = _Reader(model, sizes)
    for node in model.graph:
        reader.add(node)
    reader.graph.output(tuple(reader.nodes[value] for value in model.graph.outputs if value in reader.nodes))
    values = {node: value for value, node in reader.nodes.items()}
    made = ModelValues(reader.graph, reader.constants, reader.literals, hidden=set(reader.graph.nodes) - set(values))
    return OnnxValues(made, values)


def _opaque(*args: Any) -> Any:
    """Stands for an operator without a rule."""
    raise NotImplementedError


class _Reader(Graph):
    def __init__(self, model: ir.Model, sizes: Mapping[str, int]) -> None:
        self.graph = torch.fx.Graph()
        self.opset = model.opset_imports.get("", 1)
        self.nodes: dict[ir.Value, Node] = {}
        self.known: dict[ir.Value, Any] = {}
        self.constants: dict[Node, torch.Tensor] = {}
        self.literals: dict[Node, float] = {}
        self._given: set[Node] = set()
        self._size_nodes: dict[Any, Node] = {}
        self._current = ""
        self._mode, self._sizes = _symbolic(_dims(model), sizes)
        for value in (*model.graph.inputs, *model.graph.initializers.values()):
            if value.const_value is not None and not value.is_graph_input():
                self._constant(value)
            elif value not in self.nodes:
                self.nodes[value] = self._leaf(str(value.name), self._fake(value))
        self._given.update(self.nodes.values())

    def _leaf(self, name: str, fake: torch.Tensor | None) -> Node:
        node = self.graph.create_node("placeholder", name, name=f"v{len(self.nodes)}")
        node.meta = {} if fake is None else {"val": fake}
        return node

    def _constant(self, value: ir.Value) -> None:
        """A constant, as a placeholder."""
        held = ir.convenience.get_const_tensor(value)
        assert held is not None
        array, _ = to_standard(held, path=str(value.name))
        try:
            tensor: Any = from_standard(array, "torch")
        except Exception:  # a dtype that Torch lacks
            self.nodes[value] = self._leaf(str(value.name), None)
            return
        with self._mode:
            fake = torch.empty(tuple(tensor.shape), dtype=tensor.dtype)
        node = self.nodes[value] = self._leaf(str(value.name), fake)
        self.constants[node] = tensor
        if tensor.dtype in (torch.int64, torch.int32) and tensor.ndim <= 1 and tensor.numel() <= _MOST_KNOWN:
            self.known[value] = tensor.numpy().astype(object)
        if tensor.is_floating_point() and tensor.numel() == 1 and tensor.ndim <= 1:
            self.literals[node] = written(tensor)

    def add(self, node: ir.Node) -> None:
        """Add what a node computes."""
        self._current = str(node.name)
        if node.op_type == "Constant" and ir.convenience.get_const_tensor(node.outputs[0]) is not None:
            self._constant(node.outputs[0])
            self._given.add(self.nodes[node.outputs[0]])
            return
        self._follow_sizes(node)
        made: Any = None
        if node.domain in ("", "ai.onnx") and (rule := _RULES.get(node.op_type)) is not None:
            try:
                made = rule(self, node)
            except Exception:  # it takes the node otherwise than ONNX does, or asks something of a dynamic size
                made = None
        made = made if isinstance(made, (tuple, list)) else (made,)
        for place, value in enumerate(node.outputs):
            one = made[place] if place < len(made) else None
            if one in self._given:  # a node for each value
                one = self.call(torch.ops.aten.alias.default, one)
            self.nodes[value] = one if one is not None and self._fits(one, value) else self._unknown(node, value)
            self._given.add(self.nodes[value])

    def _follow_sizes(self, node: ir.Node) -> None:
        rule = SIZE_RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is not None:
            try:
                result = rule(self, node)
            except Exception:
                return
            if np.size(result) <= _MOST_KNOWN:
                self.known[node.outputs[0]] = np.asarray(result, dtype=object)

    def _fits(self, node: Node, value: ir.Value) -> bool:
        """Whether a node gives what the file says of the value."""
        fake = node.meta["val"]
        if value.dtype is not None and from_dtype(to_dtype(value.dtype)) != fake.dtype:
            return False
        if value.shape is None:
            return True
        sizes = [(mine, one) for mine, one in zip(fake.shape, value.shape, strict=False) if isinstance(one, int)]
        return len(value.shape) == fake.ndim and all(mine == one for mine, one in sizes if isinstance(mine, int))

    def _unknown(self, node: ir.Node, value: ir.Value) -> Node:
        # What only a shape is taken of is not needed by the node that takes it.
        taken = [] if node.op_type in ("Shape", "Size") else [one for one in _taken(node) if one in self.nodes]
        made = self.graph.call_function(_opaque, tuple(self.nodes[one] for one in taken))
        fake = self._fake(value)
        made.meta = {ONNX_NODE: self._current} | ({} if fake is None else {"val": fake})
        return made

    def _fake(self, value: ir.Value) -> torch.Tensor | None:
        """A tensor without data, of a value whose type and rank are known."""
        if value.dtype is None or value.shape is None:
            return None
        try:
            dtype = from_dtype(to_dtype(value.dtype))
        except Exception:
            return None
        with self._mode, any_size():
            shape = [self._sizes[one] for one in _size_names(value)]
            return torch.empty(shape, dtype=dtype)

    # What the rules use

    def call(self, operator: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = map_aggregate((args, kwargs), self._sized)
        fakes, named = map_arg((args, kwargs), lambda node: node.meta["val"])
        env = self._mode.shape_env
        assert env is not None
        with self._mode, any_size(), torch_private.without_new_guards(env), torch.no_grad():
            result = operator(*fakes, **named)
            result = torch.empty(result.shape, dtype=result.dtype)  # strides have no meaning in ONNX
        node = self.graph.call_function(operator, args, kwargs)
        node.meta = {"val": result, ONNX_NODE: self._current}
        return node

    def _sized(self, argument: Any) -> Any:
        """A node for a symbolic size, which gives that of the example where it is run; any other argument as it is."""
        if not isinstance(argument, torch.SymInt):
            return argument
        key = torch_private.expression(argument)
        if key not in self._size_nodes:
            made = self.graph.call_function(int, (torch_private.size_of_example(argument),))
            made.meta = {"val": argument}
            self._size_nodes[key] = made
        return self._size_nodes[key]

    def tensor(self, value: ir.Value | None) -> Node:
        node = None if value is None else self.nodes.get(value)
        if node is None or "val" not in node.meta:
            raise NoRuleError
        return node

    def number(self, value: ir.Value) -> float | None:
        return self.literals.get(self.tensor(value))

    def ints(self, value: ir.Value | None) -> list[Any]:
        if value is None or (known := self.known.get(value)) is None:
            raise NoRuleError
        return [int(one) if isinstance(one, (int, np.integer)) else one for one in np.atleast_1d(known)]


def written(tensor: torch.Tensor) -> float:
    """The number that was written, where this is what its dtype keeps of it: the shortest one, or a closed form."""
    number = float(tensor)
    if not math.isfinite(number) or tensor.dtype == torch.float64:
        return number

    def kept(one: float) -> bool:
        return float(torch.tensor(one, dtype=tensor.dtype)) == number

    texts = (f"{number:.{digits}g}" for digits in range(1, 10))
    short = next((float(text) for text in texts if kept(float(text))), number)
    if tensor.dtype == torch.float32 and len(f"{abs(short):.9g}".replace(".", "").lstrip("0").partition("e")[0]) > 5:
        near = _CLOSED_FORMS[np.float32(_CLOSED_FORMS) == np.float32(abs(number))]
        if len(near):
            return math.copysign(float(near[0]), number)
    return short


def _taken(node: ir.Node) -> Iterator[ir.Value]:
    """What a node takes, graphs within it included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        graphs = {ir.AttributeType.GRAPH: [attribute.value], ir.AttributeType.GRAPHS: attribute.value}
        for graph in graphs.get(attribute.type, ()):
            for inner in graph.all_nodes():
                yield from (value for value in inner.inputs if value is not None)
            yield from graph.outputs


def _size_names(value: ir.Value) -> list[int | str]:
    """The dims of a value; one that the file does not know has a name of its own."""
    assert value.shape is not None
    names: list[int | str] = []
    for axis, dim in enumerate(value.shape):
        text = dim.value if isinstance(dim, ir.SymbolicDim) else dim
        names.append(f"{value.name}.{axis}" if text is None else text)
    return names


def _dims(model: ir.Model) -> list[int | str]:
    """All dims in the main graph."""
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return list(dict.fromkeys(name for value in values if value.shape is not None for name in _size_names(value)))


class _Sizes(torch.nn.Module):
    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return tensors[0] + 1


def _symbolic(dims: Sequence[int | str], sizes: Mapping[str, int]) -> tuple[Any, dict[int | str, Any]]:
    """A symbolic size for each dim that is no number, and the mode in which they have a meaning."""
    names = ["", *(dim for dim in dims if isinstance(dim, str))]  # one at least
    with torch_private.FakeTensorMode(shape_env=torch_private.ShapeEnv()):
        tensors = tuple(torch.empty(_example_size(name, sizes)) for name in names)
    dynamic = (tuple({0: Dim.DYNAMIC} for _ in names),)
    with torch.no_grad(), quiet_export(), any_size(use_duck_shape=False):
        program = torch.export.export(_Sizes(), tensors, dynamic_shapes=dynamic, strict=False)
    fakes = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    found: dict[int | str, Any] = {dim: dim for dim in dims if isinstance(dim, int)}
    return torch_private.without_cache(fakes[0].fake_mode), found | {
        name: fake.shape[0] for name, fake in zip(names, fakes, strict=True)
    }


def _example_size(dim: str, sizes: Mapping[str, int]) -> int:
    try:
        return max(2, parse(dim).evaluate(sizes))
    except UsageError:
        return 2
