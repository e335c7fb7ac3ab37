"""What ONNX's functions of single elements compute, in Torch's: rules as those of `onnx_rules`, which it completes."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from layerport.search.onnx_rules import Graph, NoRuleError, Rule, aten, attribute_of, float_of, input_of
from layerport.search.rules import into

ACTIVATION_RULES: dict[str, Rule] = {}
rule = into(ACTIVATION_RULES)
_ALIKE = {
    "Mish": aten.mish.default,
    "HardSwish": aten.hardswish.default,
    "Softplus": aten.softplus.default,
}


@rule(*_ALIKE)
def _alike(graph: Graph, node: ir.Node) -> Any:
    return graph.call(_ALIKE[node.op_type], graph.tensor(node.inputs[0]))


@rule("Softsign")
def _softsign(graph: Graph, node: ir.Node) -> Any:
    x = graph.tensor(node.inputs[0])
    return graph.call(aten.div.Tensor, x, graph.call(aten.add.Tensor, graph.call(aten.abs.default, x), 1.0))


@rule("Gelu")
def _gelu(graph: Graph, node: ir.Node) -> Any:
    kind = attribute_of(node, "approximate", "none")
    return graph.call(aten.gelu.default, graph.tensor(node.inputs[0]), approximate=kind)


@rule("Swish")
def _swish(graph: Graph, node: ir.Node) -> Any:
    x, alpha = graph.tensor(node.inputs[0]), float_of(node, "alpha", 1.0)
    if alpha == 1:
        return graph.call(aten.silu.default, x)
    return graph.call(aten.mul.Tensor, x, graph.call(aten.sigmoid.default, graph.call(aten.mul.Tensor, x, alpha)))


@rule("LeakyRelu")
def _leaky_relu(graph: Graph, node: ir.Node) -> Any:
    return graph.call(aten.leaky_relu.default, graph.tensor(node.inputs[0]), float_of(node, "alpha", 0.01))


@rule("PRelu")
def _prelu(graph: Graph, node: ir.Node) -> Any:
    x, slope = (graph.tensor(value) for value in node.inputs)
    return graph.call(aten.where.self, graph.call(aten.gt.Scalar, x, 0), x, graph.call(aten.mul.Tensor, slope, x))


@rule("Elu")
def _elu(graph: Graph, node: ir.Node) -> Any:
    return graph.call(aten.elu.default, graph.tensor(node.inputs[0]), float_of(node, "alpha", 1.0))


@rule("Selu")
def _selu(graph: Graph, node: ir.Node) -> Any:
    x = graph.tensor(node.inputs[0])
    alpha, gamma = float_of(node, "alpha", 1.673263), float_of(node, "gamma", 1.050701)
    if (alpha, gamma) == (1.673263, 1.050701):  # Torch's constants, to the last bit of 32
        return graph.call(aten.selu.default, x)
    return graph.call(aten.elu.default, x, alpha, gamma)


@rule("Celu")
def _celu(graph: Graph, node: ir.Node) -> Any:
    return graph.call(aten.celu.default, graph.tensor(node.inputs[0]), float_of(node, "alpha", 1.0))


@rule("HardSigmoid")
def _hard_sigmoid(graph: Graph, node: ir.Node) -> Any:
    x, alpha, beta = graph.tensor(node.inputs[0]), float_of(node, "alpha", 0.2), float_of(node, "beta", 0.5)
    if (alpha, beta) == (0.1666667, 0.5):
        return graph.call(aten.hardsigmoid.default, x)
    line = graph.call(aten.add.Tensor, graph.call(aten.mul.Tensor, x, alpha), beta)
    return graph.call(aten.clamp.default, line, 0, 1)


@rule("ThresholdedRelu")
def _thresholded_relu(graph: Graph, node: ir.Node) -> Any:
    return graph.call(aten.threshold.default, graph.tensor(node.inputs[0]), float_of(node, "alpha", 1.0), 0)


@rule("Shrink")
def _shrink(graph: Graph, node: ir.Node) -> Any:
    bound, bias = float_of(node, "lambd", 0.5), float_of(node, "bias", 0.0)
    if bias not in (0, bound):
        raise NoRuleError
    shrink = aten.softshrink.default if bias else aten.hardshrink.default
    return graph.call(shrink, graph.tensor(node.inputs[0]), bound)


@rule("Clip")
def _clip(graph: Graph, node: ir.Node) -> Any:
    if "min" in node.attributes or "max" in node.attributes:
        limits: list[Any] = [attribute_of(node, "min", None), attribute_of(node, "max", None)]
    else:
        ends = [input_of(node, place) for place in (1, 2)]
        limits = [None if value is None else graph.number(value) for value in ends]
        if any(value is not None and limit is None for value, limit in zip(ends, limits, strict=True)):
            raise NoRuleError
    return graph.call(aten.clamp.default, graph.tensor(node.inputs[0]), *limits)
