"""The reference as the pattern: where a model's graph computes what a layer's reference computes.

The front half asks it, after the export and before the conversion to ONNX.  It reads layers and knows no pack.
"""

from typing import TYPE_CHECKING

from layerport.late import parts

if TYPE_CHECKING:
    from layerport.search import searching as searching

__getattr__ = parts(__name__)
