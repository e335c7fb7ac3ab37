"""The TensorRT-bound copy of a portable model: plugin nodes carry their spec's key, the others are inlined.

Works on ONNX protobuf and leaves external weights where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import onnx.inliner

from layerport.engine.plugin import KEY_FIELD, VERSION
from layerport.plugin_spec import PluginSet


def bind_model(model: onnx.ModelProto, plugins: PluginSet) -> onnx.ModelProto:
    """Rewrite the nodes that have a plugin spec and inline every other model-local function, in place."""
    body_names: set[tuple[str, str, str]] = set()
    functions = {(one.domain, one.name, one.overload) for one in model.functions}
    plugin_nodes = []
    for node in _nodes(model.graph):
        if node.name in plugins.nodes:
            plugin_nodes.append(node)
        elif (node.domain, node.op_type, node.overload) in functions:
            body_names.add((node.domain, node.op_type, node.overload))
    kept = [one for one in model.functions if (one.domain, one.name, one.overload) in body_names]
    del model.functions[:]
    model.functions.extend(kept)
    if kept:
        _rename_bodies(model, plugins)
        model = onnx.inliner.inline_local_functions(model)
        plugin_nodes = [node for node in _nodes(model.graph) if node.name in plugins.nodes]
    for node in plugin_nodes:
        _bind(model.graph, node, plugins)
    return model


def _rename_bodies(model: onnx.ModelProto, plugins: PluginSet) -> None:
    """A body that is inlined must not be taken for the plugin of the same name at another node."""
    for node in _nodes(model.graph):
        if node.name not in plugins.nodes and any(
            (one.domain, one.name, one.overload) == (node.domain, node.op_type, node.overload)
            for one in model.functions
        ):
            node.op_type += "_body"
    for function in model.functions:
        function.name += "_body"


def _bind(graph: onnx.GraphProto, node: onnx.NodeProto, plugins: PluginSet) -> None:
    spec = plugins.specs[plugins.nodes[node.name]]
    for name, array in plugins.parameters.get(node.name, {}).items():
        place = [slot.name for slot in spec.inputs].index(name)
        present = [index for index, text in enumerate(node.input) if text]
        tensor = onnx.TensorProto(
            name=f"{node.name}.{name}", data_type=_data_type(array), dims=array.shape, raw_data=array.tobytes()
        )
        graph.initializer.append(tensor)
        node.input[present[place]] = tensor.name
    inputs = [name for name in node.input if name]
    del node.input[:]
    node.input.extend(inputs)
    node.output.extend(f"{node.name}.{size.name}" for size in spec.sizes)
    del node.attribute[:]
    node.overload = ""
    for key, value in (("plugin_namespace", spec.namespace), ("plugin_version", VERSION), (KEY_FIELD, spec.key)):
        node.attribute.append(onnx.helper.make_attribute(key, value))


def _data_type(array: Any) -> int:
    from layerport.adapters.onnx_dtypes import from_dtype
    from layerport.dtypes import DType

    return int(from_dtype(DType(array.dtype.name)))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)
            for inner in attribute.graphs:
                yield from _nodes(inner)
