"""An .onnx file as a source: its nodes of known domains are layers already, so nothing is claimed or exported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx.external_data_helper import load_external_data_for_tensor
from onnx_ir.passes.common import ShapeInferencePass

from layerport.bundle.bundle import MANIFEST, MODEL, SAMPLES, Bundle
from layerport.bundle.external_data import external_tensors, locations_of, tensors_of
from layerport.errors import BuildError, UsageError
from layerport.front.bodies import Bodies
from layerport.front.export import ExportedModel, port_of
from layerport.front.graph_dims import rename_as_expressions
from layerport.front.nodes import VERSION, LayerNode, in_model_dims, is_layer_node, layer_node
from layerport.front.sources import random_tensor
from layerport.packs.host import Packs
from layerport.parameters.conversion import to_standard
from layerport.parameters.frameworks.onnx_dtypes import from_dtype
from layerport.parameters.frameworks.torch_dtypes import from_dtype as torch_dtype
from layerport.sizes.dims import DimRange, Sizes, apply_ranges
from layerport.sizes.expressions import Expr, parse
from layerport.sizes.tensors import TensorType


def read_model(path: Path, ranges: Mapping[str, tuple[int, int | None, int]], packs: Packs) -> ExportedModel:
    """The model of a file, with shapes inferred through its layers.

    ranges: the sizes of its dynamic dims; a dim without one is taken at least 1, usually 2, with no limit.
    Raises UsageError for a file that is not a model, BuildError for a layer node whose inputs have no known type.
    """
    bundle = bundle_of(path)
    if bundle is not None:
        bundle.model()  # its digests are checked
    elif not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}", "give the path of an .onnx file or of a bundle")
    try:
        model = _load(path)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{path} is not an ONNX model: {type(error).__name__}: {error}", "check it with onnx.checker.check_model"
        ) from error
    if bundle is not None:  # those of before have the versions in the manifest only
        recorded = {one["node"]: str(one["version"]) for one in bundle.manifest["layers"]}
        for node in model.graph.all_nodes():
            if node.name in recorded:
                node.metadata_props.setdefault(VERSION, recorded[node.name])
    model.graph.name = model.graph.name or "main_graph"
    for value in model.graph.inputs:
        if value.dtype is None or value.shape is None or not value.name:
            raise UsageError(f"input {value.name or '(nameless)'} of the model has no type", "store types in the file")
    rename_as_expressions(model)
    sizes = [dim.value for value in model.graph.inputs for dim in value.shape or () if isinstance(dim, ir.SymbolicDim)]
    names = dict.fromkeys(name for size in sizes for name in sorted(parse(str(size)).symbols()))
    stated = bundle.dims if bundle is not None else {}
    dims = apply_ranges({name: stated.get(name) or DimRange(name, 1, 2, None) for name in names}, ranges)
    _infer(model, dims, packs)
    inputs, outputs = (
        tuple(port_of(value, dims) for value in values) for values in (model.graph.inputs, model.graph.outputs)
    )
    return ExportedModel(model, inputs, outputs, dims, conditions=bundle.conditions if bundle is not None else ())


def bundle_of(path: Path) -> Bundle | None:
    """The bundle whose portable model this file is; None where it is some other file."""
    return Bundle.open(path.parent) if path.name == MODEL and (path.parent / MANIFEST).is_file() else None


def stored_samples(
    path: Path, ports: Sequence[TensorType], dims: Mapping[str, DimRange]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]] | None:
    """The samples of the bundle that a file belongs to, and whose outputs they are; None where none fit."""
    bundle = bundle_of(path)
    reference = bundle.manifest.get("samples") if bundle is not None else None
    if bundle is None or SAMPLES not in bundle.manifest["files"] or not reference:
        return None
    inputs, outputs = bundle.samples()
    sizes = Sizes(dims)
    for port in ports:
        if port.name not in inputs or inputs[port.name].ndim != port.ndim:
            return None
        sizes.add(port, inputs[port.name].shape, port.name)
    sizes.values()
    return None if sizes.faults else (inputs, outputs, dict(reference))


def _load(path: Path) -> ir.Model:
    """The model of a file with the weights that lie in other files of its folder.

    Raises UsageError for tensors, wherever they stand in the model, that name bytes elsewhere.
    """
    folder, inside = path.parent, path.parent.resolve()

    def size(location: str) -> int | None:
        place = folder / location
        if "\0" in location or not place.resolve().is_relative_to(inside) or not place.is_file():
            return None
        return place.stat().st_size

    proto = onnx.load(path, load_external_data=False)
    known = set(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
    if strange := [one for one in tensors_of(proto) if one.data_type not in known]:
        raise UsageError(
            f"tensor {strange[0].name!r:.80} has the type {strange[0].data_type}",
            "write the model again, or update onnx",
        )
    _, faults = locations_of(proto, size)
    if faults:
        raise UsageError(faults[0], "put the model and its data into one folder", faults=faults[1:])
    for tensor in external_tensors(proto, initializers=False):  # onnx-ir loads initializers only
        load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    model = ir.serde.deserialize_model(proto)
    ir.external_data.set_base_dir(model.graph, folder)
    ir.external_data.load_to_model(model)
    # What cannot be written again would stop the build at its end.
    for node in model.graph.all_nodes():
        ir.serde.serialize_node(node)
    for function in model.functions.values():
        ir.serde.serialize_function(function)
    return model


def _size(size: Expr, node: LayerNode) -> int | str | None:
    """A size of a layer's output as the graph holds it; None where it depends on data, or on a size without a name."""
    if any("." not in symbol for symbol in size.symbols()):
        return None
    made = in_model_dims(size, node)
    if not made.symbols():
        return made.evaluate({})
    return None if any("." in symbol for symbol in made.symbols()) else made.text


