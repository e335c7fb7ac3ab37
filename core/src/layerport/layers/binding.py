"""What a layer is in Torch.  `operator` makes it, `layer` holds it.  Imports no framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerport.layers.autograd import WrittenBackward
    from layerport.layers.cuda_operator import CudaOperator


class TorchBinding:
    """A layer's Torch operator and what belongs to it.

    operator: the overload, or a function that says why there is none.  direct: what calls it with positional arguments
    the fastest.  is_compiling: whether torch.compile is looking, which knows the operator only.
    cuda: what runs for CUDA tensors, None where calls are refused.  backward: the one that the author wrote.
    """

    def __init__(self, operator: Any, cuda: CudaOperator | None, backward: WrittenBackward | None = None) -> None:
        self.operator = self.direct = operator
        self.is_compiling: Callable[[], bool] = bool
        self.cuda = cuda
        self.backward = backward
