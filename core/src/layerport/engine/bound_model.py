"""The TensorRT-bound copy of a portable model: plugin nodes carry their spec, the others are inlined.

A node of a layer with kernels becomes one `layerport::Kernel`, with the whole field that the plan is to keep, so that
any tool of TensorRT that has the plugin builds the model.  A layer with its own plugin class keeps its name, and its
node names the spec by its key.

Works on ONNX protobuf and leaves external weights where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx.inliner

from layerport.bundle.plugin_spec import PluginSet, PluginSpec
from layerport.engine.plan_fields import write_field
from layerport.engine.plugin import KEY_FIELD, NAME, NAMESPACE, VERSION
from layerport.errors import BuildError
from layerport.parameters.frameworks.onnx_dtypes import from_dtype
from layerport.sizes.tensors import TensorType


def bind_model(model: onnx.ModelProto, plugins: PluginSet, *, all_keep: bool = False) -> onnx.ModelProto:
    """Rewrite the nodes that have a plugin spec and inline every other model-local function, in place.

    The first node that needs a kernel's image keeps it in the plan for all others, or with `all_keep` each its own.
    A parameter of a type that TensorRT lacks comes in as the same bytes under another type: see `PluginSpec.carrier`.
    Raises BuildError where such a one is no constant.
    """
    body_names: set[tuple[str, str, str]] = set()
    functions = {(one.domain, one.name, one.overload) for one in model.functions}
    for node in _nodes(model.graph):
        identity = (node.domain, node.op_type, node.overload)
        if node.name not in plugins.nodes and identity in functions:
            body_names.add(identity)
    bodies = [one for one in model.functions if (one.domain, one.name, one.overload) in body_names]
    del model.functions[:]
    model.functions.extend(bodies)
    if bodies:
        _rename_bodies(model, plugins)
        model = onnx.inliner.inline_local_functions(model)
    _drop_dead(model.graph, set())
    carriers = _Carriers(model.graph)
    kept: set[str] = set()
    for node in [one for one in _nodes(model.graph) if one.name in plugins.nodes]:
        spec = plugins.specs[plugins.nodes[node.name]]
        _bind(model.graph, node, spec, plugins.parameters.get(node.name, {}), carriers)
        told: str | bytes = spec.key
        if spec.plugin_class is None:
            node.domain, node.op_type = NAMESPACE, NAME
            told = write_field(spec, spec.digests - kept)
        for item in (("plugin_namespace", node.domain), ("plugin_version", VERSION), (KEY_FIELD, told)):
            node.attribute.append(onnx.helper.make_attribute(*item))
        kept |= set() if all_keep else spec.digests
    carriers.drop_unused()
    if plugins.nodes:
        model.opset_import.append(onnx.helper.make_opsetid(NAMESPACE, 1))
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


def _drop_dead(graph: onnx.GraphProto, wanted: set[str]) -> None:
    """Take out what no output needs; wanted: values that others need too, to which those of this graph are added.

    A plugin that nobody needs ends TensorRT for RTX 1.7 with a double free.
    """
    wanted |= {value.name for value in graph.output}
    for place in reversed(range(len(graph.node))):
        node = graph.node[place]
        if not wanted.intersection(node.output) - {""}:
            del graph.node[place]
            continue
        wanted.update(node.input)
        for inner in _branches(node):
            _drop_dead(inner, wanted)


class _Carriers:
    """The constants of a model under other types, each made once."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._made: dict[str, str] = {}

    @cached_property
    def _constants(self) -> dict[str, onnx.TensorProto]:
        found = {tensor.name: tensor for inner in _graphs(self._graph) for tensor in inner.initializer}
        for node in _nodes(self._graph):
            if node.op_type == "Constant" and node.domain == "":
                value = [one.t for one in node.attribute if one.name == "value"]
                found |= dict(zip(node.output, value, strict=False))
        return found

    def of(self, name: str, spec: PluginSpec, tensor: TensorType) -> str:
        """The name of a constant's bytes under the carrier of the input that it becomes."""
        if name not in self._made:
            if name not in self._constants:
                raise BuildError(
                    f"layer {spec.layer}: parameter {tensor.name} is {tensor.dtype}, which TensorRT takes as "
                    f"a constant only, and {name} is computed",
                    f"give the layer its weight as it is, or build with --decompose {spec.layer}",
                )
            carrier = spec.carrier(tensor)
            constant = onnx.TensorProto()
            constant.CopyFrom(self._constants[name])
            if not constant.external_data and not constant.HasField("raw_data"):
                constant = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(constant))
            constant.name = self._made[name] = f"{name}.{carrier}"
            constant.data_type = int(from_dtype(carrier))
            self._graph.initializer.append(constant)
        return self._made[name]

    def drop_unused(self) -> None:
        """Take out the constants that only their carriers had a use for."""
        used = {name for node in _nodes(self._graph) for name in node.input}
        used |= {value.name for inner in _graphs(self._graph) for value in inner.output}
        for inner in _graphs(self._graph) if self._made else ():
            kept = [one for one in inner.initializer if one.name not in self._made or one.name in used]
            del inner.initializer[:]
            inner.initializer.extend(kept)


def _bind(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    spec: PluginSpec,
    converted: Mapping[str, np.ndarray[Any, Any]],
    carriers: _Carriers,
) -> None:
    """Give a node the inputs and outputs of its plugin, and take its attributes away."""
    tensors = {one.name: one for one in spec.inputs}
    for name, array in converted.items():
        place = list(tensors).index(name)
        present = [index for index, text in enumerate(node.input) if text]
        constant = onnx.numpy_helper.from_array(array, f"{node.name}.{name}")
        if (carrier := spec.carrier(tensors[name])) is not tensors[name].dtype:
            constant.data_type = int(from_dtype(carrier))
        graph.initializer.append(constant)
        node.input[present[place]] = constant.name
    inputs = [name for name in node.input if name]
    for place, (name, one) in enumerate(zip(inputs, spec.inputs, strict=True)):
        if spec.carrier(one) is not one.dtype and one.name not in converted:
            inputs[place] = carriers.of(name, spec, one)
    del node.input[:]
    node.input.extend(inputs)
    node.output.extend(f"{node.name}.{size.name}" for size in spec.sizes)
    del node.attribute[:]
    node.overload = ""


def _branches(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for inner in _branches(node):
            yield from _graphs(inner)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for inner in _graphs(graph):
        yield from inner.node