def _infer(model: ir.Model, dims: Mapping[str, DimRange], packs: Packs) -> None:
    """Infer shapes up to the next layer, write down what the layer's rule says, go on."""
    bodies = Bodies(dims)
    ShapeInferencePass(strict_mode=False)(model)
    for node in model.graph.all_nodes():
        if not is_layer_node(node, model, packs) or _known(node.outputs):
            continue
        if not _known(value for value in node.inputs if value is not None):
            raise BuildError(
                f"node {node.name or node.op_type}: the types of its inputs cannot be inferred",
                "store the types of all values in the file (onnx.shape_inference)",
            )
        found = layer_node(node, packs)
        rules = bodies.derivation(found).outputs
        for value, rule in zip(node.outputs, rules, strict=False):
            value.dtype = ir.DataType(from_dtype(rule.dtype))
            value.shape = ir.Shape([_size(dim, found) for dim in rule.dims])
        ShapeInferencePass(strict_mode=False)(model)


def _known(values: Iterable[ir.Value]) -> bool:
    return all(
        value.const_value is not None or (value.dtype is not None and value.shape is not None) for value in values
    )


def example(ports: Iterable[TensorType], dims: Mapping[str, DimRange], given: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs for the samples: the given ones, seeded random ones for the others."""
    import torch

    generator = torch.Generator().manual_seed(0)
    sizes = {name: dim.opt for name, dim in dims.items()}
    arrays = {}
    for port in ports:
        shape = port.resolve(sizes)
        value = given.get(port.name)
        if value is None:
            value = random_tensor(shape, torch_dtype(port.dtype), generator)
        arrays[port.name] = to_standard(value, path=port.name).array
    return arrays


def reference_outputs(model: ir.Model, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What ONNX's own reference implementation gives; raises BuildError where it lacks an operator."""
    names = [str(value.name) for value in model.graph.outputs]
    return dict(zip(names, reference_values(model, inputs, names), strict=True))


def reference_values(model: ir.Model, inputs: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """What it gives for these values of the main graph; raises as `reference_outputs` does."""
    import numpy as np
    from onnx.reference import ReferenceEvaluator

    proto = ir.serde.serialize_model(model)
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    if any(one.overload for one in proto.functions):  # it takes one body of a layer for all (onnx 1.23)
        proto = onnx.inliner.inline_local_functions(proto)
    try:
        with np.errstate(all="ignore"):  # a model may take the logarithm of 0 and choose another value afterwards
            outputs: list[Any] = ReferenceEvaluator(proto).run(list(names), dict(inputs))
    except Exception as error:
        raise BuildError(
            f"onnx.reference cannot run the model: {type(error).__name__}: {str(error).splitlines()[0]}",
            "build with --no-verify; the bundle then has no samples",
        ) from error
    return outputs
