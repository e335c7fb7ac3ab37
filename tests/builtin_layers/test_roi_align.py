"""Boxes of a map pooled to one size: against a plain loop, in modules that call other libraries', what it refuses."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import layerport as lp
from layerport.packs.records import is_rewrite
from layerport.testing import check_backward, run_kernel
from layerport_builtin_layers import plugin
from layerport_builtin_layers.roi_align import reference
from layerport_builtin_layers.roi_align import roi_align as layer
from layerport_builtin_layers.roi_align.case import CASE
from layerport_builtin_layers.roi_align.claims import roi_align_of_any
from small_setup import ENGINE

EVERY = bool(os.environ.get("LAYERPORT_TEST_FAMILIES"))
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")


def point(plane: Tensor, y: float, x: float) -> float:
    """One point between its four pixels; pixels go on for one more, and there is nothing beyond."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = plane[top, left] * (left + 1 - x) + plane[top, right] * (x - left)
    lower = plane[bottom, left] * (left + 1 - x) + plane[bottom, right] * (x - left)
    return float(upper * (top + 1 - y) + lower * (y - top))


def roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: Any,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    pool_mode: str = "avg",
) -> Tensor:
    """torchvision's function, whose package is not here, point by point; as mmcv's with the largest point too."""
    if isinstance(boxes, list):
        boxes = torch.cat([torch.cat((one.new_full((len(one), 1), n), one), 1) for n, one in enumerate(boxes)])
    rows, columns = (output_size,) * 2 if isinstance(output_size, int) else output_size
    result = input.new_zeros(len(boxes), input.shape[1], rows, columns)
    for number, (image, *edges) in enumerate(boxes.tolist()):
        left, top, right, bottom = (edge * spatial_scale - 0.5 * aligned for edge in edges)
        height, width = bottom - top, right - left
        if not aligned:
            height, width = max(height, 1.0), max(width, 1.0)
        down, across = height / rows, width / columns
        points = [max(sampling_ratio if sampling_ratio > 0 else math.ceil(one), 0) for one in (down, across)]
        for channel, row, column in torch.cartesian_prod(*map(torch.arange, result.shape[1:])).tolist():
            values = [
                point(
                    input[int(image), channel],
                    top + (row + (i + 0.5) / points[0]) * down,
                    left + (column + (j + 0.5) / points[1]) * across,
                )
                for i in range(points[0])
                for j in range(points[1])
            ]
            pooled = max(values, default=0.0) if pool_mode == "max" else sum(values) / max(len(values), 1)
            result[number, channel, row, column] = pooled
    return result


# The largest box has half a million points.
CHECKED = [
    one
    for one in CASE.cases()
    if one.choice == "float32"
    and one.shape.reason
    not in ("boxes of any kind", "boxes of any kind, centres", "the largest in boxes of any kind", "no boxes")
]


@pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.id)
def test_it_computes_what_a_loop_over_points_computes(case: Any) -> None:
    x, boxes, *attributes = case.arguments(case.tensors())
    expected = roi_align(x[:, :2].double(), boxes.double(), *attributes)
    torch.testing.assert_close(layer(x[:, :2].double(), boxes.double(), *attributes), expected)


