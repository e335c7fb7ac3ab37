"""What an ONNX graph computes of sizes alone, in Python: arrays of ints and symbolic sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from layerport.search.onnx_rules import Graph, NoRuleError, Rule, attribute_of, input_of, sizes_of
from layerport.search.rules import into

SIZE_RULES: dict[str, Rule] = {}


rule = into(SIZE_RULES)


@rule("Shape")
def _size_of(graph: Graph, node: ir.Node) -> Any:
    shape = sizes_of(graph.tensor(node.inputs[0]))
    return shape[attribute_of(node, "start", 0) : attribute_of(node, "end", None)]


@rule("Identity", "Cast")
def _size_same(graph: Graph, node: ir.Node) -> Any:
    if node.op_type == "Cast" and ir.DataType(attribute_of(node, "to", 0)) not in (
        ir.DataType.INT64,
        ir.DataType.INT32,
    ):
        raise NoRuleError
    return _known(graph, node, 0)


@rule("Add", "Sub", "Mul", "Div")
def _size_arithmetic(graph: Graph, node: ir.Node) -> Any:
    one, other = _known(graph, node, 0), _known(graph, node, 1)
    if node.op_type == "Div":
        if any(isinstance(size, int) and size <= 0 for size in (*one.flat, *other.flat)):
            raise NoRuleError  # ONNX rounds to zero, Python down
        return one // other
    return one + other if node.op_type == "Add" else one - other if node.op_type == "Sub" else one * other


@rule("Concat")
def _size_concat(graph: Graph, node: ir.Node) -> Any:
    return np.concatenate([np.atleast_1d(_known(graph, node, place)) for place in range(len(node.inputs))])


@rule("Gather")
def _size_gather(graph: Graph, node: ir.Node) -> Any:
    if attribute_of(node, "axis", 0) != 0:
        raise NoRuleError
    return _known(graph, node, 0)[_known(graph, node, 1).astype(np.int64)]


@rule("Unsqueeze", "Squeeze", "Reshape")
def _size_view(graph: Graph, node: ir.Node) -> Any:
    known = _known(graph, node, 0)
    if node.op_type == "Squeeze":
        return known.reshape(())
    return np.atleast_1d(known)


@rule("Slice")
def _size_slice(graph: Graph, node: ir.Node) -> Any:
    (start,), (end,) = graph.ints(node.inputs[1]), graph.ints(node.inputs[2])
    if input_of(node, 4) is not None and graph.ints(node.inputs[4]) != [1]:
        raise NoRuleError
    return _known(graph, node, 0)[start : min(end, 2**31)]


@rule("ReduceProd")
def _size_product(graph: Graph, node: ir.Node) -> Any:
    product = math.prod(_known(graph, node, 0).flat)
    return [product] if attribute_of(node, "keepdims", 1) else np.array(product, dtype=object)


def _known(graph: Graph, node: ir.Node, place: int) -> Any:
    value = node.inputs[place]
    if value is None or value not in graph.known:
        raise NoRuleError
    return graph.known[value]
