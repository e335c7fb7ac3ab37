"""The layers in an ONNX graph: each custom node with its layer, tensors, attributes and parameters in standard form."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from layerport.errors import BuildError, UsageError
from layerport.front.origins import Origins
from layerport.layers.layer import BoundLayer, Layer
from layerport.packs.host import Packs
from layerport.parameters.conversion import to_standard
from layerport.parameters.frameworks.onnx_dtypes import to_dtype
from layerport.parameters.origins import Origin
from layerport.parameters.standard_form import Parameters
from layerport.sizes.expressions import Expr, Symbol, parse
from layerport.sizes.tensors import Dim, TensorType

_PLACE = re.compile(r"[A-Za-z_]\w*\.\d+")
VERSION = "layerport.version"
"""Where a node's metadata has the version of its layer."""
# What TensorRT's parser wants of a plugin's node, and no layer.
_OF_TENSORRT = ("plugin_", "tensorrt_")


@dataclass(frozen=True, eq=False)
class LayerNode:
    """A node of the graph that is a layer.

    tensors: the layer's tensor arguments by name, None where an optional one is absent.
    bound: the layer with the constants that come in here.  module: the path of the Torch module it came from.
    call: its name in the exported program, "" in a file of somebody else.
    """

    node: ir.Node
    layer: Layer
    tensors: Mapping[str, TensorType | None]
    bound: BoundLayer
    module: str
    call: str = ""

    @property
    def name(self) -> str:
        """The node's name, unique in the graph."""
        return str(self.node.name)


def layer_nodes(model: ir.Model, packs: Packs, origins: Origins | None = None) -> list[LayerNode]:
    """Every node of the graph that is a layer of a pack, in order.

    origins: where the parameters came from; without it they are the file's own constants.
    Raises PackError or UsageError for a node of a custom domain whose layer no pack provides and no function defines.
    """
    found = []
    taken: set[str] = set()
    for place, node in enumerate(model.graph.all_nodes()):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{place}"
        taken.add(node.name)
        if is_layer_node(node, model, packs):
            found.append(layer_node(node, packs, origins))
    return found


def is_layer_node(node: ir.Node, model: ir.Model, packs: Packs) -> bool:
    """Whether a node must be a layer: it is of a domain of its own, which no function of the model defines."""
    if node.domain in ("", "ai.onnx") or node.domain.startswith(("ai.onnx.", "com.microsoft")):
        return False
    owned = any(layer.namespace == node.domain for layer in packs.layers)
    return owned or node.op_identifier() not in model.functions


def unknown_layers(model: ir.Model, packs: Packs) -> dict[str, int]:
    """How many nodes a file has of each custom operator that it defines itself and no installed pack provides."""
    owned = {layer.namespace for layer in packs.layers}
    found: dict[str, int] = {}
    for node in model.graph.all_nodes():
        if node.op_identifier() in model.functions and node.domain not in owned:
            name = f"{node.domain}::{node.op_type}"
            found[name] = found.get(name, 0) + 1
    return found


def layer_node(node: ir.Node, packs: Packs, origins: Origins | None = None) -> LayerNode:
    """One node as a layer, of an earlier version brought to the one that is there; raises as `layer_nodes` does."""
    version = version_of(node)
    layer = packs.layer(f"{node.domain}::{node.op_type}", version)
    attributes = _attributes(node, layer, version)
    if version != layer.version:
        node.metadata_props[VERSION] = str(layer.version)
        own = {name: value for name, value in attributes.items() if value is not None}
        for name in list(node.attributes):
            if not name.startswith(_OF_TENSORRT):
                del node.attributes[name]
        for attribute in ir.convenience.convert_attributes(onnx_attributes(own)):
            node.attributes[attribute.name] = attribute
    return _layer_node(node, layer, attributes, origins)


def version_of(node: ir.Node) -> int | None:
    """The version of a node's layer; None where the file does not say it."""
    text = node.metadata_props.get(VERSION, "")
    return int(text) if re.fullmatch(r"[1-9]\d{0,8}", text) else None