@needs_compiler
@pytest.mark.parametrize("ratio", [-1, 1, 3])
def test_the_largest_point_may_be_the_zero_that_lies_outside(ratio: int) -> None:
    x = -torch.rand(1, 2, 3, 4, generator=torch.Generator().manual_seed(3)) - 1
    edges = [[0, 0, 3, 2], [-3, 0, 3, 2], [1, 1, 9, 9], [1, -4, 2, 2], [3, 2, 1, 1], [-9, -9, -5, -5], [2, 0, 2, 3]]
    boxes = torch.tensor([[0.0, *one] for one in edges])
    for aligned in (False, True):
        expected = roi_align(x.double(), boxes.double(), [2, 2], 1.0, ratio, aligned, "max")
        assert (expected == 0).any() and (expected < 0).any()
        torch.testing.assert_close(layer(x.double(), boxes.double(), [2, 2], 1.0, ratio, aligned, "max"), expected)
        got = torch.from_numpy(run_kernel(layer, x, boxes, [2, 2], 1.0, ratio, aligned, "max")).double()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_box_far_larger_than_the_map_reads_what_lies_in_it() -> None:
    x, box = torch.rand(1, 1, 3, 4, dtype=torch.float64), torch.tensor([[0, -30.0, -20, 25, 31]], dtype=torch.float64)
    for pool_mode in ("avg", "max"):
        given = (x, box, [2, 1], 1.0, -1, False, pool_mode)
        torch.testing.assert_close(layer(*given), roi_align(*given))
    # All its points lie in the map or outside; so many that only sums of the inner ones end in time.
    huge = torch.tensor([[0, -1e9, -1e9, 1e9, 1e9]], dtype=torch.float64)
    assert layer(x, huge, [1, 1]).abs().item() < 1e-15


class RoIAlign(nn.Module):
    """Of the look of torchvision's class."""

    def __init__(self, size: Any, scale: float = 1.0, ratio: int = -1, aligned: bool = False) -> None:
        super().__init__()
        self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned = size, scale, ratio, aligned

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)


X = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(1))
BOXES = torch.tensor([[0, 1.5, 2, 6, 7], [1, 0, 0, 3, 4], [1, 4, 4, 8, 6.5]])


def test_modules_that_average_boxes_are_claimed_and_no_others() -> None:
    for boxes in (BOXES, [BOXES[:1, 1:], BOXES[1:, 1:]]):
        module = RoIAlign((2, 3), 0.5, 2, True)
        answer = plugin.layerport_export_parameters(module=module, name="it")
        assert is_rewrite(answer) and answer.layers == (layer,)
        torch.testing.assert_close(answer.forward(module, X, boxes), module(X, boxes))
    for other in (nn.AdaptiveAvgPool2d(7), Head()):
        assert plugin.layerport_export_parameters(module=other, name="it") is None


def test_one_name_with_the_arguments_of_two_libraries() -> None:
    moved, plain = layer(X, BOXES, [2, 2], 0.5, 2, True), layer(X, BOXES, [2, 2], 0.5, 2, False)
    assert torch.equal(roi_align_of_any(X, BOXES, 2, 0.5, 2, True), moved)
    assert torch.equal(roi_align_of_any(X, BOXES, (2, 2), 0.5, 2), plain)
    assert torch.equal(roi_align_of_any(X, BOXES, (2, 2), 0.5, 2, "avg", True), moved)
    assert torch.equal(roi_align_of_any(X, BOXES, 2, 0.5, 2, "avg", False), plain)
    assert torch.equal(roi_align_of_any(X, rois=BOXES, output_size=2, spatial_scale=0.5, sampling_ratio=2), moved)
    largest = layer(X, BOXES, [2, 2], 0.5, 2, True, "max")
    assert not torch.equal(largest, moved)
    assert torch.equal(roi_align_of_any(X, BOXES, 2, 0.5, 2, "max"), largest)
    assert torch.equal(roi_align_of_any(X, BOXES, 2, 0.5, 2, pool_mode="max", aligned=True), largest)
    with pytest.raises(lp.UsageError, match="roi_align.pool_mode: expected str one of 'avg', 'max', got str 'sum'"):
        roi_align_of_any(X, BOXES, 2, 0.5, 2, "sum")


class LargestRoIAlign(nn.Module):
    """As mmcv's class calls its function."""

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return roi_align(input, rois, (2, 3), 0.5, 2, aligned=True, pool_mode="max")


