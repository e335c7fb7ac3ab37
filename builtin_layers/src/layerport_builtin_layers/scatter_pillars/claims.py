"""Which modules write pillars into a map: those of the look of mmdet3d's `PointPillarsScatter`."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

import layerport as lp
from layerport_builtin_layers.module_looks import held
from layerport_builtin_layers.scatter_pillars.reference import scatter_pillars

_INPUTS = ("voxel_features", "coors", "batch_size")


def claim_scatter_pillars(module: torch.nn.Module) -> Any:
    """The rewritten forward of a module that writes pillars into a map; None for any other."""
    forward: Any = inspect.unwrap(type(module).forward)
    sizes = held(module, "ny"), held(module, "nx")
    if getattr(forward, "__code__", None) is None or not all(type(size) is int for size in sizes):
        return None
    signature = inspect.signature(forward)
    if tuple(signature.parameters)[1:] != _INPUTS:
        return None

    def scatter(module: Any, *args: Any, **kwargs: Any) -> Tensor:
        bound = signature.bind(module, *args, **kwargs)
        bound.apply_defaults()
        features, places, batch = (bound.arguments[name] for name in _INPUTS)
        if batch is None:  # then its places have no samples: z, row, column
            places, batch = torch.nn.functional.pad(places, (1, 0)), 1
        result: Tensor = scatter_pillars(features, places, batch, module.ny, module.nx)
        return result

    return lp.rewrite(scatter, layers=(scatter_pillars,))
