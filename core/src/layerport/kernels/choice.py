"""Which kernel of a layer takes a call, known sizes and dtypes given, and why each other one does not.

The Torch CUDA operator asks it; `layers.dispatch` tells the answer to people.  Imports no framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from layerport.dtypes import DType
from layerport.kernels.declaration import Kernel, TensorArg
from layerport.kernels.tracing import trace_predicate
from layerport.parameters.signature import Attribute, Signature


@dataclass(frozen=True, eq=False)
class Selection:
    """The kernel that takes a call with its dtypes, None where no kernel does; and why each one before it does not."""

    kernel: Kernel | None
    dtypes: Mapping[str, DType]
    reasons: tuple[str, ...]


class HasKernels(Protocol):
    """A layer, as far as the choice of its kernel goes."""

    @property
    def name(self) -> str: ...

    @property
    def kernels(self) -> tuple[Kernel, ...]: ...

    @property
    def signature(self) -> Signature: ...


def select(
    layer: HasKernels,
    tensors: Mapping[str, TensorArg | None],
    attributes: Mapping[str, Attribute],
    *,
    only: str | None = None,
) -> Selection:
    """The first kernel of the layer that takes these tensors.

    tensors: every tensor argument and output by the layer's names, sizes as numbers, None for an absent one.
    only: the name of the one kernel that may be chosen.
    Raises PackError for a predicate or dtype table that is at fault.
    """
    present = {name: tensor.dtype for name, tensor in tensors.items() if tensor is not None}
    reasons = []
    for kernel in (one for one in layer.kernels if only is None or one.name == only):
        combinations = kernel.combinations(layer.signature)
        match = next((one for one in combinations if all(one[name] == present[name] for name in present)), None)
        if match is None:
            stated = " | ".join(show_dtypes(one) for one in combinations)
            reasons.append(f"{kernel.name} takes {stated}, here are {show_dtypes(present)}")
            continue
        # The sizes are numbers, so the predicate is one as well.
        guard = trace_predicate(kernel, layer.signature, tensors, attributes, layer=layer.name)
        if guard is None or guard.evaluate({}):
            return Selection(kernel, match, tuple(reasons))
        shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in tensors.items() if one is not None)
        reasons.append(f"{kernel.name}: its predicate is false for {shapes}")
    return Selection(None, present, tuple(reasons) or ("the layer has no kernel",))


def show_dtypes(dtypes: Mapping[str, DType]) -> str:
    """A combination of dtypes in messages."""
    if len(set(dtypes.values())) == 1:
        return next(iter(dtypes.values())).value
    return "(" + ", ".join(f"{name} {dtype.value}" for name, dtype in dtypes.items()) + ")"
