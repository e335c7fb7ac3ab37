"""What a layer is configured with: signatures, the standard form, and the ways to and from it."""

from typing import TYPE_CHECKING

from layerport.late import parts

if TYPE_CHECKING:
    from layerport.parameters import binding as binding
    from layerport.parameters import comparison as comparison
    from layerport.parameters import conversion as conversion
    from layerport.parameters import plain as plain
    from layerport.parameters import safetensors as safetensors
    from layerport.parameters import standard_form as standard_form

__getattr__ = parts(__name__)