def test_a_module_that_takes_the_largest_is_claimed() -> None:
    module = LargestRoIAlign()
    answer = plugin.layerport_export_parameters(module=module, name="it")
    assert is_rewrite(answer) and answer.layers == (layer,)
    torch.testing.assert_close(answer.forward(module, X, BOXES), module(X, BOXES))


class Head(nn.Module):
    """As the second stage of a detector: boxes of a backbone's map, averaged to one size, then classified."""

    def __init__(self, *, largest: bool = False) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 6, 3, stride=4, padding=1)
        self.pool = LargestRoIAlign() if largest else RoIAlign(3, 0.25)
        self.classes = nn.Linear(36 if largest else 54, 4)

    def forward(self, image: Tensor, boxes: Tensor) -> Tensor:
        result: Tensor = self.classes(self.pool(self.backbone(image).relu(), boxes).flatten(1))
        return result


@needs_compiler
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16] if EVERY else [torch.float32])
def test_a_detectors_head_builds_with_its_boxes_as_a_plugin(dtype: torch.dtype, largest: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Head(largest=largest).eval().to(dtype)
    boxes = torch.tensor([[0, 3, 4, 30, 28], [1, 0, 0, 9, 17], [1, 5.5, 6, 20, 31], [0, 1, 1, 2, 2]], dtype=dtype)
    args = (torch.randn(2, 3, 32, 36, dtype=dtype), boxes)
    shapes = ({0: Dim("batch", min=1, max=4), 2: Dim("height", min=16, max=64)}, {0: Dim("boxes", min=1, max=50)})
    report = lp.build((model, args, shapes), tmp_path / "a.lp", target=ENGINE)
    assert report.counts == {layer.name: {"plugin": 1}}
    assert report.verification is not None and report.verification.passed
    assert {one.answer for one in report.verification.kernels} == {"right"}
    assert list((tmp_path / "a.lp").glob("*.plan"))
    more = torch.tensor([[2, 3, 4, 30, 28], [1, 0, 0, 9, 47.0]], dtype=dtype).repeat(4, 1)
    image = torch.randn(3, 3, 50, 36, dtype=dtype)
    if dtype != torch.bfloat16:  # which NumPy has not
        with lp.load(tmp_path / "a.lp") as session, torch.no_grad():
            (got,) = session.run({"image": image.numpy(), "boxes": more.numpy()}).values()
            torch.testing.assert_close(torch.from_numpy(got), model(image, more), rtol=1e-2, atol=1e-3)


SHAPES = "roi_align: shapes do not fit: x "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0], BOXES, [2, 2]), SHAPES),
        ((X, BOXES[0], [2, 2]), SHAPES),
        ((X, BOXES[:, 1:], [2, 2]), SHAPES),
        ((X[:, :, :0], BOXES, [2, 2]), SHAPES),
        ((X, BOXES, [2]), r"roi_align: output_size is \[2\]; give rows and columns, each from 1"),
        ((X, BOXES, [0, 2]), r"roi_align: output_size is \[0, 2\]"),
        ((X, BOXES.half(), [2, 2]), "roi_align: dtypes do not fit: x torch.float32, boxes torch.float16"),
        ((X.long(), BOXES, [2, 2]), "roi_align: dtypes do not fit: x torch.int64"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(*arguments)


STRANGE = torch.tensor(
    [[2, 1, 1, 3, 3], [-1, 1, 1, 3, 3], [float("nan"), 1, 1, 3, 3], [1e30, 1, 1, 3, 3], [0, 1, 1, 3, 3]]
)


@pytest.mark.parametrize("row", range(4))
def test_images_that_there_are_not_are_refused_on_the_cpu(row: int) -> None:
    with pytest.raises(RuntimeError, match="roi_align: boxes name images that x does not have; give numbers from 0"):
        layer(X, STRANGE[row : row + 1], [2, 2])


@lp.layer("builtin_tests::unchecked_roi_align")
def unchecked(
    x: Tensor,
    boxes: Tensor,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    pool_mode: str,
) -> Tensor:
    """The kernel alone, as an engine runs it: with no reference that refuses its boxes."""
    return x.new_zeros(boxes.shape[0], x.shape[1], *output_size)


SOURCE = str(Path(reference.__file__).with_name("kernel.cu"))
for largest, kernel in zip(("false", "true"), layer.kernels, strict=True):
    unchecked.kernel(
        lp.cuda(SOURCE, f"roi_align<{{x}}, {{boxes}}, {largest}>"),
        dtypes=("float32",),
        when=kernel.when,
        name=kernel.name,
    )(reference.launch)


@needs_compiler
@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_a_kernel_writes_zeros_for_images_that_there_are_not(pool_mode: str) -> None:
    got = torch.from_numpy(run_kernel(unchecked, X, STRANGE, [2, 2], 1.0, -1, False, pool_mode))
    assert not got[:4].any() and got[4].all()


UNUSUAL = (float("nan"), float("inf"), -float("inf"))


@needs_compiler
@pytest.mark.parametrize("pool_mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [-1, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_what_is_not_finite_stays_so_and_spoils_no_other(ratio: int, aligned: bool, pool_mode: str) -> None:
    x = X.clone()
    x[0, 1, 3, [2, 4, 6]] = torch.tensor(UNUSUAL)
    boxes = torch.tensor([[0, 0, 0, 8, 6.0]] + [[1, 1, 1, 4, 5.0]] * 12)
    for row, (place, value) in enumerate((place, value) for place in (1, 2, 3, 4) for value in UNUSUAL):
        boxes[row + 1, place] = value
    expected = layer(x, boxes, [4, 4], 1.0, ratio, aligned, pool_mode)
    assert not expected[1:].any() and expected[0, [0, 2]].isfinite().all() and expected[0, 1, 0].isfinite().all()
    assert not expected[0, 1].isfinite().all()
    got = torch.from_numpy(run_kernel(layer, x, boxes, [4, 4], 1.0, ratio, aligned, pool_mode).astype("float64"))
    torch.testing.assert_close(got, expected.double(), rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("ratio", "pool_mode"), [(-1, "avg"), (-1, "max"), (2, "max")])
def test_its_backward_is_the_gradient_of_the_reference(ratio: int, pool_mode: str) -> None:
    boxes = torch.tensor([[0, 1, 0.5, 3, 2.75], [1, -3, 2, 60, 5], [1, 2, 3, 2, 3]])
    check_backward(layer, X[:, :1, :3, :4], boxes, [2, 1], 1.0, ratio, True, pool_mode)


@needs_compiler
@pytest.mark.filterwarnings("ignore")
def test_a_node_from_before_the_largest_averages(tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = (torch.randn(2, 3, 32, 36), torch.tensor([[0, 3, 4, 30, 28], [1, 0, 0, 9, 17.0]]))
    model = Head().eval()
    lp.build((model, args), tmp_path / "a.lp", target="portable")
    proto = onnx.load(tmp_path / "a.lp" / "model.onnx")
    (node,) = (one for one in proto.graph.node if one.op_type == "roi_align")
    kept = [one for one in node.attribute if one.name != "pool_mode"]
    assert len(kept) == len(node.attribute) - 1
    del node.attribute[:]
    node.attribute.extend(kept)
    onnx.save(proto, tmp_path / "before.onnx")
    report = lp.build(tmp_path / "before.onnx", tmp_path / "b.lp", target=ENGINE)
    assert report.counts == {layer.name: {"plugin": 1}}
    assert report.verification is not None and {one.answer for one in report.verification.kernels} == {"right"}
    with lp.load(tmp_path / "b.lp") as session, torch.no_grad():
        (got,) = session.run({"image": args[0].numpy(), "boxes": args[1].numpy()}).values()
        torch.testing.assert_close(torch.from_numpy(got), model(*args), rtol=1e-4, atol=1e-4)
