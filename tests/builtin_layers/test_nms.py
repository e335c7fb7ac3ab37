"""Non-maximum suppression: against a plain loop, in a detector's last step, what it refuses."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

import layerport as lp
from layerport.packs.records import is_rewrite
from layerport.testing import run_kernel
from layerport_builtin_layers import plugin
from layerport_builtin_layers.nms import nms as layer
from layerport_builtin_layers.nms.case import CASE
from small_setup import ENGINE

EVERY = bool(os.environ.get("LAYERPORT_TEST_FAMILIES"))
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")


def overlap(one: Tensor, other: Tensor) -> Tensor:
    left_top, right_bottom = torch.maximum(one[:2], other[:2]), torch.minimum(one[2:], other[2:])
    shared = (right_bottom - left_top).clamp(min=0).prod()
    areas = [(box[2:] - box[:2]).prod() for box in (one, other)]
    return shared / (areas[0] + areas[1] - shared)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """torchvision's function, whose package is not here, pair by pair."""
    waiting, kept = scores.sort(descending=True, stable=True).indices.tolist(), []
    while waiting:
        kept.append(best := waiting.pop(0))
        waiting = [one for one in waiting if not bool(overlap(boxes[best], boxes[one]) > iou_threshold)]
    return torch.tensor(kept, dtype=torch.int64)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for number in idxs.unique():
        places = (idxs == number).nonzero()[:, 0]
        kept[places[nms(boxes[places], scores[places], iou_threshold)]] = True
    order = scores.sort(descending=True, stable=True).indices
    return order[kept[order]]


SMALL = [one for one in CASE.cases() if "float32" in one.id and one.shape.reason != "six tiles"]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_it_keeps_what_a_loop_over_pairs_keeps(case: Any) -> None:
    boxes, scores, classes, threshold = case.arguments(case.tensors())
    expected = nms(boxes, scores, threshold) if classes is None else batched_nms(boxes, scores, classes, threshold)
    assert torch.equal(layer(boxes, scores, classes, threshold), expected)


BOXES = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 4], [1, 0, 5, 4], [9, 9, 11, 10], [0, 0, 4, 3.75]])
SCORES = torch.tensor([0.5, 0.5, 0.75, 0.5, 0.75])
CLASSES = torch.tensor([1, 0, 0, 0, 7])


