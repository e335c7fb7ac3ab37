"""What a call of a layer runs, told to people: `layerport.explain_dispatch`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerport.layers.layer import Layer


@dataclass(frozen=True)
class Dispatch:
    """What a call of a layer runs.

    device: where the call's tensors are.  kernel: the name of the kernel that runs there, None for the reference.
    reasons: why it is the reference, or why each kernel before the chosen one is passed over.
    """

    layer: str
    device: str
    kernel: str | None
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        what = f"kernel {self.kernel}" if self.kernel else "the reference"
        return "\n  ".join((f"{self.layer} on {self.device} runs {what}", *self.reasons))


def explain_dispatch(layer: Layer, *args: Any, **kwargs: Any) -> Dispatch:
    """What a call of the layer with these arguments runs: which kernel, or the reference, and why.

    args, kwargs: as in the call, Torch tensors on any device.  Nothing runs and nothing is compiled.
    Raises UsageError for arguments that the call would refuse.
    """
    binding = layer._torch
    if binding.cuda is None:
        return binding.operator(*args, **kwargs)  # type: ignore[no-any-return]  # it raises: defined twice, or anew
    return binding.cuda.explain(args, kwargs)
