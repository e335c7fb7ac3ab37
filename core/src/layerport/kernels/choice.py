"""Which kernels of a layer take given tensors, and in words why each other one does not.

Builds ask it with sizes known later, the Torch CUDA operator and the tests of kernels with numbers;
`layers.dispatch` tells the answer to people.  Imports no framework.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from layerport.dtypes import DType
from layerport.kernels.declaration import Kernel
from layerport.kernels.tracing import trace_predicate
from layerport.parameters.signature import Attribute, Signature
from layerport.sizes.expressions import Const, Expr
from layerport.sizes.tensors import TensorType


@dataclass(frozen=True, eq=False)
class Candidate:
    """A kernel with the dtypes that it has here.

    guard: where it may run, an expression of value 0 or 1; None: wherever its layer does.
    """

    kernel: Kernel
    dtypes: Mapping[str, DType]
    guard: Expr | None


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


def candidates(
    layer: HasKernels,
    tensors: Mapping[str, TensorType | None],
    attributes: Mapping[str, Attribute],
    *,
    only: str | None = None,
) -> Iterator[Candidate | str]:
    """Each kernel of the layer, in its order: as a candidate, or in words why it takes no such tensors.

    tensors: every tensor argument and output by the layer's names, None for an absent one; a guard is over those sizes
    that are no numbers.  only: the name of the one kernel that is asked for; the others are not looked at.
    Raises PackError for a predicate or dtype table that is at fault.
    """
    for kernel in layer.kernels:
        if only is not None and kernel.name != only:
            continue
        dtypes = dtypes_for(kernel, layer.signature, tensors)
        if dtypes is None:
            stated = " | ".join(show_dtypes(one) for one in kernel.combinations(layer.signature))
            yield f"{kernel.name} takes {stated}, here are {show_dtypes(_dtypes(layer.signature, tensors))}"
            continue
        if open_dims := kernel.open_dims(layer.signature, tensors):
            yield f"{kernel.name}: it is compiled for one value of {', '.join(open_dims)}, which is not static here"
            continue
        guard = trace_predicate(kernel, layer.signature, tensors, attributes, layer=layer.name)
        if isinstance(guard, Const) and not guard.value:
            shapes = ", ".join(f"{one.name} [{', '.join(map(str, one.shape))}]" for one in tensors.values() if one)
            yield f"{kernel.name}: its predicate is false for {shapes}"
            continue
        yield Candidate(kernel, dtypes, None if isinstance(guard, Const) else guard)


def select(
    layer: HasKernels,
    tensors: Mapping[str, TensorType | None],
    attributes: Mapping[str, Attribute],
    *,
    only: str | None = None,
) -> Selection:
    """The first kernel of the layer that takes these tensors, all sizes of which are numbers.

    Arguments and errors as in `candidates`.
    """
    reasons: list[str] = []
    for one in candidates(layer, tensors, attributes, only=only):
        if isinstance(one, Candidate):
            return Selection(one.kernel, one.dtypes, tuple(reasons))
        reasons.append(one)
    present = _dtypes(layer.signature, tensors)
    return Selection(None, present, tuple(reasons) or ("the layer has no kernel",))


def dtypes_for(
    kernel: Kernel, signature: Signature, tensors: Mapping[str, TensorType | None]
) -> Mapping[str, DType] | None:
    """The combination of dtypes of a kernel that these tensors have; None where it has none."""
    present = _dtypes(signature, tensors)
    combinations = kernel.combinations(signature)
    return next((one for one in combinations if all(one[name] is dtype for name, dtype in present.items())), None)


def _dtypes(signature: Signature, tensors: Mapping[str, TensorType | None]) -> dict[str, DType]:
    # Sizes that depend on data are always int64.
    names = {*(argument.name for argument in signature.tensors), *signature.output_names}
    return {name: one.dtype for name, one in tensors.items() if one is not None and name in names}


def show_dtypes(dtypes: Mapping[str, DType]) -> str:
    """A combination of dtypes in messages."""
    if len(set(dtypes.values())) == 1:
        return next(iter(dtypes.values())).value
    return "(" + ", ".join(f"{name} {dtype.value}" for name, dtype in dtypes.items()) + ")"
