"""The layer `layerport_builtin::deform_conv2d`: what it computes, and how its kernel is launched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import layerport as lp

_PIXELS, _OUTPUTS = 32, 128  # of a block, as in kernel.cu
_PIXELS_OF_TENSOR = 64  # the same with as many outputs, as in tensor.cu
_SIDE, _PACK = 32, 8  # of a square, and items of a pack, as there


@lp.layer("layerport_builtin::deform_conv2d", version=1, find=False, purpose="not expressible")
def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: lp.Param,
    bias: lp.Param | None = None,
    mask: Tensor | None = None,
    stride: list[int] = [1, 1],  # noqa: B006 - attributes are lists, and nothing changes them
    padding: list[int] = [0, 0],  # noqa: B006
    dilation: list[int] = [1, 1],  # noqa: B006
) -> Tensor:
    """Deformable convolution: Dai et al. (2017), equation 2, and with a mask Zhu et al. (2019), equation 1.

    x: (batch, channels, height, width), floating point; the others have its dtype.
    offset: (batch, 2 * offset groups * taps, rows, columns): y and x, in pixels, by which each tap of the filter is
    moved; a tap is one of the kernel height * kernel width places of a filter.
    weight: (outputs, channels / groups, kernel height, kernel width).  bias: (outputs,), or None.
    mask: (batch, offset groups * taps, rows, columns), which scales what each tap reads, or None.
    stride, padding, dilation: along y and x.  Groups and offset groups follow from the shapes.
    A tap is read between its four pixels, with zeros outside; what is not finite lies outside.  Computed in float32
    (float64 for float64) and rounded once, at the end, as torchvision's `deform_conv2d` does in float32.  In 16 bits a
    kernel may also round what a tap reads, times its mask, before it is multiplied: tensor cores take 16 bits.
    Returns (batch, outputs, rows, columns) of x's dtype.  Raises ValueError for shapes, dtypes and attributes that do
    not fit.
    """
    _refuse(x, offset, weight, bias, mask, stride, padding, dilation)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    _, channels, height, width = x.shape
    outputs, depth, kernel_height, kernel_width = weight.shape
    rows, columns = offset.shape[2:]
    taps = kernel_height * kernel_width
    # From here on channel by channel, each with its taps: which offsets are those of a channel, is an index.
    place = torch.arange(channels * taps, device=x.device)
    tap, channel = place % taps, place // taps
    part = channel // (2 * taps * channels // offset.shape[1]) * taps + tap
    down, right = (offset.index_select(1, 2 * part + axis).to(wide) for axis in (0, 1))
    row, column = (torch.arange(size, device=x.device) for size in (rows, columns))
    y = (row * stride[0] - padding[0]).unsqueeze(1) + (tap // kernel_width * dilation[0]).reshape(-1, 1, 1) + down
    x_of_tap = column * stride[1] - padding[1] + (tap % kernel_width * dilation[1]).reshape(-1, 1, 1) + right
    near = (y > -1) & (y < height) & (x_of_tap > -1) & (x_of_tap < width)
    # A place that is not finite would reach the gradients through the pixels that it does not have.
    y, x_of_tap = torch.where(near, y, -2.0), torch.where(near, x_of_tap, -2.0)
    top, left = y.floor(), x_of_tap.floor()
    pixels, first = x.flatten(1).to(wide), (channel * (height * width)).reshape(-1, 1, 1)
    read = torch.zeros_like(y)
    for below, beside in ((0, 0), (0, 1), (1, 0), (1, 1)):
        row, column = top + below, left + beside
        share = (1 - (y - row).abs()) * (1 - (x_of_tap - column).abs())
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        pixel = torch.where(inside, first + row.to(torch.int64) * width + column.to(torch.int64), 0)
        found = pixels.gather(1, pixel.flatten(1)).reshape(pixel.shape)
        read = read + torch.where(inside, found, 0.0) * share
    if mask is not None:
        read = read * mask.index_select(1, part).to(wide)
    filters = weight.to(wide).reshape(outputs, depth * taps, 1, 1)
    result = torch.conv2d(read, filters, None if bias is None else bias.to(wide), groups=channels // depth)
    return result.to(x.dtype)


def _refuse(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> None:
    if any(len(pair) != 2 for pair in (stride, padding, dilation)) or min(*stride, *dilation) < 1 or min(padding) < 0:
        raise ValueError(
            f"deform_conv2d: stride is {list(stride)}, padding {list(padding)}, dilation {list(dilation)}; "
            "give two of each, along y and x: stride and dilation from 1, padding from 0"
        )
    given = {"x": x, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    if not _fit(x, offset, weight, bias, mask, stride, padding, dilation):
        shapes = ", ".join(f"{name} {None if one is None else list(one.shape)}" for name, one in given.items())
        raise ValueError(
            f"deform_conv2d: shapes do not fit: {shapes}, stride {list(stride)}, padding {list(padding)}, "
            f"dilation {list(dilation)}; give x: (batch, channels, height, width), offset: (batch, 2 * offset groups * "
            "taps, rows, columns), weight: (outputs, channels / groups, kernel height, kernel width), bias: (outputs,) "
            "or None, mask: (batch, offset groups * taps, rows, columns) or None"
        )
    dtypes = {name: one.dtype for name, one in given.items() if one is not None}
    if len(set(dtypes.values())) != 1 or not x.is_floating_point():
        raise ValueError(
            f"deform_conv2d: dtypes do not fit: {', '.join(f'{name} {dtype}' for name, dtype in dtypes.items())}; "
            "give all in one floating-point dtype"
        )


def _fit(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> bool:
    if (x.ndim, offset.ndim, weight.ndim) != (4, 4, 4) or 0 in weight.shape:
        return False
    (batch, channels), (outputs, depth), kernel = x.shape[:2], weight.shape[:2], weight.shape[2:]
    taps = kernel[0] * kernel[1]
    if channels == 0 or channels % depth or outputs % (channels // depth):
        return False
    parts = offset.shape[1] // (2 * taps)
    if parts == 0 or offset.shape[1] % (2 * taps) or channels % parts:
        return False
    steps = zip(x.shape[2:], padding, dilation, kernel, stride, strict=True)
    spans = [(size + 2 * pad - gap * (taps_along - 1) - 1, step) for size, pad, gap, taps_along, step in steps]
    # A symbolic size is not asked whether it is 0: the answer would hold for some sizes only.
    if any(isinstance(size, int) and size == 0 for size in x.shape[2:]) or any(span < 0 for span, _ in spans):
        return False
    places = tuple(span // step + 1 for span, step in spans)
    return (
        (offset.shape[0], *offset.shape[2:]) == (batch, *places)
        and (bias is None or bias.shape == (outputs,))
        and (mask is None or mask.shape == (batch, parts * taps, *places))
    )


@deform_conv2d.shape_rule
def rule(x: lp.TensorType, offset: lp.TensorType, weight: lp.TensorType) -> Any:
    return x.dtype, (x.shape[0], weight.shape[0], *offset.shape[2:])


def _run(x: lp.TensorType, offset: lp.TensorType, weight: lp.TensorType) -> tuple[Any, Any, Any]:
    """How many channels a filter has, how many have an offset in common, and the lesser of the two."""
    depth, taps = weight.shape[1], weight.shape[2] * weight.shape[3]
    of_offset_group = x.shape[1] // (offset.shape[1] // (2 * taps))
    return depth, of_offset_group, lp.minimum(depth, of_offset_group)


def _has_runs_of_packs(x: lp.TensorType, offset: lp.TensorType, weight: lp.TensorType) -> Any:
    depth, of_offset_group, run = _run(x, offset, weight)
    return (run % _PACK == 0) & (depth % run == 0) & (of_offset_group % run == 0)


@deform_conv2d.kernel(
    lp.cuda("tensor.cu", "deform_packs<{x}>"),
    lp.cuda("tensor.cu", "deform_packs<{x}>"),
    lp.cuda("tensor.cu", "deform_tensor<{x}>"),
    dtypes=("float16", "bfloat16"),
    when=_has_runs_of_packs,
    name="deform_tensor",
)
def launch_tensor(
    x: lp.TensorType,
    offset: lp.TensorType,
    weight: lp.TensorType,
    bias: lp.TensorType | None,
    mask: lp.TensorType | None,
    y: lp.TensorType,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[lp.Launch, ...]:
    batch, channels, height, width = x.shape
    outputs, depth, kernel_height, kernel_width = weight.shape
    rows, columns = offset.shape[2:]
    _, of_offset_group, run = _run(x, offset, weight)
    taps, groups, pixels = kernel_height * kernel_width, channels // depth, height * width
    image, filters = lp.scratch(x.numel(), str(x.dtype)), lp.scratch(weight.numel(), str(x.dtype))
    tiles, parts = lp.cdiv(rows * columns, _PIXELS_OF_TENSOR), lp.cdiv(outputs // groups, _OUTPUTS)
    sizes = (tiles, parts, run, groups, depth // run, channels // of_offset_group, height, width, outputs // groups)
    taken = (rows, columns, taps, kernel_width, *stride, *padding, *dilation)
    return (
        _packs(x, image, batch * (channels // run), run, pixels),
        _packs(weight, filters, outputs * (depth // run), run, taps),
        lp.Launch(
            grid=(batch * tiles, groups * parts),
            block=256,
            args=(image, offset, filters, bias, mask, y, *sizes, *taken),
        ),
    )


def _packs(given: lp.TensorType, made: lp.TensorType, matrices: Any, rows: Any, columns: Any) -> lp.Launch:
    squares = lp.cdiv(columns, _SIDE)
    grid = (matrices * squares, lp.cdiv(rows, _SIDE))
    return lp.Launch(grid=grid, block=256, args=(given, made, squares, rows, columns))


@deform_conv2d.kernel(
    lp.cuda("kernel.cu", "deform_conv2d<{x}>"), dtypes=("float32", "float16", "bfloat16"), name="deform_conv2d"
)
def launch(
    x: lp.TensorType,
    offset: lp.TensorType,
    weight: lp.TensorType,
    bias: lp.TensorType | None,
    mask: lp.TensorType | None,
    y: lp.TensorType,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> lp.Launch:
    batch, channels, height, width = x.shape
    outputs, depth, kernel_height, kernel_width = weight.shape
    _, twice_all_taps, rows, columns = offset.shape
    taps, groups = kernel_height * kernel_width, channels // depth
    tiles, parts = lp.cdiv(rows * columns, _PIXELS), lp.cdiv(outputs // groups, _OUTPUTS)
    sizes = (tiles, parts, channels, height, width, outputs // groups, depth, rows, columns)
    taken = (taps, kernel_width, channels // (twice_all_taps // (2 * taps)), *stride, *padding, *dilation)
    return lp.Launch(
        grid=(batch * tiles, groups * parts),
        block=256,
        args=(x, offset, weight, bias, mask, y, *sizes, *taken),
    )
