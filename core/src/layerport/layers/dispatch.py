"""What a call of a layer runs, told to people: `layerport.explain_dispatch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerport.layers.binding import Dispatch

if TYPE_CHECKING:
    from layerport.layers.layer import Layer

__all__ = ["Dispatch", "explain_dispatch"]


def explain_dispatch(layer: Layer, *args: Any, **kwargs: Any) -> Dispatch:
    """What a call of the layer with these arguments runs: which kernel, or the reference, and why.

    args, kwargs: as in the call, Torch tensors on any device.  Nothing runs and nothing is compiled.
    Raises UsageError for arguments that the call would refuse.
    """
    binding = layer._torch
    if binding.cuda is None:
        return binding.operator(*args, **kwargs)  # type: ignore[no-any-return]  # it raises: defined twice, or anew
    return binding.cuda.explain(args, kwargs)
