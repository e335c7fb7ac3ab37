"""Writes the portable model: standard ONNX that any runtime can run, large weights beside it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from layerport import __version__
from layerport.bundle import MODEL, MODEL_DATA
from layerport.front.bodies import strip

# Below this the weights stay inside the file, which is then one piece to hand around.
EXTERNAL_BYTES = 16 << 20


def write_portable(model: ir.Model, folder: Path) -> None:
    """Save the model in a folder, external weights in one file beside it where they are large.

    The same model gives the same bytes: nothing of the machine or of the time goes in.
    """
    model.producer_name = "layerport"
    model.producer_version = __version__
    model.doc_string = None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for node in model.graph.all_nodes():
        strip(node)
    model.ir_version = max(model.ir_version or 10, 10)
    total = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    if total > EXTERNAL_BYTES:
        ir.save(model, folder / MODEL, external_data=MODEL_DATA, size_threshold_bytes=1024)
    else:
        ir.save(model, folder / MODEL)
