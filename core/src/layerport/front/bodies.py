"""The portable body of each layer: its reference as an ONNX model-local function, one overload a distinct body."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from layerport.errors import BuildError, UsageError
from layerport.front.body_cache import body_key, load_body, save_body
from layerport.front.export_errors import first_line, innermost
from layerport.front.exporter import to_onnx
from layerport.front.nodes import LayerNode
from layerport.layers.derivation import Derivation, derive, export_together
from layerport.sizes.dims import DimRange
from layerport.sizes.expressions import Expr


class Bodies:
    """Derives each distinct use of a layer once: shape rule and ONNX function come from the same exported program.

    dims: the model's dynamic dims, whose usual sizes are the examples.
    """

    def __init__(self, dims: Mapping[str, DimRange]) -> None:
        self._dims = dims
        self._derivations: dict[Any, Derivation] = {}

    def derivation(self, node: LayerNode) -> Derivation:
        """The derived output rule of a node, with the exported reference."""
        key = _key(node)
        if key not in self._derivations:
            self._derivations[key] = self._derive(node)
        return self._derivations[key]

    def remember(self, node: LayerNode, derivation: Derivation) -> None:
        """Use a derivation that was made of the tensors and attributes of a node."""
        self._derivations[_key(node)] = derivation

    def _derive(self, node: LayerNode) -> Derivation:
        derivation = derive(
            node.layer.reference,
            node.tensors,
            dict(node.bound.parameters.attributes),
            layer=node.layer.name,
            hint=sizes_of(node, {name: dim.opt for name, dim in self._dims.items()}),
            rule=node.layer.shapes_override,
        )
        expected = len(node.layer.signature.output_names)
        if len(derivation.outputs) != expected:
            raise BuildError(
                f"layer {node.layer.name} has {expected} outputs, its shape rule gives {len(derivation.outputs)}",
                "return one (dtype, dims) for each output",
            )
        if derivation.fixed and node.layer.shapes_override is None:
            fixed = ", ".join(f"{place} at {size}" for place, size in derivation.fixed.items())
            raise BuildError(
                f"layer {node.layer.name} ({node.module or node.name}): its reference fixes dynamic dims: {fixed}",
                "write the reference without int() of a size, or make these dims of the model static",
            )
        return derivation

    def attach(self, model: ir.Model, nodes: Sequence[LayerNode]) -> None:
        """Give every layer node its function; nodes with equal bodies share one."""
        distinct = {_key(node): node for node in nodes}
        functions = _kept_functions([(node, self.derivation(node)) for node in distinct.values()])
        bodies: dict[str, dict[str, list[LayerNode]]] = {}
        by_digest: dict[str, ir.Function] = {}
        of_key = {}
        for key, function in zip(distinct, functions, strict=True):
            data = ir.serde.serialize_function(function).SerializeToString(deterministic=True)
            of_key[key] = digest = hashlib.sha256(data).hexdigest()
            by_digest[digest] = function
        for node in nodes:
            bodies.setdefault(node.layer.name, {}).setdefault(of_key[_key(node)], []).append(node)
        for users in bodies.values():
            for digest in sorted(users):
                # A runtime without overloads (IR version below 10) can still read a model that needs none.
                function = by_digest[digest]
                function.overload = "" if len(users) == 1 else digest[:12]
                model.functions[function.identifier()] = function
                model.graph.opset_imports.setdefault(function.domain, 1)
                for node in users[digest]:
                    node.node.overload = function.overload


def sizes_of(node: LayerNode, env: Mapping[str, int]) -> dict[str, int]:
    """The size of each named dim of a node's tensors, by its text, where it follows from the model's dims."""
    sizes: dict[str, int] = {}
    for tensor in node.tensors.values():
        for dim in tensor.shape if tensor is not None else ():
            if isinstance(dim, Expr):
                with contextlib.suppress(UsageError):  # a size that depends on data
                    sizes[dim.text] = dim.evaluate(env)
    return sizes


def _key(node: LayerNode) -> Any:
    attributes = tuple(sorted(node.bound.parameters.attributes.items(), key=lambda item: item[0]))
    return node.layer, tuple(node.tensors.items()), repr(attributes)


def _kept_functions(uses: Sequence[tuple[LayerNode, Derivation]]) -> list[ir.Function]:
    """The ONNX function of each use, those that the disk cache lacks made anew."""
    keys = [body_key(*use) for use in uses]
    found = [None if key is None else load_body(key) for key in keys]
    made = iter(_functions([use for use, function in zip(uses, found, strict=True) if function is None]))
    functions = []
    for key, function in zip(keys, found, strict=True):
        if function is None:
            function = next(made)
            if key is not None:
                save_body(key, function)
        functions.append(function)
    return functions


def _functions(uses: Sequence[tuple[LayerNode, Derivation]]) -> list[ir.Function]:
    """The ONNX function of each use.

    All references go through one call of torch.onnx, because each call builds its operator library anew: 0.1 s, the
    first time 0.5.
    """
    if not uses:
        return []
    try:
        graph = _onnx_graph([derivation for _, derivation in uses])
    except Exception as error:
        culprit, reason = _culprit(uses) or (uses[0][0], error)
        raise BuildError(
            f"the reference of layer {culprit.layer.name} ({culprit.layer.origin}) has no ONNX form: "
            f"{first_line(innermost(reason))}",
            "write it with Torch operators that torch.onnx can translate",
        ) from reason
    inputs, outputs = iter(list(graph.inputs)), iter(list(graph.outputs))
    functions = []
    for node, derivation in uses:
        given = [next(inputs) for _ in derivation.example[0]]
        gives = [next(outputs) for _ in derivation.outputs]
        functions.append(_function(node, ir.convenience.extract(graph, given, gives)))
    return functions


def _onnx_graph(derivations: Sequence[Derivation]) -> ir.Graph:
    graph: ir.Graph = to_onnx(export_together(derivations)).model.graph
    return graph


def _culprit(uses: Sequence[tuple[LayerNode, Derivation]]) -> tuple[LayerNode, Exception] | None:
    for node, derivation in uses:
        try:
            _onnx_graph([derivation])
        except Exception as error:
            return node, error
    return None


def _function(node: LayerNode, graph: ir.Graph) -> ir.Function:
    """A function of a graph, with names of its own: equal bodies are then equal byte for byte."""
    constants = []
    # `extract` hands them over in the order of a set, which is another one each time.
    used = [value for inner in graph.all_nodes() for value in inner.inputs if value is not None]
    order = {value: place for place, value in reversed(list(enumerate([*used, *graph.outputs])))}
    for value in sorted(graph.initializers.values(), key=order.__getitem__):
        assert value.const_value is not None
        tensor = ir.tensor(value.const_value.numpy(), dtype=value.const_value.dtype)
        constants.append(ir.node("Constant", [], attributes={"value": tensor}, outputs=[value]))
    graph.initializers.clear()
    graph.metadata_props.clear()  # it speaks of the bodies that were made in the same call
    first = next(iter(graph), None)
    if first is None:
        graph.extend(constants)
    else:
        graph.insert_before(first, constants)
    present = iter(list(graph.inputs))
    inputs = [next(present) if shape is not None else ir.Value() for shape in node.tensors.values()]
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    for place, inner in enumerate(graph.all_nodes()):
        # What the exporter wrote down about the machine it ran on: stack traces with paths, and its own notes.
        inner.metadata_props.clear()
        inner.doc_string = None
        inner.name = f"n{place}"
        for index, value in enumerate(inner.outputs):
            value.name = f"v{place}_{index}"
            value.metadata_props.clear()
            value.doc_string = None
            value.shape = None
            value.type = None
    for value, name in zip(inputs, node.tensors, strict=True):
        value.name = name
        value.shape = None
        value.type = None
        value.metadata_props.clear()
    for value, name in zip(graph.outputs, node.layer.signature.output_names, strict=True):
        if not value.is_graph_input():
            value.name = name
    return ir.Function(node.layer.namespace, node.layer.short_name, "", graph=graph, attributes=[])
