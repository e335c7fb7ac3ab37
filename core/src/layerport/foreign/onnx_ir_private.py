"""The private name of onnx-ir that layerport uses, as a text.  For `parameters`.  Imports nothing."""

from __future__ import annotations

# The class of its tensors; which of the two is their public base depends on its version.  Where one is gone, the other
# stands for them.
TENSOR_BASE = "onnx_ir._core.TensorBase"
