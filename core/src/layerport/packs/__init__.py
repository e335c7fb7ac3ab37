"""Layer packs: found, loaded in isolation, asked through hooks."""

from typing import TYPE_CHECKING

from layerport.late import parts

if TYPE_CHECKING:
    from layerport.packs import conversions as conversions
    from layerport.packs import host as host
    from layerport.packs import locking as locking
    from layerport.packs import named as named
    from layerport.packs import saved_layers as saved_layers
    from layerport.packs import torch_origins as torch_origins
    from layerport.packs import torch_patches as torch_patches
    from layerport.packs import torch_state as torch_state
    from layerport.packs import torch_watch as torch_watch
    from layerport.packs import trials as trials

__getattr__ = parts(__name__)
