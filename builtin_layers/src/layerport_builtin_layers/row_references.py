"""What the references of the norms in `rows.h` share: what they refuse, and what those of a sum return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AddedAndNormalised(NamedTuple):
    """The sum that goes on as the next residual, and its normalisation."""

    total: Tensor
    normalised: Tensor


def refuse_unlike(layer: str, x: Tensor, residual: Tensor) -> None:
    """Raise ValueError where a residual is not of x's shape and dtype."""
    if x.shape != residual.shape or x.dtype != residual.dtype:
        raise ValueError(
            f"{layer}: x is {x.dtype} {list(x.shape)}, residual is {residual.dtype} {list(residual.shape)}; "
            "give both the same shape and dtype"
        )


def refuse_params(layer: str, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    """Raise ValueError where weight or bias does not fit the last axis of x."""
    given = {name: one for name, one in (("weight", weight), ("bias", bias)) if one is not None}
    if x.ndim == 0 or any(one.shape != x.shape[-1:] for one in given.values()):
        wrong = "".join(f" and {name} {list(one.shape)}" for name, one in given.items())
        raise ValueError(
            f"{layer}: shapes do not fit: x {list(x.shape)}{wrong}; give x: (..., C), weight: (C,) and bias: (C,)"
        )
