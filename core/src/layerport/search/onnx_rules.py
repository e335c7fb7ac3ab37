"""What ONNX's operators compute, in Torch's.  A rule raises where it does not know: the node is a value of its own.

`onnx_graphs` calls the rules; `onnx_activations` has those of functions of single elements, `onnx_sizes` those for
values that are sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import onnx_ir as ir
import torch
from torch.fx import Node

from layerport.parameters.frameworks.onnx_dtypes import to_dtype
from layerport.parameters.frameworks.torch_dtypes import from_dtype
from layerport.search.rules import into


class NoRuleError(Exception):
    """A node does something that its rule does not cover."""


class Graph(Protocol):
    """What a rule may ask; all but `call` and `number` raise NoRuleError for what is not known.

    known: arrays of sizes by value.  opset: of ONNX's own operators.
    """

    known: dict[ir.Value, Any]
    opset: int

    def call(self, operator: Any, *args: Any, **kwargs: Any) -> Any:
        """The node of an operator on nodes and numbers."""

    def tensor(self, value: ir.Value | None) -> Node:
        """The node of a value."""

    def number(self, value: ir.Value) -> float | None:
        """The number that a value is; None where it is no floating-point constant of one element."""

    def ints(self, value: ir.Value | None) -> list[Any]:
        """The sizes that a value is."""


Rule = Callable[[Graph, ir.Node], Any]
RULES: dict[str, Rule] = {}
aten = torch.ops.aten

_UNARY = {
    "Identity": aten.alias.default,
    "Neg": aten.neg.default,
    "Sqrt": aten.sqrt.default,
    "Reciprocal": aten.reciprocal.default,
    "Exp": aten.exp.default,
    "Log": aten.log.default,
    "Tanh": aten.tanh.default,
    "Erf": aten.erf.default,
    "Sigmoid": aten.sigmoid.default,
    "Relu": aten.relu.default,
    "Abs": aten.abs.default,
    "Sin": aten.sin.default,
    "Cos": aten.cos.default,
    "Floor": aten.floor.default,
    "Ceil": aten.ceil.default,
    "Sign": aten.sign.default,
    "Not": aten.logical_not.default,
}
_BINARY = {
    "Add": aten.add.Tensor,
    "Sub": aten.sub.Tensor,
    "Mul": aten.mul.Tensor,
    "Div": aten.div.Tensor,
    "Equal": aten.eq.Tensor,
    "Less": aten.lt.Tensor,
    "LessOrEqual": aten.le.Tensor,
    "Greater": aten.gt.Tensor,
    "GreaterOrEqual": aten.ge.Tensor,
    "And": aten.logical_and.default,
    "Or": aten.logical_or.default,
    "Max": aten.maximum.default,
    "Min": aten.minimum.default,
}
_PADDINGS = ("zeros", "border", "reflection")  # in Torch's order, as the numbers of the modes
_SAMPLINGS = {"linear": 0, "bilinear": 0, "nearest": 1, "cubic": 2, "bicubic": 2}
_TAKE_NUMBERS = frozenset({"Add", "Sub", "Mul", "Div"})
_REDUCE = {
    "ReduceMean": aten.mean.dim,
    "ReduceSum": aten.sum.dim_IntList,
    "ReduceMax": aten.amax.default,
    "ReduceMin": aten.amin.default,
}


rule = into(RULES)


def attribute_of(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value, the default where it has none."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def float_of(node: ir.Node, name: str, default: float) -> float:
    """An attribute, which is a float of 32 bits in the file, as the number that was written."""
    return float(f"{attribute_of(node, name, default):.7g}")


def input_of(node: ir.Node, place: int) -> ir.Value | None:
    """An input; None where it is left out."""
    return node.inputs[place] if place < len(node.inputs) else None


def sizes_of(node: Node) -> list[Any]:
    """The shape of what a node gives."""
    return list(node.meta["val"].shape)


@rule(*_UNARY)
def _unary(graph: Graph, node: ir.Node) -> Any:
    return graph.call(_UNARY[node.op_type], graph.tensor(node.inputs[0]))


@rule(*_BINARY)
def _binary(graph: Graph, node: ir.Node) -> Any:
    first, second = (graph.tensor(value) for value in node.inputs)  # Max and Min of two only
    operator = _BINARY[node.op_type]
    fakes = first.meta["val"], second.meta["val"]
    if fakes[0].dtype != fakes[1].dtype:
        raise NoRuleError
    if node.op_type == "Div" and not fakes[0].is_floating_point():
        return graph.call(aten.div.Tensor_mode, first, second, rounding_mode="trunc")
    if node.op_type in _TAKE_NUMBERS:
        one, other = (graph.number(value) for value in node.inputs if value is not None)
        if other is not None and one is None and fakes[1].ndim <= fakes[0].ndim:
            return graph.call(operator, first, other)
        if one is not None and other is None and fakes[0].ndim <= fakes[1].ndim and node.op_type in ("Add", "Mul"):
            return graph.call(operator, second, one)
        if one is not None and other is None and fakes[0].ndim <= fakes[1].ndim and node.op_type == "Sub":
            return graph.call(aten.rsub.Scalar, second, one)
    return graph.call(operator, first, second)


@rule("Pow")
def _pow(graph: Graph, node: ir.Node) -> Any:
    base, power = node.inputs
    first, second = graph.tensor(base), graph.tensor(power)
    number: float | None = None
    if power is not None and power in graph.known and len(graph.ints(power)) == 1:
        number = float(graph.ints(power)[0])
    elif power is not None:
        number = graph.number(power)
    if not first.meta["val"].is_floating_point():
        raise NoRuleError
    if number is None or second.meta["val"].ndim > first.meta["val"].ndim:
        return graph.call(aten.pow.Tensor_Tensor, first, second)
    return graph.call(aten.pow.Tensor_Scalar, first, int(number) if number.is_integer() else number)


@rule("Cast", "CastLike")
def _cast(graph: Graph, node: ir.Node) -> Any:
    if node.op_type == "Cast":
        dtype = from_dtype(to_dtype(ir.DataType(attribute_of(node, "to", 0))))
    else:
        dtype = graph.tensor(node.inputs[1]).meta["val"].dtype
    return graph.call(aten.to.dtype, graph.tensor(node.inputs[0]), dtype)


@rule("Softmax", "LogSoftmax")
def _softmax(graph: Graph, node: ir.Node) -> Any:
    x = graph.tensor(node.inputs[0])
    rank = len(sizes_of(x))
    axis = attribute_of(node, "axis", -1 if graph.opset >= 13 else 1) % rank
    if graph.opset < 13 and axis != rank - 1:
        raise NoRuleError  # over all axes from that one on
    return graph.call(aten.softmax.int if node.op_type == "Softmax" else aten.log_softmax.int, x, axis)


@rule(*_REDUCE)
def _reduce(graph: Graph, node: ir.Node) -> Any:
    x = graph.tensor(node.inputs[0])
    axes = _axes(graph, node)
    if not axes:
        if attribute_of(node, "noop_with_empty_axes", 0):
            return graph.call(aten.alias.default, x)
        axes = list(range(len(sizes_of(x))))
    return graph.call(_REDUCE[node.op_type], x, axes, bool(attribute_of(node, "keepdims", 1)))


def _axes(graph: Graph, node: ir.Node) -> list[int]:
    """The axes of an attribute, or of the second input in newer opsets."""
    axes = attribute_of(node, "axes", None)
    value = input_of(node, 1)
    found = list(axes) if axes is not None else [] if value is None else graph.ints(value)
    if not all(isinstance(axis, int) for axis in found):
        raise NoRuleError
    return found


@rule("MatMul")
def _matmul(graph: Graph, node: ir.Node) -> Any:
    return graph.call(aten.matmul.default, *(graph.tensor(value) for value in node.inputs))


@rule("Gemm")
def _gemm(graph: Graph, node: ir.Node) -> Any:
    first, second = (graph.tensor(value) for value in node.inputs[:2])
    if attribute_of(node, "alpha", 1.0) != 1 or attribute_of(node, "beta", 1.0) != 1:
        raise NoRuleError
    if attribute_of(node, "transA", 0):
        first = graph.call(aten.permute.default, first, [1, 0])
    if attribute_of(node, "transB", 0):
        second = graph.call(aten.permute.default, second, [1, 0])
    made = graph.call(aten.matmul.default, first, second)
    bias = input_of(node, 2)
    return made if bias is None else graph.call(aten.add.Tensor, made, graph.tensor(bias))


@rule("GridSample")
def _grid_sample(graph: Graph, node: ir.Node) -> Any:
    mode, padding = attribute_of(node, "mode", "linear"), attribute_of(node, "padding_mode", "zeros")
    if mode not in _SAMPLINGS or padding not in _PADDINGS:
        raise NoRuleError
    x, grid = (graph.tensor(value) for value in node.inputs)
    align = bool(attribute_of(node, "align_corners", 0))
    return graph.call(aten.grid_sampler.default, x, grid, _SAMPLINGS[mode], _PADDINGS.index(padding), align)


@rule("Reshape")
def _reshape(graph: Graph, node: ir.Node) -> Any:
    x = graph.tensor(node.inputs[0])
    shape = graph.ints(node.inputs[1])
    if not attribute_of(node, "allowzero", 0):
        own = sizes_of(x)
        shape = [own[axis] if isinstance(size, int) and size == 0 else size for axis, size in enumerate(shape)]
    return graph.call(aten.reshape.default, x, shape)


@rule("Flatten")
def _flatten(graph: Graph, node: ir.Node) -> Any:
    x = graph.tensor(node.inputs[0])
    shape = sizes_of(x)
    axis = attribute_of(node, "axis", 1)
    axis += len(shape) if axis < 0 else 0
    return graph.call(aten.reshape.default, x, [math.prod(shape[:axis]), math.prod(shape[axis:])])


@rule("Unsqueeze")
def _unsqueeze(graph: Graph, node: ir.Node) -> Any:
    x = graph.tensor(node.inputs[0])
    shape, axes = sizes_of(x), _axes(graph, node)
    rank = len(shape) + len(axes)
    places = {axis % rank for axis in axes}
    left = iter(shape)
    return graph.call(aten.reshape.default, x, [1 if axis in places else next(left) for axis in range(rank)])


@rule("Squeeze")
def _squeeze(graph: Graph, node: ir.Node) -> Any:
    x = graph.tensor(node.inputs[0])
    shape, axes = sizes_of(x), _axes(graph, node)
    if not axes:
        raise NoRuleError
    places = {axis % len(shape) for axis in axes}
    return graph.call(aten.reshape.default, x, [size for axis, size in enumerate(shape) if axis not in places])


@rule("Transpose")
def _transpose(graph: Graph, node: ir.Node) -> Any:
    x = graph.tensor(node.inputs[0])
    order = attribute_of(node, "perm", None)
    return graph.call(aten.permute.default, x, list(reversed(range(len(sizes_of(x)))) if order is None else order))


@rule("Expand")
def _expand(graph: Graph, node: ir.Node) -> Any:
    x = graph.tensor(node.inputs[0])
    own, shape = sizes_of(x), graph.ints(node.inputs[1])
    own = [1] * (len(shape) - len(own)) + own
    shape = [1] * (len(own) - len(shape)) + shape
    target = [mine if isinstance(size, int) and size == 1 else size for mine, size in zip(own, shape, strict=True)]
    return graph.call(aten.expand.default, x, target)


@rule("Slice")
def _slice(graph: Graph, node: ir.Node) -> Any:
    made = graph.tensor(node.inputs[0])
    if len(node.inputs) == 1:
        starts, ends = attribute_of(node, "starts", ()), attribute_of(node, "ends", ())
        axes, steps = attribute_of(node, "axes", range(len(starts))), [1] * len(starts)
    else:
        starts, ends = graph.ints(node.inputs[1]), graph.ints(node.inputs[2])
        axes = range(len(starts)) if input_of(node, 3) is None else graph.ints(node.inputs[3])
        steps = [1] * len(starts) if input_of(node, 4) is None else graph.ints(node.inputs[4])
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not isinstance(step, int) or step < 1:
            raise NoRuleError
        made = graph.call(aten.slice.Tensor, made, axis, start, end, step)
    return made


@rule("Split")
def _split(graph: Graph, node: ir.Node) -> Any:
    x, axis = graph.tensor(node.inputs[0]), attribute_of(node, "axis", 0)
    length = sizes_of(x)[axis]
    sizes = attribute_of(node, "split", None)
    if sizes is None and (value := input_of(node, 1)) is not None:
        sizes = graph.ints(value)
    if sizes is None:
        if not isinstance(length, int):
            raise NoRuleError
        size = -(-length // len(node.outputs))
        sizes = [min(size, length - size * place) for place in range(len(node.outputs))]
    made, start = [], 0
    for size in sizes:
        made.append(graph.call(aten.slice.Tensor, x, axis, start, start + size, 1))
        start = start + size
    return made


@rule("Concat")
def _concat(graph: Graph, node: ir.Node) -> Any:
    return graph.call(aten.cat.default, [graph.tensor(value) for value in node.inputs], attribute_of(node, "axis", 0))


@rule("Gather")
def _gather(graph: Graph, node: ir.Node) -> Any:
    x, places = graph.tensor(node.inputs[0]), graph.tensor(node.inputs[1])
    axis, index = attribute_of(node, "axis", 0), node.inputs[1]
    if index is not None and index in graph.known and places.meta["val"].ndim == 0:
        return graph.call(aten.select.int, x, axis, graph.ints(index)[0])
    if axis == 0 and len(sizes_of(x)) == 2:
        return graph.call(aten.embedding.default, x, places)
    raise NoRuleError


@rule("Where")
def _where(graph: Graph, node: ir.Node) -> Any:
    return graph.call(aten.where.self, *(graph.tensor(value) for value in node.inputs))


@rule("Dropout")
def _dropout(graph: Graph, node: ir.Node) -> Any:
    if input_of(node, 2) is not None or len(node.outputs) > 1 or graph.opset < 7:
        raise NoRuleError
    return graph.call(aten.alias.default, graph.tensor(node.inputs[0]))


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def _norm(graph: Graph, node: ir.Node) -> Any:
    x = graph.tensor(node.inputs[0])
    shape = sizes_of(x)
    axes = shape[attribute_of(node, "axis", -1) % len(shape) :]
    eps = float_of(node, "epsilon", 1e-5)
    weight, bias = (None if value is None else graph.tensor(value) for value in (input_of(node, 1), input_of(node, 2)))
    if len(node.outputs) > 1 or not all(isinstance(size, int) for size in axes):
        raise NoRuleError
    if node.op_type == "LayerNormalization":
        return graph.call(aten.layer_norm.default, x, axes, weight, bias, eps)
    return graph.call(aten.rms_norm.default, x, axes, weight, eps)
