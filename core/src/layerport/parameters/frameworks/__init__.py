"""Arrays and dtypes of each framework, a file for each."""

from typing import TYPE_CHECKING

from layerport.late import parts

if TYPE_CHECKING:
    from layerport.parameters.frameworks import onnx_dtypes as onnx_dtypes
    from layerport.parameters.frameworks import tensorrt as tensorrt
    from layerport.parameters.frameworks import torch_arrays as torch_arrays
    from layerport.parameters.frameworks import torch_dtypes as torch_dtypes

__getattr__ = parts(__name__)
