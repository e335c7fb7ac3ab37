"""The back half: from a portable model and plugin specs to an engine.  Imports neither torch nor any pack."""

from typing import TYPE_CHECKING

from layerport.late import parts

if TYPE_CHECKING:
    from layerport.engine import alone_build as alone_build
    from layerport.engine import bound_model as bound_model
    from layerport.engine import child as child
    from layerport.engine import engine_session as engine_session
    from layerport.engine import gpu as gpu
    from layerport.engine import gpu_kernels as gpu_kernels
    from layerport.engine import native as native
    from layerport.engine import options as options
    from layerport.engine import shown_progress as shown_progress

__getattr__ = parts(__name__)
