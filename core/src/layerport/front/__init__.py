"""The front half: from a Torch model to a portable model and plugin specs; it may import torch eagerly."""

from typing import TYPE_CHECKING

from layerport.late import parts

if TYPE_CHECKING:
    from layerport.front import claim_records as claim_records
    from layerport.front import claims as claims
    from layerport.front import export as export
    from layerport.front import found_in_onnx as found_in_onnx
    from layerport.front import found_layers as found_layers
    from layerport.front import onnx_files as onnx_files
    from layerport.front import pipeline as pipeline
    from layerport.front import sources as sources
    from layerport.front import ways as ways

__getattr__ = parts(__name__)
