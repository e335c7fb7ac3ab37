"""Which modules look up correlations: a RAFT, as its authors and as torchvision write it.

Both average the volume of all pairs over blocks of the second image, which is the volume of that image's averaged map,
so a level of their pyramid is a lookup in such a map, and no volume is kept.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import layerport as lp
from layerport_builtin_layers.local_correlation.reference import local_correlation
from layerport_builtin_layers.module_looks import held, replace_calls


def claim_local_correlation(module: torch.nn.Module) -> Any:
    """The rewritten forward of a RAFT; None for any other module."""
    if _looks_up(held(module, "corr_block")):
        return lp.rewrite(_with_lookups, layers=(local_correlation,))
    return replace_calls(module, dict.fromkeys(_CLASSES, Lookups), local_correlation)


class Lookups:
    """A pyramid of maps, with the arguments of the authors' classes, which keep the volume or compute it anew."""

    def __init__(self, fmap1: Tensor, fmap2: Tensor, num_levels: int = 4, radius: int = 4) -> None:
        self._left, self._radius = fmap1, radius
        self._levels = [fmap2]
        for _ in range(num_levels - 1):
            self._levels.append(functional.avg_pool2d(self._levels[-1], 2, stride=2))

    def __call__(self, coords: Tensor) -> Tensor:
        """The windows around these places at each level: (batch, levels * window, height, width)."""
        levels = enumerate(self._levels)
        return torch.cat(
            [local_correlation(self._left, one, coords / 2**level, self._radius) for level, one in levels], 1
        )


_CLASSES = ("CorrBlock", "AlternateCorrBlock")


def _looks_up(block: Any) -> bool:
    """Whether it is torchvision's block of lookups, by its methods and what it holds."""
    if not isinstance(block, torch.nn.Module) or next(block.parameters(), None) is not None:
        return False
    sizes = (held(block, "num_levels"), held(block, "radius"))
    return all(type(one) is int for one in sizes) and [_names(block, method) for method in _METHODS] == _ARGUMENTS


_METHODS = ("build_pyramid", "index_pyramid")
_ARGUMENTS = [["fmap1", "fmap2"], ["centroids_coords"]]


def _names(block: torch.nn.Module, method: str) -> list[str]:
    function = inspect.getattr_static(type(block), method, None)
    return list(inspect.signature(function).parameters)[1:] if inspect.isfunction(function) else []


def _with_lookups(module: Any, *args: Any, **kwargs: Any) -> Any:
    with _looking_up(module.corr_block):
        return type(module).forward(module, *args, **kwargs)


@contextlib.contextmanager
def _looking_up(block: Any) -> Iterator[None]:
    """The block's two methods, hidden by those of a pyramid of maps."""
    pyramid: list[Lookups] = []

    def build_pyramid(fmap1: Tensor, fmap2: Tensor) -> None:
        pyramid[:] = [Lookups(fmap1, fmap2, block.num_levels, block.radius)]

    def index_pyramid(centroids_coords: Tensor) -> Tensor:
        return pyramid[0](centroids_coords)

    own = vars(block)
    own |= dict(zip(_METHODS, (build_pyramid, index_pyramid), strict=True))
    try:
        yield
    finally:
        for method in _METHODS:
            del own[method]