@needs_compiler
@pytest.mark.parametrize(
    ("scores", "classes", "threshold", "expected"),
    [
        (SCORES, None, 0.5, [2, 3]),
        (SCORES, None, 0.6, [2, 4, 3]),  # three fifths of the union, and not more
        (SCORES, None, 0.9375, [2, 4, 0, 3]),
        (SCORES, CLASSES, 0.5, [2, 4, 0, 3]),
        (SCORES, CLASSES, 0.61, [2, 4, 0, 1, 3]),
        (SCORES, None, 1.0, [2, 4, 0, 1, 3]),
        (SCORES, None, -0.1, [2]),
        (torch.tensor([0, float("nan"), float("inf"), float("nan"), -float("inf")]), None, 1.0, [1, 3, 2, 0, 4]),
        (torch.zeros(5), None, 1.0, [0, 1, 2, 3, 4]),
        (torch.tensor([0.0, -0.0, 0.0, -0.0, 0.0]), None, 1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_order_and_edges(scores: Tensor, classes: Tensor | None, threshold: float, expected: list[int]) -> None:
    assert layer(BOXES, scores, classes, threshold).tolist() == expected
    assert run_kernel(layer, BOXES, scores, classes, threshold).tolist() == expected


@needs_compiler
def test_boxes_that_are_not_finite_suppress_nothing() -> None:
    boxes = BOXES[[0, 0, 0, 0, 0, 0]].clone()
    boxes[1, 0], boxes[2, 3], boxes[3, 2] = float("nan"), float("inf"), -float("inf")
    expected = layer(boxes, torch.arange(6.0), None, 0.5)
    assert set(expected.tolist()) >= {1, 5} and 0 not in expected
    assert run_kernel(layer, boxes, torch.arange(6.0), None, 0.5).tolist() == expected.tolist()


@needs_compiler
def test_of_no_boxes_none_are_kept() -> None:
    none = (BOXES[:0], SCORES[:0], CLASSES[:0])
    assert layer(*none).tolist() == run_kernel(layer, *none).tolist() == []


ODD = [float("nan"), float("inf"), -float("inf"), -0.0]


@needs_compiler
@settings(max_examples=100 if EVERY else 20)
@given(
    count=st.sampled_from([0, 1, 2, 63, 64, 65, 128, 129, 200]),
    seed=st.integers(0, 2**31),
    classes=st.integers(0, 3),
    field=st.sampled_from([1, 8, 40]),
    odd=st.sampled_from([0.0, 0.1]),
    threshold=st.sampled_from([-0.5, 0.0, 0.25, 0.5, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_the_kernel_keeps_what_the_reference_keeps(
    count: int, seed: int, classes: int, field: int, odd: float, threshold: float, dtype: torch.dtype
) -> None:
    """Whole numbers, so that many boxes, scores and overlaps are equal; some of the values are not finite."""
    drawn = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, field + 1, (count, 2), generator=drawn)
    boxes = torch.cat((corners, corners + torch.randint(0, 9, (count, 2), generator=drawn)), 1).to(dtype)
    scores = torch.randint(-3, 4, (count,), generator=drawn).to(dtype)
    for values in (boxes, scores):
        others = torch.tensor(ODD, dtype=dtype)[torch.randint(0, 4, values.shape, generator=drawn)]
        values.copy_(torch.where(torch.rand(values.shape, generator=drawn) < odd, others, values))
    of = torch.randint(0, classes, (count,), generator=drawn) if classes else None
    expected = layer(boxes, scores, of, threshold)
    assert run_kernel(layer, boxes, scores, of, threshold).tolist() == expected.tolist()


@needs_compiler
@pytest.mark.parametrize("apart", [0.0, 2.0, 20.0], ids=["one is kept", "chains", "all are kept"])
def test_many_tiles_and_long_chains(apart: float) -> None:
    """Boxes in a row, each of which overlaps its neighbours: one decides about the next.  More tiles than lanes."""
    left = torch.arange(2200.0) * apart
    boxes = torch.stack((left, left * 0, left + 10, left * 0 + 10), 1)
    expected = layer(boxes, -torch.arange(2200.0), None, 0.5)
    assert len(expected) == {0.0: 1, 2.0: 1100, 20.0: 2200}[apart]
    assert run_kernel(layer, boxes, -torch.arange(2200.0), None, 0.5).tolist() == expected.tolist()


@needs_compiler
def test_no_launch_leaves_its_memory() -> None:
    boxes, scores, classes, threshold = SMALL[3].arguments(SMALL[3].tensors())
    for count in (1, 64, 65, 150):
        given_ = (boxes[:count], scores[:count], classes[:count], threshold)
        assert run_kernel(layer, *given_, sanitize=True).tolist() == layer(*given_).tolist()


class Suppressed(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        return nms(boxes, scores, 0.5)


class Batched(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        return batched_nms(boxes, scores, idxs=classes.int(), iou_threshold=0.5)


def test_modules_that_suppress_are_claimed_and_no_others() -> None:
    for module in (Suppressed(), Batched()):
        answer = plugin.layerport_export_parameters(module=module, name="it")
        assert is_rewrite(answer) and answer.layers == (layer,)
        given = (BOXES, SCORES, CLASSES)
        assert torch.equal(answer.forward(module, *given), module(*given))
    assert plugin.layerport_export_parameters(module=Detector(), name="it") is None


class Last(nn.Module):
    """A detector's last step: the boxes of each class that no better one overlaps, with their scores."""

    def forward(self, boxes: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        scores, classes = logits.sigmoid().max(1)
        kept = batched_nms(boxes, scores, classes, 0.4)
        return boxes[kept], scores[kept]


class Detector(nn.Module):
    """A box and classes at each place of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.boxes, self.classes = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 3, 1)
        self.last = Last()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(image).relu()
        near, far = self.boxes(x)[0].flatten(1).T.chunk(2, 1)
        boxes = torch.cat((near, near + far.abs() + 1), 1)
        result: tuple[Tensor, Tensor] = self.last(boxes, self.classes(x)[0].flatten(1).T)
        return result


@needs_compiler
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16] if EVERY else [torch.float32])
def test_a_detector_builds_with_its_suppression_as_a_plugin(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Detector().eval().to(dtype)
    image = torch.randn(1, 3, 5, 6, dtype=dtype)
    shapes = ({2: Dim("height", min=2, max=16), 3: Dim("width", min=2, max=16)},)
    report = lp.build((model, (image,), shapes), tmp_path / "a.lp", target=ENGINE)
    assert report.counts == {layer.name: {"plugin": 1}}
    assert report.verification is not None and report.verification.passed
    assert {one.answer for one in report.verification.kernels} == {"right"}
    assert list((tmp_path / "a.lp").glob("*.plan"))
    other = torch.randn(1, 3, 9, 4, dtype=dtype)
    with lp.load(tmp_path / "a.lp") as session, torch.no_grad():
        got, expected = session.run({"image": other.numpy()}).values(), model(other)
    for ours, theirs in zip(got, expected, strict=True):
        assert 0 < theirs.shape[0] < 36
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((BOXES[0], SCORES), r"nms: shapes do not fit: boxes \[4\], scores \[5\]; give boxes: \(boxes, 4\)"),
        ((BOXES[:, :3], SCORES), "nms: shapes do not fit: "),
        ((BOXES, SCORES[:4]), "nms: shapes do not fit: "),
        ((BOXES, SCORES[:, None]), "nms: shapes do not fit: "),
        ((BOXES, SCORES, CLASSES[:4]), r"nms: shapes do not fit: .*, classes \[4\]"),
        ((BOXES.half(), SCORES), "nms: dtypes do not fit: boxes torch.float16, scores torch.float32"),
        ((BOXES.int(), SCORES.int()), "nms: dtypes do not fit: "),
        ((BOXES, SCORES, CLASSES.int()), "nms: dtypes do not fit: .* classes torch.int32; give"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(*arguments)
