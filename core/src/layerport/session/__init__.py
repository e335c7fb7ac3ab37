"""A bundle that runs."""

from typing import TYPE_CHECKING

from layerport.late import parts

if TYPE_CHECKING:
    from layerport.session import onnx_widening as onnx_widening
    from layerport.session import onnxruntime as onnxruntime

__getattr__ = parts(__name__)
