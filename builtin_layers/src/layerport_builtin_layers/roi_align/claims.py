"""Which modules pool boxes of a map: those that call torchvision's function for it, or mmcv's.

torchvision's and mmcv's own module `RoIAlign` calls it too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layerport_builtin_layers.module_looks import replace_calls
from layerport_builtin_layers.roi_align.reference import roi_align


def claim_roi_align(module: torch.nn.Module) -> Any:
    """The rewritten forward of a module that calls RoIAlign; None for any other."""
    # Of random boxes theirs reads images that there are not, and as many points as a box has pixels.
    return replace_calls(module, {"roi_align": roi_align_of_any}, roi_align, probe=False)


def roi_align_of_any(
    input: Tensor,
    boxes: Any = None,
    output_size: Any = None,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """torchvision's goes on with `aligned`, mmcv's with the kind of pooling and `aligned`, which is True there."""
    names = ("pool_mode", "aligned") if (args and isinstance(args[0], str)) or "pool_mode" in kwargs else ("aligned",)
    more = dict(zip(names, args, strict=False)) | kwargs
    if not isinstance(boxes := more.get("rois", boxes), Tensor):
        numbers = [one.new_full((one.shape[0], 1), number) for number, one in enumerate(boxes)]
        boxes = torch.cat([torch.cat(pair, 1) for pair in zip(numbers, boxes, strict=True)])
    size = [output_size, output_size] if isinstance(output_size, int) else list(output_size)
    aligned = more.get("aligned", "pool_mode" in more or "rois" in more)
    pool_mode = more.get("pool_mode", "avg")
    result: Tensor = roi_align(input, boxes, size, float(spatial_scale), sampling_ratio, aligned, pool_mode)
    return result
