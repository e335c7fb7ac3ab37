"""The layer `layerport_builtin::circular_pad`: what it computes, and how its kernel is launched."""

from __future__ import annotations

import torch
from torch import Tensor

import layerport as lp

_PACKS = 2 * 256  # of a block, as in kernel.cu


@lp.layer("layerport_builtin::circular_pad", version=1)
def circular_pad(x: Tensor, pads: list[int]) -> Tensor:
    """x with its last two axes continued periodically, as the plugin sample in TensorRT's documentation does.

    x: (..., H, W).  pads: left, right, top, bottom, as torch.nn.functional.pad takes them; each from 0 and, unlike
    there, as large as one likes.  Returns (..., top + H + bottom, left + W + right) of x's dtype, copied exactly.
    Raises ValueError for other pads, fewer axes, or pads of an axis that is empty.
    """
    if x.ndim < 2 or len(pads) != 4 or min(pads) < 0:
        raise ValueError(
            f"circular_pad: x is {list(x.shape)}, pads are {list(pads)}; "
            "give x: (..., H, W), and left, right, top, bottom from 0"
        )
    left, right, top, bottom = pads
    height, width = x.shape[-2:]
    # A symbolic size is not asked whether it is 0: the answer would hold for some sizes only.
    for size, added in ((height, top + bottom), (width, left + right)):
        if isinstance(size, int) and size == 0 and added > 0:
            raise ValueError(f"circular_pad: x is {list(x.shape)}, which has nothing to continue; give no pads there")
    rows = torch.arange(-top, height + bottom, device=x.device)
    columns = torch.arange(-left, width + right, device=x.device)
    # By tensors, because ONNX's form of a remainder by a number takes no size that is known at run time only.
    rows, columns = rows.remainder(torch.full_like(rows, height)), columns.remainder(torch.full_like(columns, width))
    return x.index_select(-2, rows).index_select(-1, columns)


@circular_pad.kernel(
    lp.cuda("kernel.cu", "circular_pad<{x}>"), dtypes=("float32", "float16", "bfloat16"), name="circular_pad"
)
def launch(x: lp.TensorType, y: lp.TensorType, pads: list[int]) -> lp.Launch:
    left, _, top, _ = pads
    width = 16 // y.itemsize  # elements of a pack; of the first one, all but one may lie before y
    args = (x, y, x.numel(), y.numel(), *x.shape[-2:], *y.shape[-2:], left, top)
    return lp.Launch(grid=lp.cdiv(y.numel() + width - 1, _PACKS * width), block=256, args=args)
