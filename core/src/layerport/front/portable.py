"""Writes the portable model: standard ONNX that any runtime can run, large weights beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from layerport import __version__
from layerport.bundle.bundle import MODEL, MODEL_DATA, HashedFile
from layerport.front.nodes import VERSION

# Below this the weights stay inside the file, which is then one piece to hand around.
EXTERNAL_BYTES = 16 << 20
_SMALL_BYTES = 1024
_MAPPED_BYTES = 1 << 20
_PAGE = 4096


def write_portable(model: ir.Model, folder: Path) -> dict[str, str]:
    """Save the model in a folder, external weights in one file beside it where they are large.

    The same model gives the same bytes: nothing of the machine or of the time goes in.  The model's large weights are
    in the file afterwards and no longer in memory.  Answers with the SHA-256 of each file by name.
    """
    model.producer_name = "layerport"
    model.producer_version = __version__
    model.doc_string = None
    model.metadata_props.clear()
    versions = {node: text for node in model.graph.all_nodes() if (text := node.metadata_props.get(VERSION))}
    ClearMetadataAndDocStringPass()(model)
    for node, text in versions.items():
        node.metadata_props[VERSION] = text
    parts: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    for part in parts:  # the pass leaves values alone
        own = part.initializers.values() if isinstance(part, ir.Graph) else ()
        for value in (*part.inputs, *own, *(output for node in part for output in node.outputs)):
            value.metadata_props.clear()
            value.doc_string = None
    model.ir_version = max(model.ir_version or 10, 10)
    tensors = [value for graph in model.graphs() for value in graph.initializers.values()]
    total = sum(value.const_value.nbytes for value in tensors if value.const_value is not None)
    digests = {}
    if total > EXTERNAL_BYTES:
        digests[MODEL_DATA] = _write_weights(tensors, folder)
    with HashedFile(folder / MODEL) as file:
        file.write(ir.serde.serialize_model(model).SerializeToString(deterministic=True))
    return {**digests, MODEL: file.sha256}


def _write_weights(values: Sequence[ir.Value], folder: Path) -> str:
    """Write the large tensors to a file beside the model, which refers to them from then on."""
    with HashedFile(folder / MODEL_DATA) as file:
        for value in values:
            tensor = value.const_value
            if tensor is None or tensor.nbytes < _SMALL_BYTES:
                continue
            if tensor.nbytes >= _MAPPED_BYTES:  # runtimes map what begins at a page
                file.write(bytes(-file.size % _PAGE))
            start = file.size
            file.write(_memory(tensor))
            value.const_value = ir.ExternalTensor(
                MODEL_DATA,
                start,
                file.size - start,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                base_dir=folder,
            )
    return file.sha256


def _memory(tensor: ir.TensorProtocol) -> memoryview | bytes:
    """The bytes that ONNX keeps of a tensor, without a copy of a large one where that can be."""
    array = tensor.numpy()
    if tensor.dtype.bitwidth % 8 or not array.flags.c_contiguous or array.dtype.byteorder == ">":
        return tensor.tobytes()
    return array.reshape(-1).view(np.uint8).data
