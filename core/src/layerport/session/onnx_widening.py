"""A float32 twin of a bfloat16 model, for ONNX Runtime on the CPU, which has next to no bfloat16 arithmetic.

It shows that the model is wired right; it does not show bfloat16's rounding, and whoever uses it says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx

_NARROW, _WIDE = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
# Attributes of standard operators that hold a data type.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype"})


def write_widened(model: Path, folder: Path) -> Path | None:
    """Write the twin of a model file into a folder; None where the model has no bfloat16 at all."""
    loaded = onnx.load(str(model))
    if not _widen_graph(loaded.graph) + sum(_widen_nodes(function.node) for function in loaded.functions):
        return None
    for function in loaded.functions:
        for info in function.value_info:
            _widen_type(info.type)
    path = folder / "widened.onnx"
    onnx.save_model(loaded, str(path), save_as_external_data=True, location="widened.data", size_threshold=1024)
    return path


def _widen_graph(graph: onnx.GraphProto) -> int:
    changed = sum(_widen_tensor(tensor) for tensor in graph.initializer)
    for info in (*graph.input, *graph.output, *graph.value_info):
        changed += _widen_type(info.type)
    return changed + _widen_nodes(graph.node)


def _widen_nodes(nodes: Iterable[onnx.NodeProto]) -> int:
    changed = 0
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                changed += _widen_tensor(attribute.t)
            elif attribute.type == onnx.AttributeProto.GRAPH:
                changed += _widen_graph(attribute.g)
            elif attribute.name in _TYPE_ATTRIBUTES and attribute.i == _NARROW:
                attribute.i = _WIDE
                changed += 1
    return changed


def _widen_tensor(tensor: onnx.TensorProto) -> int:
    if tensor.data_type != _NARROW:
        return 0
    if tensor.raw_data:
        bits = np.frombuffer(tensor.raw_data, dtype=ml_dtypes.bfloat16)
    else:
        bits = np.array(tensor.int32_data, dtype=np.uint16).view(ml_dtypes.bfloat16)
    tensor.raw_data = bits.astype("<f4").tobytes()
    del tensor.int32_data[:]
    tensor.data_type = _WIDE
    return 1


def _widen_type(kind: onnx.TypeProto) -> int:
    if kind.tensor_type.elem_type != _NARROW:
        return 0
    kind.tensor_type.elem_type = _WIDE
    return 1