def onnx_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes in the standard form as ONNX holds them."""
    return {
        name: list(value) if isinstance(value, tuple) else int(value) if isinstance(value, bool) else value
        for name, value in attributes.items()
    }


def _attributes(node: ir.Node, layer: Layer, version: int | None) -> dict[str, Any]:
    """The attributes of a node in the standard form, upgraded where they are of an earlier version.

    Raises UsageError with all faults at once.
    """
    kinds = {argument.name: argument.type for argument in layer.signature.attributes}
    given = {
        name: tuple(value) if isinstance(value := attribute.value, (list, tuple)) else value
        for name, attribute in node.attributes.items()
        if not name.startswith(_OF_TENSORRT)
    }
    path = f"node {node.name}"
    if version is not None and version != layer.version:
        given = layer.upgraded(version, given)
        path += f", upgraded from version {version} of {layer.name}"
    # ONNX has no bool.
    values = {
        name: _as_bool(value) if kinds.get(name, "").startswith("bool") else value for name, value in given.items()
    }
    return layer.signature.bind_attributes(values, path=path)


def _as_bool(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_as_bool, value))
    return bool(value) if type(value) is int and value in (0, 1) else value


def _layer_node(node: ir.Node, layer: Layer, attributes: Mapping[str, Any], origins: Origins | None) -> LayerNode:
    tensors: dict[str, TensorType | None] = {}
    constants: dict[str, Any] = {}
    read: list[Origin] = []
    opaque: dict[str, Expr] = {}
    signature = layer.signature
    if len(node.inputs) > len(signature.tensors):
        raise BuildError(
            f"node {node.name} has {len(node.inputs)} inputs, its layer {layer.name} {len(signature.tensors)} tensors",
            "write the model for the installed version of the pack",
        )
    params = {argument.name for argument in signature.params}
    for place, argument in enumerate(signature.tensors):
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is None:
            tensors[argument.name] = None
            continue
        tensors[argument.name] = _tensor(node, argument.name, value, opaque)
        if argument.name in params and value.const_value is not None:
            array, steps = to_standard(value.const_value, path=f"{layer.name}.{argument.name}")
            constants[argument.name] = array
            read.append(Origin(argument.name, array.dtype.name, array.shape, (str(value.name),), (), steps))
    module, call = _scope(node)
    known = read if origins is None else [one for one in origins.of(call, module, layer) if one.name in constants]
    steps = tuple(step for one in known for step in one.steps)
    bound = BoundLayer(layer, Parameters(constants, attributes), steps=steps, origins=tuple(known))
    return LayerNode(node, layer, tensors, bound, module, call)


def _tensor(node: ir.Node, name: str, value: ir.Value, opaque: dict[str, Expr]) -> TensorType:
    """opaque: dims that are no expressions, each the first place that has it, so that equal ones stay equal."""
    shape = value.shape if value.shape is not None else getattr(value.const_value, "shape", None)
    if value.dtype is None or shape is None:
        raise BuildError(
            f"node {node.name}: the model does not say dtype and rank of input {name}",
            "run onnx.shape_inference on the file first, with the layers' functions in it",
        )
    dims: list[Dim] = []
    for axis, dim in enumerate(shape):
        text = dim.value if isinstance(dim, ir.SymbolicDim) else dim
        if isinstance(text, str):
            try:
                dims.append(parse(text))
            except UsageError:
                dims.append(opaque.setdefault(text, Symbol(f"{name}.{axis}")))
        else:
            dims.append(None if text is None else int(text))
    return TensorType(name, to_dtype(value.dtype), tuple(dims))


def in_model_dims(expression: Expr, node: LayerNode) -> Expr:
    """An expression in the sizes of a node's tensors ("x.0") as one in the model's dims; a size unknown there stays."""

    def size(match: re.Match[str]) -> str:
        name, _, axis = match[0].rpartition(".")
        tensor = node.tensors.get(name)
        dim = tensor.shape[int(axis)] if tensor is not None else None
        return match[0] if dim is None else f"({dim})"

    try:
        return parse(_PLACE.sub(size, expression.text))
    except UsageError:  # two fractions of a size that together have no form
        return expression


def _scope(node: ir.Node) -> tuple[str, str]:
    """The path of the Torch module that a node came from, and the name of its call in the exported program."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    except (ValueError, SyntaxError):
        return "", ""
    return (str(scopes[-2]), str(scopes[-1])) if isinstance(scopes, list) and len(scopes) >= 2 else ("", "")
