"""Layers found in the graph of an .onnx file by their references, and put in as nodes of their own domains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass
from onnxscript.version_converter import convert_version
from torch.fx import Node

from layerport.dtypes import DType
from layerport.front.bodies import Bodies
from layerport.front.export import ExportedModel
from layerport.front.exporter import quiet
from layerport.front.found_layers import FindWishes, compared
from layerport.front.nodes import VERSION, layer_nodes, onnx_attributes
from layerport.front.onnx_files import example, reference_values
from layerport.packs.host import Packs
from layerport.parameters.conversion import from_standard, to_standard
from layerport.parameters.frameworks.onnx_dtypes import from_dtype
from layerport.search.onnx_graphs import OnnxValues, read_graph
from layerport.search.places import Match, is_input
from layerport.search.replacing import twins
from layerport.search.running import evaluated
from layerport.search.searching import Findings, find

PREFIX = "layerport_found_"
# What torch.onnx writes.
BODY_OPSET = 20


def find_in_onnx(exported: ExportedModel, given: Mapping[str, Any], packs: Packs, wishes: FindWishes) -> ExportedModel:
    """A model that was read from a file, with the layers that are found put in.

    given: the user's example inputs by name.  A file of an older opset is brought to that of the layers' bodies where
    one is found.  Raises nothing for what it does not find.
    """
    if not wishes.layers:
        return exported
    searched = exported
    if exported.model.opset_imports.get("", BODY_OPSET) < BODY_OPSET:
        try:
            searched = replace(exported, model=_raised(exported.model))
        except Exception as error:
            text = f"the file's opset cannot be raised to {BODY_OPSET}: {type(error).__name__}: {error}"
            return replace(exported, findings=Findings(unsearched={layer.name: text for layer in wishes.layers}))
    findings = _find(searched, given, packs, wishes)
    return replace(searched if findings.places else exported, findings=findings)


def _raised(model: ir.Model) -> ir.Model:
    """A copy of a model in the opset of the layers' bodies."""
    copy = model.clone()
    with quiet():
        convert_version(copy, BODY_OPSET, fallback=True)
    if copy.opset_imports.get("", 1) < BODY_OPSET:
        raise ValueError("the converter left it as it is")
    return ShapeInferencePass(strict_mode=False)(copy).model


def _find(exported: ExportedModel, given: Mapping[str, Any], packs: Packs, wishes: FindWishes) -> Findings:
    sizes = {name: dim.opt for name, dim in exported.dims.items()}
    with quiet():
        graph = read_graph(exported.model, sizes)
        run = _runner(exported, graph, given, packs)
        findings, places = find(graph.model, wishes.layers, run, compared, asked=wishes.required, owners=wishes.owners)
    for name, place in _replace(exported.model, graph, places).items():
        findings.add(name, place)
    return findings


def _runner(
    exported: ExportedModel, graph: OnnxValues, given: Mapping[str, Any], packs: Packs
) -> Callable[[Iterable[Node]], Mapping[Node, Any]]:
    """Runs the file on the example inputs, with ONNX's own reference implementation, up to what is asked for."""

    def run(nodes: Iterable[Node]) -> Mapping[Node, Any]:
        needed: dict[Node, ir.Value] = {}
        ends = list(nodes)
        waiting, seen = list(ends), set(ends)
        while waiting:
            node = waiting.pop()
            if node in graph.values and node not in graph.model.constants:
                needed[node] = graph.values[node]
                continue
            waiting += [one for one in node.all_input_nodes if one not in seen]
            seen.update(node.all_input_nodes)
        copy = exported.model.clone()
        Bodies(exported.dims).attach(copy, layer_nodes(copy, packs))
        inputs = example(exported.inputs, exported.dims, given)
        arrays = reference_values(copy, inputs, [str(value.name) for value in needed.values()])
        known: dict[Node, Any] = {}
        for (node, value), array in zip(needed.items(), arrays, strict=True):
            standard, _ = to_standard(array, path=str(value.name))
            tensor = from_standard(standard, "torch")
            assert isinstance(tensor, torch.Tensor)
            known[node] = tensor
        return evaluated(graph.model, ends, known)

    return run


def _replace(model: ir.Model, graph: OnnxValues, places: Sequence[Match]) -> dict[str, Match]:
    """Put a node in for each place; the place of each by the node's name."""
    taken = {node.name for node in model.graph.all_nodes()}
    names = (name for number in range(len(taken) + len(places)) if (name := f"{PREFIX}{number}") not in taken)
    made: dict[str, Match] = {}
    now: dict[ir.Value, ir.Value] = {}
    for place, name in zip(places, names, strict=False):
        layer = place.layer
        inputs = [_input(model, graph, place, argument.name, now) for argument in layer.signature.tensors]
        while inputs and inputs[-1] is None:
            inputs.pop()
        attributes = onnx_attributes({key: value for key, value in place.attributes.items() if value is not None})
        node = ir.Node(
            layer.namespace,
            layer.short_name,
            inputs,
            ir.convenience.convert_attributes(attributes),
            num_outputs=len(place.outputs),
            name=name,
            metadata_props={VERSION: str(layer.version)},
        )
        model.graph.append(node)
        for index, (output, new) in enumerate(zip(place.outputs, node.outputs, strict=True)):
            old = None if output is None else graph.values[output]
            if output is None or old is None:
                new.name = f"{name}_{index}"
                continue
            new.name, old.name = old.name, f"{name}_was_{index}"
            new.shape, new.type = old.shape, old.type
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            same = twins(graph.model, place, output)
            now |= {graph.values[one]: new for one in same if one in graph.values}
        model.opset_imports.setdefault(layer.namespace, 1)
        made[name] = place
    if made:
        model.graph.sort()
        RemoveUnusedNodesPass()(model)
    return made


def _input(
    model: ir.Model, graph: OnnxValues, place: Match, name: str, now: Mapping[ir.Value, ir.Value]
) -> ir.Value | None:
    node = place.tensors[name]
    if node is None:
        return None
    value = graph.values[node]
    if is_input(place, name) or value.const_value is not None:
        return now.get(value, value)
    made = f"{PREFIX}{value.name}"  # computed from constants alone
    if made not in model.graph.initializers:
        tensor = evaluated(graph.model, [node], {})[node].contiguous()
        array, _ = to_standard(tensor, path=name)
        held = ir.tensor(array, dtype=ir.DataType(from_dtype(DType(array.dtype.name))), name=made)
        constant = ir.Value(name=made, shape=ir.Shape(array.shape), type=ir.TensorType(held.dtype), const_value=held)
        model.graph.register_initializer(constant)
    return model.graph.initializers[made]
