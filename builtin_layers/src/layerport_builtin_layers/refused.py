"""What several references refuse alike."""

from __future__ import annotations

import math

from torch import Tensor


def refuse_other_than_floats(layer: str, **tensors: Tensor | None) -> None:
    """Raise ValueError that names each tensor of whole, complex or boolean numbers."""
    wrong = {name: one for name, one in tensors.items() if one is not None and not one.is_floating_point()}
    if wrong:
        dtypes = ", ".join(f"{name} is {one.dtype}" for name, one in wrong.items())
        raise ValueError(f"{layer}: {dtypes}; give {', '.join(wrong)} in a floating-point dtype")


def refuse_eps(layer: str, eps: float) -> None:
    """Raise ValueError for an eps that is below 0, infinite or no number."""
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"{layer}: eps is {eps}; give a finite number from 0")
