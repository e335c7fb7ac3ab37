"""Correlation in a window: against RAFT's volume of all pairs, in an update block, what it refuses."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

import layerport as lp
from layerport.testing import run_kernel
from layerport_builtin_layers.local_correlation import local_correlation as layer
from layerport_builtin_layers.local_correlation.case import CASE
from small_setup import ENGINE

EVERY = bool(os.environ.get("LAYERPORT_TEST_FAMILIES"))
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")


def looked_up(left: Tensor, right: Tensor, places: Tensor, radius: int) -> Tensor:
    """As RAFT does it: the volume of all pairs, sampled around each place."""
    batch, channels, height, width = left.shape
    rows, columns = right.shape[2:]
    volume = torch.einsum("nchw,ncij->nhwij", left, right).reshape(-1, 1, rows, columns) / math.sqrt(channels)
    along = torch.arange(-radius, radius + 1, dtype=left.dtype)
    window = torch.stack(torch.meshgrid(along, along, indexing="ij"), -1)  # the first axis moves x
    grid = places.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2) + window
    grid = (grid + 0.5) / torch.tensor([columns, rows], dtype=left.dtype) * 2 - 1
    return (
        functional.grid_sample(volume, grid, align_corners=False).reshape(batch, height, width, -1).permute(0, 3, 1, 2)
    )


@pytest.mark.parametrize("case", [one for one in CASE.cases() if one.choice == "float32"], ids=lambda case: case.id)
def test_it_computes_what_a_lookup_in_the_volume_computes(case: Any) -> None:
    left, right, places, radius = (
        one.double() if isinstance(one, Tensor) else one for one in case.arguments(case.tensors())
    )
    if left.shape[0]:
        torch.testing.assert_close(layer(left, right, places, radius), looked_up(left, right, places, radius))


class Update(nn.Module):
    """A step of a small RAFT: maps of two images, the lookup at two levels, and a better flow."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.flow = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(2 * 9 + 2, 2, 3, padding=1)

    def forward(self, image: Tensor, other: Tensor, flow: Tensor) -> Tensor:
        left, right = self.maps(image), self.maps(other)
        row, column = (torch.arange(size, dtype=flow.dtype) for size in left.shape[2:])
        grid = torch.stack((column.expand(left.shape[2:]), row.unsqueeze(1).expand(left.shape[2:])))
        places = grid + flow
        levels = layer(left, right, places, 1), layer(left, functional.avg_pool2d(right, 2), places / 2, 1)
        result: Tensor = flow + self.flow(torch.cat((*levels, flow), 1))
        return result


@needs_compiler
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16] if EVERY else [torch.float32])
def test_an_update_block_builds_with_its_lookups_as_plugins(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = (torch.randn(2, 3, 16, 24, dtype=dtype), torch.randn(2, 3, 16, 24, dtype=dtype))
    flow = torch.randn(2, 2, 8, 12, dtype=dtype) * 2
    batch = Dim("batch", min=1, max=4)
    report = lp.build(
        (Update().eval().to(dtype), (*images, flow), ({0: batch}, {0: batch}, {0: batch})),
        tmp_path / "a.lp",
        target=ENGINE,
    )
    assert report.counts == {layer.name: {"plugin": 2}}
    assert report.verification is not None and report.verification.passed
    assert {one.answer for one in report.verification.kernels} == {"right"}
    assert list((tmp_path / "a.lp").glob("*.plan"))


LEFT, RIGHT, PLACES = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 7), torch.rand(2, 2, 4, 5) * 8 - 1
SHAPES = "local_correlation: shapes do not fit: left "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LEFT[0], RIGHT, PLACES, 1), SHAPES),
        ((LEFT[:, :2], RIGHT, PLACES, 1), SHAPES),
        ((LEFT, RIGHT[:1], PLACES, 1), SHAPES),
        ((LEFT, RIGHT[..., :0], PLACES, 1), SHAPES),
        ((LEFT, RIGHT, PLACES[:, :1], 1), SHAPES),
        ((LEFT, RIGHT, PLACES[..., :4], 1), SHAPES),
        ((LEFT[:, :0], RIGHT[:, :0], PLACES, 1), SHAPES),
        (
            (LEFT, RIGHT, PLACES.half(), 1),
            "local_correlation: dtypes do not fit: left torch.float32, right torch.float32, ",
        ),
        ((LEFT.int(), RIGHT.int(), PLACES.int(), 1), "local_correlation: dtypes do not fit: "),
        ((LEFT, RIGHT, PLACES, -1), "local_correlation: radius is -1; give one from 0 to 8"),
        ((LEFT, RIGHT, PLACES, 9), "local_correlation: radius is 9; give one from 0 to 8"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(*arguments)


@needs_compiler
@pytest.mark.parametrize("radius", [0, 8] if EVERY else [8])
def test_the_smallest_and_the_largest_window(radius: int) -> None:
    got = torch.from_numpy(run_kernel(layer, LEFT, RIGHT, PLACES, radius))
    torch.testing.assert_close(got, layer(LEFT, RIGHT, PLACES, radius), rtol=1e-4, atol=1e-5)


@needs_compiler
def test_what_is_not_finite_stays_so_and_spoils_no_other() -> None:
    left, right, places = LEFT.clone(), RIGHT.clone(), PLACES.clone()
    left[0, 1, 2, 3], right[1, 0, 0, 0] = float("nan"), float("inf")
    places[1, 0, 3, 4], places[1, 1, 3, 3], places[1, 0, 3, 2] = float("nan"), float("inf"), -1e30
    expected = layer(left, right, places, 1)
    assert expected[0, :, 2, 3].isnan().any() and expected[0].isnan().sum() <= 9
    assert not expected[1, :, 3, 2:].any()
    got = torch.from_numpy(run_kernel(layer, left, right, places, 1))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
