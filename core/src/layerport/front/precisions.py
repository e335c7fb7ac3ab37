"""The coarsest type through which an output is computed: a model of 16 bits may give its results as float32.

Used by `pipeline`; verification allows what that type does, not what the output's own does.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from layerport.parameters.frameworks.onnx_dtypes import to_dtype

_BITS: dict[ir.DataType | None, int] = {  # of the mantissa
    ir.DataType.DOUBLE: 52,
    ir.DataType.FLOAT: 23,
    ir.DataType.FLOAT16: 10,
    ir.DataType.BFLOAT16: 7,
    ir.DataType.FLOAT8E4M3FN: 3,
    ir.DataType.FLOAT8E5M2: 2,
}
_KINDS = {bits: kind for kind, bits in _BITS.items() if kind is not None}
# Operators that only move or choose values round nothing.
_MOVES = frozenset(
    {
        *("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile", "Slice", "Split"),
        *("Concat", "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Pad", "Where", "Max"),
        *("Min", "Relu", "Neg", "Abs", "Cast", "CastLike", "Dropout", "DepthToSpace", "SpaceToDepth", "ReduceMax"),
        *("ReduceMin", "MaxPool", "TopK", "Compress", "Trilu"),
    }
)


def coarsest_types(model: ir.Model) -> dict[str, str]:
    """By name, for each output that is computed through a coarser type than its own, that type.

    Constants have no part in it: weights that are stored in 16 bits and widened before they are used round nothing.
    """
    through: dict[ir.Value, float] = dict.fromkeys(model.graph.inputs, math.inf)
    for node in model.graph:
        given = [value for value in node.inputs if value is not None and value in through]
        if not given:
            continue
        # A whole number that follows from floats is right or wrong, whatever rounds.
        carried = min((through[value] for value in given if value.dtype in _BITS), default=math.inf)
        for output in node.outputs:
            through[output] = min(carried, _rounds_to(node, output))
    coarse = {}
    for output in model.graph.outputs:
        bits = through.get(output, math.inf)
        if output.name is not None and output.dtype in _BITS and bits < _BITS[output.dtype]:
            coarse[output.name] = to_dtype(_KINDS[int(bits)]).value
    return coarse


def _rounds_to(node: ir.Node, output: ir.Value) -> float:
    """The bits to which a node rounds this output; infinite where it does not round."""
    own = _BITS.get(output.dtype, math.inf)
    if node.domain not in ("", "ai.onnx") or node.op_type not in _MOVES:
        return own
    narrows = node.inputs[0] is not None and own < _BITS.get(node.inputs[0].dtype, 0)
    return own if narrows and node.op_type.startswith("Cast") else math.inf
