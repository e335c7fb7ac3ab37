"""Pillars written into a map: against a plain loop, in modules of mmdet3d's look, what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import layerport as lp
from layerport.packs.records import is_rewrite
from layerport_builtin_layers import plugin
from layerport_builtin_layers.scatter_pillars import scatter_pillars as layer
from layerport_builtin_layers.scatter_pillars.case import CASE
from small_setup import ENGINE

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")
FLOAT32 = [one for one in CASE.cases() if one.choice == CASE.dtypes[0]]


@pytest.mark.parametrize("case", FLOAT32, ids=lambda case: case.id)
def test_it_writes_what_a_loop_over_pillars_writes(case: Any) -> None:
    features, places, batch, height, width = case.arguments(case.tensors())
    expected = torch.zeros(batch, features.shape[1], height, width)
    for one, (sample, _, row, column) in zip(features, places.tolist(), strict=True):
        if 0 <= sample < batch and 0 <= row < height and 0 <= column < width:
            expected[sample, :, row, column] = one
    assert torch.equal(layer(features, places, batch, height, width), expected)


class PointPillarsScatter(nn.Module):
    """Of the look of mmdet3d's class, whose samples are written one by one."""

    def __init__(self, channels: int, output_shape: tuple[int, int]) -> None:
        super().__init__()
        self.in_channels, self.output_shape = channels, output_shape
        self.ny, self.nx = output_shape

    def forward(self, voxel_features: Tensor, coors: Tensor, batch_size: int | None = None) -> Tensor:
        if batch_size is None:
            return self.one(voxel_features, coors[:, 1] * self.nx + coors[:, 2])
        samples = [coors[:, 0] == sample for sample in range(batch_size)]
        return torch.cat([self.one(voxel_features[own], coors[own, 2] * self.nx + coors[own, 3]) for own in samples])

    def one(self, features: Tensor, cell: Tensor) -> Tensor:
        canvas = features.new_zeros(self.in_channels, self.ny * self.nx)
        canvas[:, cell.long()] = features.T
        return canvas.reshape(1, self.in_channels, self.ny, self.nx)


FEATURES = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
PLACES = torch.tensor([[0, 0, 1, 2], [1, 0, 3, 3], [0, 0, 0, 0], [1, 0, 1, 2], [0, 0, 3, 1]])


def test_modules_that_write_pillars_are_claimed_and_no_others() -> None:
    module = PointPillarsScatter(3, (4, 5))
    answer = plugin.layerport_export_parameters(module=module, name="it")
    assert is_rewrite(answer) and answer.layers == (layer,)
    assert torch.equal(answer.forward(module, FEATURES, PLACES, 2), module(FEATURES, PLACES, 2))
    assert torch.equal(answer.forward(module, FEATURES, PLACES.int(), batch_size=2), module(FEATURES, PLACES, 2))
    single = PLACES[[0, 2, 4], 1:]
    assert torch.equal(answer.forward(module, FEATURES[:3], single), module(FEATURES[:3], single))
    for other in (nn.Conv2d(3, 3, 1), Detector()):
        assert plugin.layerport_export_parameters(module=other, name="it") is None


class Detector(nn.Module):
    """The middle of PointPillars: features of pillars, the map, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.last = nn.Linear(4, 3), nn.Conv2d(3, 2, 3, padding=1)
        self.scatter = PointPillarsScatter(3, (4, 5))

    def forward(self, pillars: Tensor, places: Tensor) -> Tensor:
        result: Tensor = self.last(self.scatter(self.features(pillars).relu(), places, 2))
        return result


@needs_compiler
@pytest.mark.filterwarnings("ignore")
def test_a_network_builds_with_its_map_as_a_plugin(tmp_path: Path) -> None:
    torch.manual_seed(0)
    count = Dim("pillars", min=1, max=64)
    model, args = Detector().eval(), (torch.randn(5, 4), PLACES)
    report = lp.build((model, args, ({0: count}, {0: count})), tmp_path / "a.lp", target=ENGINE)
    assert report.counts == {layer.name: {"plugin": 1}}
    assert report.verification is not None and report.verification.passed
    assert {one.answer for one in report.verification.kernels} == {"right"}
    assert list((tmp_path / "a.lp").glob("*.plan"))


def test_gradients_go_to_the_pillars_that_stay() -> None:
    features = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    places = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 9, 1]])
    layer(features, places, 1, 2, 2).sum().backward()
    assert features.grad is not None and features.grad.tolist() == [[0, 0], [1, 1], [0, 0]]


MAP = (2, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FEATURES[0], PLACES, *MAP), r"scatter_pillars: shapes do not fit: features \[3\], places \[5, 4\]; give"),
        ((FEATURES, PLACES[:, 1:], *MAP), "scatter_pillars: shapes do not fit: "),
        ((FEATURES, PLACES[:4], *MAP), "scatter_pillars: shapes do not fit: "),
        ((FEATURES, PLACES, 0, 4, 5), "scatter_pillars: batch is 0, height 4, width 5; give the map's, each from 1"),
        ((FEATURES, PLACES, 2, 4, -5), "scatter_pillars: batch is 2, height 4, width -5"),
        ((FEATURES, PLACES.float(), *MAP), "dtypes do not fit: features torch.float32, places torch.float32; give"),
        ((FEATURES.int(), PLACES, *MAP), "scatter_pillars: dtypes do not fit: features torch.int32"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(*arguments)
