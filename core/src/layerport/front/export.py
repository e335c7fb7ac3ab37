"""From a Torch model with layers in place to an ONNX graph in memory, each layer one node in its own domain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch

from layerport.errors import BuildError
from layerport.foreign import torch_private
from layerport.front.dynamic_dims import as_torch_takes_them, read_dims
from layerport.front.export_errors import not_traced, not_translated
from layerport.front.exporter import to_onnx
from layerport.front.found_layers import FindWishes, SearchedError, searched
from layerport.front.graph_dims import SizeNames, rename_sizes
from layerport.front.guards import Guards, guards_of
from layerport.front.leaves import check_outputs, output_names, with_plain_outputs
from layerport.front.origins import Origins, read_origins
from layerport.front.sources import Source
from layerport.layers.derivation import any_size, quiet_export
from layerport.layers.layer import Layer
from layerport.parameters.frameworks.onnx_dtypes import to_dtype
from layerport.search.searching import Findings
from layerport.sizes.conditions import Condition
from layerport.sizes.dims import DimRange, follows_from, port
from layerport.sizes.tensors import TensorType


@dataclass(frozen=True)
class ExportedModel:
    """An ONNX graph in memory with the names and ranges of its inputs, outputs and dynamic dims.

    guards: what a Torch model's forward needs of its sizes.  conditions: what the bundle that it is from checks.
    origins: where the parameters of its layers came from, where it is from Torch.
    findings: the layers that a search put in.
    """

    model: ir.Model
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    dims: Mapping[str, DimRange]
    guards: Guards | None = None
    conditions: tuple[Condition, ...] = ()
    origins: Origins | None = None
    findings: Findings = field(default_factory=Findings)


def export_model(
    source: Source, model: Any, layers: Iterable[Layer], outputs: Any, find: FindWishes | None = None
) -> ExportedModel:
    """Export with torch.onnx; the layers' operators become nodes `namespace::name`.

    outputs: what the model gave for the example inputs, from which the outputs get their names.
    find: the layers to put in where the graph computes the same.
    Raises UsageError where an output is no tensor, BuildError that names the module in which the export stopped.
    """
    check_outputs(outputs)
    program = model if isinstance(model, torch.export.ExportedProgram) else _trace(source, model)
    dynamic = read_dims(source, program)
    layers = tuple(layers)
    program, findings = searched(program, source, find or FindWishes())
    try:
        exported = to_onnx(program, layers)
    except Exception as error:
        raise not_translated(error, source.name, model) from error
    graph = exported.model
    _name_outputs(graph.graph, output_names(outputs))
    _rename_inputs(graph.graph, program)
    rename_sizes(graph, SizeNames(exported.exported_program or program, dynamic))
    dims = {dim.name: dim for dim in dynamic.values()}
    inputs, outputs = (
        tuple(port_of(value, dims) for value in values) for values in (graph.graph.inputs, graph.graph.outputs)
    )
    origins = read_origins(exported.exported_program or program, model, layers)
    guards = guards_of(program, dynamic) if dims else None
    return ExportedModel(graph, inputs, outputs, dims, guards, origins=origins, findings=findings())


def find_in(source: Source, model: Any, find: FindWishes, outputs: Any) -> Findings:
    """What a search finds in a model.  Raises as `export_model` does.

    outputs: what the model gave for the example inputs.
    """
    if isinstance(model, torch.export.ExportedProgram):
        program = model
    else:
        check_outputs(with_plain_outputs(model, outputs))
        program = _trace(source, model)
    program, findings = searched(program, source, find, only=True)
    try:
        to_onnx(program)
    except Exception as error:
        if not isinstance(error.__cause__, SearchedError):
            raise not_translated(error, source.name, model) from error
    return findings()


def _trace(source: Source, model: torch.nn.Module) -> torch.export.ExportedProgram:
    """The exported program.

    A model may branch on a size, or check one.  Torch refuses a dim whose range breaks that; torch.onnx defers it to a
    check at run time, which ONNX has no form for.  It is deferred here too, and read off the program (`guards`).
    """

    def export(defer: bool = True) -> torch.export.ExportedProgram:
        with torch.no_grad(), quiet_export(), any_size():
            return torch.export.export(
                model,
                source.args,
                dict(source.kwargs) or None,
                dynamic_shapes=as_torch_takes_them(source.dynamic_shapes),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=defer,
            )

    try:
        try:
            return export()
        except torch_private.unsupported():
            # What torch.cond compiled while the samples were recorded is in its way (seen in Torch 2.13).
            torch.compiler.reset()
            return export()
    except Exception:
        # Without deferring, Torch says what the code made of a dim ("specialized it to be a constant").
        try:
            return export(defer=False)
        except Exception as error:
            raise not_traced(error, source.name, model) from error


def _name_outputs(graph: ir.Graph, names: list[str]) -> None:
    """Give the outputs these names.  torch.onnx would not look whether an input or inner value has one of them."""
    inputs = {value.name for value in graph.inputs}
    others = [*graph.initializers.values(), *(value for node in graph.all_nodes() for value in node.outputs)]
    taken = {*inputs, *names, *(value.name for value in others)}

    def free(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    for value in others:
        if value.name in names and not value.is_graph_output():
            value.name = free(value.name)
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = free(name) if name in inputs else name


def _rename_inputs(graph: ir.Graph, program: torch.export.ExportedProgram) -> None:
    """Undo torch.onnx's renaming of an input that the model also returns."""
    for value, name in zip(graph.inputs, program.graph_signature.user_inputs, strict=False):
        taken = {one.name for one in (*graph.inputs, *graph.outputs)}
        if isinstance(name, str) and name not in taken:
            value.name = name


def port_of(value: ir.Value, dims: Mapping[str, DimRange]) -> TensorType:
    """An input or output of the graph; a size that does not follow from the dims is unknown (None)."""
    if value.dtype is None or value.shape is None or value.name is None:
        raise BuildError(f"the exported model does not say the type of {value.name}", "state it in the ONNX file")
    sizes = (dim if isinstance(dim, int) else dim.value for dim in value.shape)
    known = (size if isinstance(size, int) or follows_from(size, dims) else None for size in sizes)
    return port(value.name, to_dtype(value.dtype), known)
