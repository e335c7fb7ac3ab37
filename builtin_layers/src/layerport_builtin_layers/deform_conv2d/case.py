"""What `layerport_builtin::deform_conv2d` is tested and measured with."""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import torch

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.deform_conv2d.reference import deform_conv2d


def _shape(
    reason: str,
    x: tuple[int, int, int, int],
    weight: tuple[int, int, int, int],
    *,
    offset_groups: int = 1,
    bias: bool = False,
    mask: bool = False,
    gpu_only: bool = False,
    **attributes: Any,
) -> CaseShape:
    step, pad, gap = (
        attributes.get(name, (one, one)) for name, one in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    places = [
        (x[2 + axis] + 2 * pad[axis] - gap[axis] * (weight[2 + axis] - 1) - 1) // step[axis] + 1 for axis in (0, 1)
    ]
    taps = weight[2] * weight[3]
    shapes = {
        "x": x,
        "offset": (x[0], 2 * offset_groups * taps, *places),
        "weight": weight,
        "bias": weight[:1] if bias else None,
        "mask": (x[0], offset_groups * taps, *places) if mask else None,
    }
    return CaseShape(reason, shapes, attributes={**attributes}, gpu_only=gpu_only)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal values; offsets of a pixel or two, so that taps lie inside, outside and on the edges of an image.

    A filter's square sum is about 1, so that sums, and what rounding makes of them, are alike for all lengths.
    """
    wide = torch.float64 if generator.device.type == "cpu" else torch.float32
    values = torch.randn(shape, generator=generator, dtype=wide, device=generator.device)
    if name == "weight":
        return values / sqrt(prod(shape[1:]))
    return values.sigmoid() if name == "mask" else 1.5 * values if name == "offset" else values


_PAD: dict[str, Any] = {"padding": [1, 1]}

CASE = LayerCase(
    layer=deform_conv2d,
    shapes=(
        _shape("one pixel, one tap", (1, 1, 1, 1), (1, 1, 1, 1)),
        _shape(
            "a mask, a bias, two offset groups",
            (2, 4, 5, 7),
            (3, 4, 3, 3),
            offset_groups=2,
            bias=True,
            mask=True,
            **_PAD,
        ),
        _shape("groups and offset groups across them", (1, 6, 4, 5), (4, 3, 2, 3), offset_groups=3, mask=True),
        _shape(
            "unlike strides, paddings and dilations",
            (1, 2, 9, 8),
            (2, 2, 3, 2),
            bias=True,
            stride=[2, 1],
            padding=[2, 0],
            dilation=[1, 3],
        ),
        _shape("more channels than a round, a prime of outputs", (1, 37, 3, 4), (131, 37, 1, 1), mask=True),
        _shape("more pixels than a block", (1, 3, 7, 11), (2, 3, 3, 3), **_PAD),
        _shape("every channel by itself", (1, 5, 4, 4), (5, 1, 3, 3), offset_groups=5, **_PAD),
        _shape(
            "runs of one pack: groups with offsets of their own",
            (2, 16, 5, 7),
            (6, 8, 3, 3),
            offset_groups=2,
            bias=True,
            mask=True,
            **_PAD,
        ),
        _shape("runs within a filter", (1, 48, 3, 4), (5, 48, 2, 3), offset_groups=3, mask=True),
        _shape(
            "two groups of one offset group",
            (1, 16, 9, 8),
            (4, 8, 3, 2),
            bias=True,
            stride=[2, 1],
            padding=[2, 0],
            dilation=[1, 3],
        ),
        _shape("more packs than a step, more pixels and outputs than a block", (1, 40, 5, 13), (133, 40, 1, 1)),
        _shape("an empty batch of packs", (0, 8, 5, 5), (2, 8, 3, 3), bias=True),
        _shape("an empty batch", (0, 4, 5, 5), (2, 4, 3, 3), bias=True),
        _shape(
            "a stage of a ResNet-50", (1, 256, 50, 84), (256, 256, 3, 3), bias=True, mask=True, gpu_only=True, **_PAD
        ),
    ),
    dtypes=("float32", "float16", "bfloat16"),
    # The reference rounds a place between pixels relative to the size of the image, the kernel does not; then a sum
    # of normal products may cancel.  In 16 bits the tensor cores take what a tap reads rounded: each of K by up to half
    # a unit, 2^-11 of it in float16 and 2^-8 in bfloat16, by 1/sqrt(3) of that on average.  Between normal pixels it is
    # 2/3 on average, and the square sum of a filter is 1: a sum is off by 0.4 * 2^-11 on average for any K, and five
    # times that is 2^-10; in bfloat16 2^-7.
    tolerances={
        "float64": Tolerance(1e-11, 1e-12),
        "float32": Tolerance(6e-7, 1e-5),
        "float16": Tolerance(2**-10, 1e-3),
        "bfloat16": Tolerance(2**-7, 8e-3),
    },
    draw=_draw,
)
