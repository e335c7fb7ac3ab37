"""The portable body of each layer: its reference as an ONNX model-local function, one overload for each distinct body."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch

from layerport.adapters.torch_shapes import Derivation, TensorShape, derive
from layerport.errors import BuildError
from layerport.front.export import quiet
from layerport.front.nodes import LayerNode
from layerport.layers import Layer


class Bodies:
    """Derives each distinct use of a layer once: shape rule and ONNX function come from the same exported program."""

    def __init__(self, hints: Mapping[str, int]) -> None:
        self._hints = hints
        self._derivations: dict[Any, Derivation] = {}
        self._functions: dict[Any, ir.Function] = {}

    def derivation(self, node: LayerNode) -> Derivation:
        """The derived output rule of a node, with the exported reference."""
        key = _key(node)
        if key not in self._derivations:
            self._derivations[key] = derive(
                node.layer.reference,
                node.tensors,
                dict(node.bound.parameters.attributes),
                layer=node.layer.name,
                hint=self._hints,
            )
        return self._derivations[key]

    def attach(self, model: ir.Model, nodes: Sequence[LayerNode]) -> None:
        """Give every layer node its function; nodes with equal bodies share one."""
        bodies: dict[str, dict[str, list[tuple[LayerNode, ir.Function]]]] = {}
        for node in nodes:
            function = self._function(node)
            digest = hashlib.sha256(
                ir.serde.serialize_function(function).SerializeToString(deterministic=True)
            ).hexdigest()
            bodies.setdefault(node.layer.name, {}).setdefault(digest, []).append((node, function))
        for by_digest in bodies.values():
            for digest in sorted(by_digest):
                # A runtime without overloads (IR version below 10) can still read a model that needs none.
                overload = "" if len(by_digest) == 1 else digest[:12]
                users = by_digest[digest]
                function = users[0][1]
                function.overload = overload
                model.functions[function.identifier()] = function
                model.graph.opset_imports.setdefault(function.domain, 1)
                for node, _ in users:
                    node.node.overload = overload

    def _function(self, node: LayerNode) -> ir.Function:
        key = _key(node)
        if key not in self._functions:
            self._functions[key] = _export(node.layer, self.derivation(node).program, node.tensors)
        return self._functions[key].clone()


def _key(node: LayerNode) -> Any:
    attributes = tuple(sorted(node.bound.parameters.attributes.items(), key=lambda item: item[0]))
    return node.layer.name, tuple(node.tensors.items()), repr(attributes)


def _export(
    layer: Layer, program: torch.export.ExportedProgram, tensors: Mapping[str, TensorShape | None]
) -> ir.Function:
    with quiet():
        try:
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
        except Exception as error:
            lines = str(error).strip().splitlines()
            raise BuildError(
                f"the reference of layer {layer.name} ({layer.origin}) has no ONNX form: {lines[0] if lines else error!r}",
                "write it with Torch operators that torch.onnx can translate",
            ) from error
    assert exported is not None
    graph = exported.model.graph
    constants = []
    for name, value in list(graph.initializers.items()):
        assert value.const_value is not None
        constants.append(
            ir.node("Constant", [], attributes={"value": value.const_value}, outputs=[value], name=f"constant_{name}")
        )
        del graph.initializers[name]
    if constants:
        first = next(iter(graph), None)
        if first is None:
            graph.extend(constants)
        else:
            graph.insert_before(first, constants)
    present = iter(list(graph.inputs))
    inputs = [next(present) if shape is not None else ir.Value(name=name) for name, shape in tensors.items()]
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    for value in inputs:
        value.metadata_props.clear()
    for node in graph.all_nodes():
        strip(node)
    return ir.Function(layer.namespace, layer.short_name, "", graph=graph, attributes=[])


def strip(node: ir.Node) -> None:
    """Remove what the exporter wrote down about the machine it ran on: stack traces with paths, and its own notes."""
    node.metadata_props.clear()
    node.doc_string = None
    for value in node.outputs:
        value.metadata_props.clear()
        value.doc_string = None
