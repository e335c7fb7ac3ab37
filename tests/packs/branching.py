"""Layers whose references branch on sizes, or are traced by Torch as if they did."""

from __future__ import annotations

from torch import Tensor

import layerport as lp


@lp.layer("branching::even", version=1)
def even(x: Tensor) -> Tensor:
    """Another factor for an odd number of rows."""
    return x * 2 if x.shape[0] % 2 == 0 else x * 3


@lp.layer("branching::long", version=1)
def long(x: Tensor) -> Tensor:
    """Another factor from a million rows on."""
    return x * 2 if x.shape[0] < 1_000_000 else x * 3


@lp.layer("branching::prime", version=1)
def prime(x: Tensor) -> Tensor:
    """Another factor for one number of rows only, in the middle of the range."""
    return x * 3 if x.shape[0] == 37 else x * 2


@lp.layer("branching::single", version=1)
def single(x: Tensor) -> Tensor:
    """Another factor for one row."""
    return x * 3 if x.shape[0] == 1 else x * 2


@lp.layer("branching::turned", version=1)
def turned(x: Tensor) -> Tensor:
    """All elements by columns, where Torch rules out one row without need."""
    return x.transpose(0, 1).reshape(-1)


@lp.layer("branching::head", version=1)
def head(x: Tensor) -> Tensor:
    """The first four rows, fewer where there are fewer."""
    return x[:4] * 2


@lp.layer("branching::halves", version=1)
def halves(x: Tensor) -> Tensor:
    """It fails itself for an odd number of rows."""
    if x.shape[0] % 2:
        raise ValueError("an even number of rows is needed")
    return x * 2


@lp.layer("branching::ruled", version=1)
def ruled(x: Tensor) -> Tensor:
    """Its author wrote the sizes, so nothing is derived from its branch."""
    return x * 2 if x.shape[0] % 2 == 0 else x * 3


@ruled.shape_rule
def sizes(x):  # type: ignore[no-untyped-def]
    return (x.dtype, x.shape)


@lp.hookimpl
def layerport_layers() -> tuple[lp.Layer, ...]:
    return (even, long, prime, single, turned, head, halves, ruled)
