"""Deformable convolution: against one by `grid_sample`, in modules that call other libraries', what it refuses."""

from __future__ import annotations

import os
import shutil
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

import layerport as lp
from layerport.packs.records import is_rewrite
from layerport.testing import CaseShape, kernel_for, run_kernel
from layerport_builtin_layers import plugin
from layerport_builtin_layers.deform_conv2d import deform_conv2d as layer
from layerport_builtin_layers.deform_conv2d.case import CASE
from layerport_builtin_layers.deform_conv2d.claims import FUNCTIONS
from small_setup import ENGINE

EVERY = bool(os.environ.get("LAYERPORT_TEST_FAMILIES"))
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """torchvision's function, whose package is not here, tap by tap through Torch's own sampling."""
    batch, channels, height, width = input.shape
    rows, columns = offset.shape[2:]
    taps = weight.shape[2] * weight.shape[3]
    moves = offset.reshape(batch, -1, taps, 2, rows, columns)
    scales = torch.ones_like(moves[:, :, :, 0]) if mask is None else mask.reshape(batch, -1, taps, rows, columns)
    groups = moves.shape[1]
    read = input.new_zeros(batch, channels, taps, rows, columns)
    for group, part in enumerate(input.chunk(groups, 1)):
        for tap in range(taps):
            down, right = divmod(tap, weight.shape[3])
            y = (
                torch.arange(rows).reshape(-1, 1) * stride[0]
                - padding[0]
                + down * dilation[0]
                + moves[:, group, tap, 0]
            )
            x = torch.arange(columns) * stride[1] - padding[1] + right * dilation[1] + moves[:, group, tap, 1]
            grid = torch.stack(((x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1), -1).to(input.dtype)
            found = functional.grid_sample(part, grid, align_corners=False) * scales[:, group, tap].unsqueeze(1)
            read[:, group * part.shape[1] : (group + 1) * part.shape[1], tap] = found
    outputs, depth = weight.shape[:2]
    filters = weight.reshape(channels // depth, -1, depth * taps)
    result = filters @ read.reshape(batch, channels // depth, depth * taps, rows * columns)
    result = result.reshape(batch, outputs, rows, columns)
    return result if bias is None else result + bias.reshape(-1, 1, 1)


def modulated_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    deform_groups: int,
) -> Tensor:
    """mmcv's function."""
    return deform_conv2d(input, offset, weight, bias, (stride,) * 2, (padding,) * 2, (dilation,) * 2, mask)


@pytest.mark.parametrize("case", [one for one in CASE.cases() if one.choice == "float32"], ids=lambda case: case.id)
def test_it_computes_what_sampling_tap_by_tap_computes(case: Any) -> None:
    x, offset, weight, bias, mask, *attributes = case.arguments(case.tensors())
    tensors = [one if one is None else one.double() for one in (x, offset, weight, bias, mask)]
    if x.shape[0]:
        expected = deform_conv2d(*tensors[:4], *attributes, tensors[4])
        torch.testing.assert_close(layer(*tensors, *attributes), expected)


class DeformConv2d(nn.Module):
    """Of the look of torchvision's class."""

    def __init__(self, channels: int, outputs: int, size: int, *, groups: int = 1, **attributes: int) -> None:
        super().__init__()
        named = (("stride", 1), ("padding", 0), ("dilation", 1))
        self.stride, self.padding, self.dilation = ((attributes.get(name, one),) * 2 for name, one in named)
        self.weight = nn.Parameter(torch.randn(outputs, channels // groups, size, size) * 0.2)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return deform_conv2d(
            input,
            offset,
            self.weight,
            self.bias,
            stride=self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            mask=mask,
        )


class Modulated(nn.Module):
    """As mmcv's class calls its function."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 3, 3))

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return modulated_deform_conv2d(x, offset, mask, self.weight, None, 1, 1, 1, 1, 2)


class Ours(nn.Module):
    """What calls the layer already, under the name of torchvision's function."""

    def forward(self, x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        return deform_conv2d(x, offset, weight)


Ours.forward = types.FunctionType(Ours.forward.__code__, {"deform_conv2d": layer})  # type: ignore[method-assign]


def given(channels: int = 4, groups: int = 2, size: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, channels, size, size), (2, 18 * groups, size, size), (2, 9 * groups, size, size))
    x, offset, mask = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, offset, mask.sigmoid()


def test_modules_that_convolve_are_claimed_and_no_others() -> None:
    x, offset, mask = given()
    for module, args in ((DeformConv2d(4, 3, 3, padding=1), (x, offset, mask)), (Modulated(), (x, offset, mask))):
        answer = plugin.layerport_export_parameters(module=module, name="it")
        assert is_rewrite(answer) and answer.layers == (layer,)
        torch.testing.assert_close(answer.forward(module, *args), module(*args), rtol=1e-4, atol=1e-4)
    for other in (Ours(), nn.Conv2d(4, 3, 3), Block()):
        assert plugin.layerport_export_parameters(module=other, name="it") is None


MMCV = {"groups": 1, "deform_groups": 2, "im2col_step": 32}


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((None, (1, 1), (1, 1)), {}), ((), {"padding": [1, 1]}), ((1, 1, 1, 1, 2), {}), ((), {"padding": 1, **MMCV})],
)
def test_one_name_with_the_arguments_of_two_libraries(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x, offset, _ = given()
    weight = torch.randn(3, 4, 3, 3)
    expected = layer(x, offset, weight, None, None, [1, 1], [1, 1])
    assert torch.equal(FUNCTIONS["deform_conv2d"](x, offset, weight, *args, **kwargs), expected)


class Block(nn.Module):
    """As in networks with deformable convolutions (v2): offsets and masks come from a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.where = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 27, 3, padding=1)
        self.deformed, self.last = DeformConv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image).relu()
        y, x_of_tap, mask = self.where(x).chunk(3, 1)
        result: Tensor = self.last(self.deformed(x, torch.cat((y, x_of_tap), 1), mask.sigmoid()).relu())
        return result


@needs_compiler
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16] if EVERY else [torch.float32])
def test_a_network_builds_with_its_convolution_as_a_plugin(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch, size = Dim("batch", min=1, max=4), Dim("half", min=4, max=32)
    args = (torch.randn(2, 3, 20, 16, dtype=dtype),)
    shapes = ({0: batch, 2: 2 * size, 3: 2 * Dim("half_width", min=4, max=32)},)
    report = lp.build((Block().eval().to(dtype), args, shapes), tmp_path / "a.lp", target=ENGINE)
    assert report.counts == {layer.name: {"plugin": 1}}
    assert report.verification is not None and report.verification.passed
    assert {one.answer for one in report.verification.kernels} == {"right"}
    assert list((tmp_path / "a.lp").glob("*.plan"))


X, OFFSET, MASK = given()
WEIGHT, BIAS = torch.randn(3, 4, 3, 3), torch.randn(3)
SHAPES = "deform_conv2d: shapes do not fit: x "
DTYPES = "deform_conv2d: dtypes do not fit: x torch"
PAIRS = r"deform_conv2d: stride is \[.*; give two of each, along y and x: stride and dilation from 1, padding from 0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0], OFFSET, WEIGHT), SHAPES),
        ((X[:1], OFFSET, WEIGHT), SHAPES),
        ((X[:, :3], OFFSET, WEIGHT), SHAPES),
        ((X, OFFSET[:, :35], WEIGHT), SHAPES),
        ((X, OFFSET[:, :0], WEIGHT), SHAPES),
        ((X, OFFSET[..., :5], WEIGHT), SHAPES),
        ((X, OFFSET, WEIGHT[0]), SHAPES),
        ((X, OFFSET, WEIGHT[:, :3]), SHAPES),
        ((X, OFFSET, WEIGHT[:, :2]), SHAPES),  # two groups of three outputs
        ((X, OFFSET, WEIGHT[:0]), SHAPES),
        ((X, OFFSET, WEIGHT, BIAS[:2]), SHAPES),
        ((X, OFFSET, WEIGHT, None, MASK[:, :9]), SHAPES),
        ((X, OFFSET, WEIGHT, None, MASK[:, :, :1]), SHAPES),
        ((X[:, :, :0], OFFSET, WEIGHT), SHAPES),
        ((X, OFFSET, WEIGHT, None, None, [2, 1]), SHAPES),
        ((X, OFFSET, WEIGHT, None, None, [1, 1], [1, 1], [4, 4]), SHAPES),
        ((X, OFFSET, WEIGHT, None, None, [0, 1]), PAIRS),
        ((X, OFFSET, WEIGHT, None, None, [1, 1], [-1, 1]), PAIRS),
        ((X, OFFSET, WEIGHT, None, None, [1, 1], [1, 1], [1]), PAIRS),
        ((X.half(), OFFSET, WEIGHT), DTYPES),
        ((X, OFFSET, WEIGHT, BIAS.half()), DTYPES),
        ((X.int(), OFFSET.int(), WEIGHT.int()), DTYPES),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    x, offset, weight, *rest = arguments
    rest += [None, None, [1, 1], [1, 1]][len(rest) :]
    with pytest.raises(ValueError, match=message):
        layer(x, offset, weight, *rest)


# Where the reference in float32 is off by more than the kernel may be.
FAR = {"x": (1, 1, 2, 3000), "offset": (1, 2, 2, 75), "weight": (1, 1, 1, 1), "bias": None, "mask": None}
LONG = {"x": (1, 512, 3, 18), "offset": (1, 18, 1, 16), "weight": (32, 512, 3, 3), "bias": None, "mask": None}


@needs_compiler
@pytest.mark.parametrize(
    "shape",
    [
        CaseShape("far from the origin of a wide map", FAR, {"stride": [1, 40]}),
        CaseShape("thousands of products in a sum", LONG),
    ],
    ids=lambda shape: shape.reason,
)
def test_kernel_is_right_at_sizes_where_rounding_adds_up(shape: CaseShape) -> None:
    (case,) = replace(CASE, shapes=(shape,), dtypes=("float32",)).cases()
    tensors = case.tensors()
    case.check(run_kernel(layer, *case.arguments(tensors)), case.expected(tensors))


@needs_compiler
def test_offsets_far_outside_read_nothing() -> None:
    x, offset, _ = given()
    far = torch.tensor([3e9, -3e9, 1e30, -1e30, 2147483648.0, -2147483648.0, 6.0, -7.0])
    offset[0, :8, 2, 3], offset[0, 8, 2, 3] = far, -1e-10
    expected = layer(x, offset, WEIGHT, BIAS, None, [1, 1], [1, 1])
    got = torch.from_numpy(run_kernel(layer, x, offset, WEIGHT, BIAS, None, [1, 1], [1, 1]))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


UNUSUAL = (float("nan"), float("inf"), -float("inf"))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_not_finite_stays_so_and_spoils_no_other(dtype: torch.dtype) -> None:
    x, offset, mask = (one.to(dtype) for one in given())
    x[0, 1, 2, [1, 3, 5]] = torch.tensor(UNUSUAL, dtype=dtype)
    offset[1, [0, 5, 30], 4, 4] = torch.tensor(UNUSUAL, dtype=dtype)
    mask[1, [2, 7, 17], 1, 1] = torch.tensor(UNUSUAL, dtype=dtype)
    rest = (WEIGHT.to(dtype), BIAS.to(dtype), mask, [1, 1], [1, 1])
    expected = layer(x, offset, *rest)
    assert expected[1, :, 4, 4].isfinite().all() and not expected[1, :, 1, 1].isfinite().any()
    assert expected[1].isfinite().sum() == expected[1].numel() - 3
    got = torch.from_numpy(run_kernel(layer, x, offset, *rest).astype("float64"))
    torch.testing.assert_close(got, expected.double(), rtol=8e-3, atol=1e-3, equal_nan=True)


@needs_compiler
def test_on_tensor_cores_what_is_not_finite_or_far_outside_spoils_no_other() -> None:
    x, offset, mask = (one.half() for one in given(channels=16))
    weight = torch.randn(5, 16, 3, 3, generator=torch.Generator().manual_seed(4)).half() / 12
    x[0, 1, 2, 3], mask[1, 2, 1, 1] = torch.nan, torch.inf
    offset[1, [0, 5, 30], 4, 4] = torch.tensor(UNUSUAL, dtype=torch.float16)
    offset[1, :4, 2, 3] = torch.tensor([65504.0, -65504.0, 6.0, -7.0])
    arguments = (x, offset, weight, None, mask, [1, 1], [1, 1])
    assert kernel_for(layer, *arguments) == "deform_tensor"
    expected = layer(*arguments)
    assert 0 < (~expected.isfinite()).sum() < expected.numel() / 2
    got = torch.from_numpy(run_kernel(layer, *arguments).astype("float64"))
    torch.testing.assert_close(got, expected.double(), rtol=1e-3, atol=2**-10, equal_nan=True)


def test_gradients_of_offsets_that_are_not_finite_are_zero() -> None:
    x, offset, mask = (one.double() for one in given())
    offset[0, 0, 0, 0] = float("inf")
    inputs = [one.requires_grad_() for one in (x, offset, WEIGHT.double(), mask)]
    result = layer(*inputs[:3], None, inputs[3], [1, 1], [1, 1]).sum()
    gradients = torch.autograd.grad(result, inputs)
    assert all(one.isfinite().all() for one in gradients) and gradients[1][0, 0, 0, 0] == 0
