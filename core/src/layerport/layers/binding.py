"""What a layer is in Torch.  `operator` makes it, `layer` holds it.  Imports no framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


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


class OnCuda(Protocol):
    """What runs for CUDA tensors: `cuda_operator.CudaOperator`."""

    def __call__(self, *args: Any) -> Any: ...

    def explain(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Dispatch:
        """What a call runs, and why."""


class Backward(Protocol):
    """The backward that the author wrote: `autograd.WrittenBackward`."""

    def save(self, ctx: Any, inputs: tuple[Any, ...], outputs: Sequence[Any]) -> None:
        """Keep for the backward pass what it asks for."""

    def run(self, ctx: Any, gradients: Sequence[Any]) -> tuple[Any, ...]:
        """One gradient, or None, for each argument of the call."""


class TorchBinding:
    """A layer's Torch operator and what belongs to it.

    operator: the overload, or a function that says why there is none.  direct: what calls it with positional arguments
    the fastest.  is_compiling: whether torch.compile is looking, which knows the operator only.
    cuda: what runs for CUDA tensors, None where calls are refused.  backward: the one that the author wrote.
    """

    def __init__(self, operator: Any, cuda: OnCuda | None, backward: Backward | None = None) -> None:
        self.operator = self.direct = operator
        self.is_compiling: Callable[[], bool] = bool
        self.cuda = cuda
        self.backward = backward
