"""A RAFT is claimed as its authors and as torchvision write it, in small classes of the same form."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

import layerport as lp
from layerport.packs.records import is_rewrite
from layerport_builtin_layers import plugin
from layerport_builtin_layers.local_correlation import local_correlation
from small_setup import ENGINE

RADIUS, LEVELS, UPDATES = 1, 2, 2


def pyramid_of(left: Tensor, right: Tensor) -> list[Tensor]:
    """The volume of all pairs, averaged over blocks of the second image."""
    batch, channels, height, width = left.shape
    volume = torch.einsum("nchw,ncij->nhwij", left, right) / channels**0.5
    levels = [volume.reshape(batch * height * width, 1, height, width)]
    for _ in range(LEVELS - 1):
        levels.append(functional.avg_pool2d(levels[-1], 2, stride=2))
    return levels


def windows_of(levels: list[Tensor], places: Tensor) -> Tensor:
    batch, _, height, width = places.shape
    along = torch.linspace(-RADIUS, RADIUS, 2 * RADIUS + 1)
    window = torch.stack(torch.meshgrid(along, along, indexing="ij"), -1)
    found = []
    for level, volume in enumerate(levels):
        grid = places.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2) / 2**level + window
        size = torch.tensor([volume.shape[3] - 1, volume.shape[2] - 1])
        values = functional.grid_sample(volume, 2 * grid / size - 1, align_corners=True)
        found.append(values.view(batch, height, width, -1))
    return torch.cat(found, -1).permute(0, 3, 1, 2).contiguous()


class CorrBlock:
    """The authors': made anew in each forward."""

    def __init__(self, fmap1: Tensor, fmap2: Tensor, num_levels: int = 4, radius: int = 4) -> None:
        assert (num_levels, radius) == (LEVELS, RADIUS)
        self.levels = pyramid_of(fmap1, fmap2)

    def __call__(self, coords: Tensor) -> Tensor:
        return windows_of(self.levels, coords)


class Block(nn.Module):
    """torchvision's: a module whose forward nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.num_levels, self.radius = LEVELS, RADIUS
        self.corr_pyramid = [torch.tensor(0)]

    def build_pyramid(self, fmap1: Tensor, fmap2: Tensor) -> None:
        self.corr_pyramid = pyramid_of(fmap1, fmap2)

    def index_pyramid(self, centroids_coords: Tensor) -> Tensor:
        return windows_of(self.corr_pyramid, centroids_coords)


class Authors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.flow = nn.Conv2d(LEVELS * (2 * RADIUS + 1) ** 2 + 2, 2, 3, padding=1)

    def forward(self, image1: Tensor, image2: Tensor) -> Tensor:
        left, right = self.maps(image1), self.maps(image2)
        look_up = self.lookups(left, right)
        y, x = torch.meshgrid(*(torch.arange(size) for size in left.shape[2:]), indexing="ij")
        start = torch.stack((x, y)).float().expand(left.shape[0], -1, -1, -1)
        places = start
        for _ in range(UPDATES):
            places = places + self.flow(torch.cat((look_up(places), places - start), 1))
        return places - start

    def lookups(self, left: Tensor, right: Tensor) -> Any:
        return CorrBlock(left, right, num_levels=LEVELS, radius=RADIUS)


class Torchvisions(Authors):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.corr_block = block

    def lookups(self, left: Tensor, right: Tensor) -> Any:
        block: Any = self.corr_block
        block.build_pyramid(left, right)
        return lambda places: block.index_pyramid(centroids_coords=places)


MODELS = {"authors": Authors, "torchvision": lambda: Torchvisions(Block())}


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_each_lookup_becomes_a_plugin(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = MODELS[name]().eval()
    images = (torch.randn(2, 3, 32, 48), torch.randn(2, 3, 32, 48))
    batch = Dim("batch", min=1, max=4)
    report = lp.build((model, images, ({0: batch}, {0: batch})), tmp_path / "a.lp", target=ENGINE)
    assert report.counts == {local_correlation.name: {"plugin": LEVELS * UPDATES}}
    assert [one.module for one in report.claims] == [""]
    assert report.verification is not None and report.verification.passed
    assert {one.answer for one in report.verification.kernels} == {"right"}


def test_the_model_keeps_its_own_lookups(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = Torchvisions(Block()).eval(), (torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32))
    before, attributes = model(*images), set(vars(model.corr_block))
    lp.build((model, images), tmp_path / "a.lp", target="portable")
    assert torch.equal(model(*images), before)
    assert set(vars(model.corr_block)) == attributes


class OtherArguments(Block):
    def index_pyramid(self, centroids_coords: Tensor, level: int = 0) -> Tensor:
        return windows_of(self.corr_pyramid[level:], centroids_coords)


class Weighted(Block):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


class WithoutRadius(Block):
    def __init__(self) -> None:
        super().__init__()
        del self.radius


@pytest.mark.parametrize("block", [OtherArguments, Weighted, WithoutRadius, nn.Identity])
def test_what_only_looks_like_a_pyramid_is_left_alone(block: type[nn.Module]) -> None:
    assert is_rewrite(plugin.layerport_export_parameters(module=Torchvisions(Block()), name="it"))
    assert plugin.layerport_export_parameters(module=Torchvisions(block()), name="it") is None
