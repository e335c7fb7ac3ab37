"""What the nodes of a portable model get for given inputs: ONNX Runtime runs the part of the model before them.

The check of kernels imports it.  Constants are read from the file; the rest is computed once for all nodes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import load_external_data_for_tensor

from layerport.dtypes import DType
from layerport.errors import BuildError, LayerportError
from layerport.parameters.conversion import to_standard
from layerport.parameters.frameworks.onnx_dtypes import to_dtype
from layerport.session.onnx_widening import write_widened
from layerport.session.onnxruntime import first_line, make_session, run_session
from layerport.session.onnxruntime_library import onnxruntime
from layerport.sizes.tensors import TensorType

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class NodeInput:
    """One present input of a node: its value, its dims as the model states them (None where it does not know).

    constant: whether it is a weight of the model.
    """

    array: Array
    dims: tuple[int | str | None, ...]
    constant: bool


def node_inputs(
    model: Path, inputs: Mapping[str, Array], nodes: Collection[str]
) -> dict[str, tuple[NodeInput, ...] | None]:
    """The inputs of these nodes, those that are left away skipped, for these inputs of the model.

    None for a node inside a loop or branch, whose values are not the same each time.  Raises BuildError where ONNX
    Runtime does not run the model.
    """
    try:
        return _node_inputs(model, inputs, nodes)
    except LayerportError:
        raise
    except Exception as error:  # a damaged model has as many as there are ways to damage it
        raise BuildError(
            f"{model} cannot be run up to its layers: {type(error).__name__}: {error}", "build the bundle again"
        ) from error


def _node_inputs(
    model: Path, inputs: Mapping[str, Array], nodes: Collection[str]
) -> dict[str, tuple[NodeInput, ...] | None]:
    proto = onnx.load(str(model), load_external_data=False)
    found = {node.name: [name for name in node.input if name] for node in proto.graph.node if node.name in nodes}
    weights = {one.name: one for one in proto.graph.initializer}
    ports = {one.name for one in proto.graph.input}
    wanted = dict.fromkeys(name for names in found.values() for name in names)
    infos = {one.name: one.type.tensor_type for one in (*proto.graph.input, *proto.graph.value_info)}
    inner = [name for name in wanted if name not in weights and name not in ports]
    types = {name: infos[name].elem_type for name in inner if name in infos and infos[name].elem_type}
    computed = _run(model, proto, inputs, inner, types)
    values: dict[str, NodeInput] = {}
    for name in wanted:
        if name in weights:
            array = _weight(weights[name], model.parent)
            values[name] = NodeInput(array, tuple(array.shape), True)
            continue
        array = computed[name] if name in computed else inputs[name]
        values[name] = NodeInput(array, _dims(infos.get(name), array.ndim), False)
    return {node: tuple(values[name] for name in found[node]) if node in found else None for node in nodes}


def _weight(tensor: onnx.TensorProto, folder: Path) -> Array:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return to_standard(tensor, path=tensor.name).array


def _dims(info: Any, rank: int) -> tuple[int | str | None, ...]:
    if info is None or not info.HasField("shape") or len(info.shape.dim) != rank:
        return (None,) * rank
    return tuple(int(dim.dim_value) if dim.HasField("dim_value") else (dim.dim_param or None) for dim in info.shape.dim)


def _run(
    model: Path, proto: onnx.ModelProto, inputs: Mapping[str, Array], names: list[str], types: Mapping[str, int]
) -> dict[str, Array]:
    if not names:
        return {}
    try:
        return _outputs(proto, model.parent, inputs, names, types)
    except Exception as first:
        error = first
        with tempfile.TemporaryDirectory() as folder:
            # ONNX Runtime lacks much of bfloat16 arithmetic.
            twin = write_widened(model, Path(folder))
            try:
                if twin is not None:
                    widened = onnx.load(str(twin), load_external_data=False)
                    return _outputs(widened, twin.parent, inputs, names, types)
            except Exception as second:
                error = second
        raise BuildError(
            f"ONNX Runtime does not run the model up to its layers: {first_line(error)}",
            "see whether ONNX Runtime runs model.onnx at all",
        ) from error


def _outputs(
    proto: onnx.ModelProto,
    folder: Path,
    inputs: Mapping[str, Array],
    names: list[str],
    types: Mapping[str, int],
) -> dict[str, Array]:
    part = onnx.ModelProto()
    part.CopyFrom(proto)
    del part.graph.output[:]
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = make_session(part.SerializeToString(), options)
    ports = [
        TensorType(one.name, to_dtype(types[one.name]) if one.name in types else _dtype_of(one.type), ())
        for one in session.get_outputs()
    ]
    return run_session(session, inputs, ports)


def _dtype_of(kind: str) -> DType:
    """The dtype of ONNX Runtime's `tensor(float)`."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return to_dtype(onnx.TensorProto.DataType.Value(name.upper()))
