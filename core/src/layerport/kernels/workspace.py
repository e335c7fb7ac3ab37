"""Memory that the launches of one kernel share: its scratch tensors, one behind the other in one workspace.

What a launch finds in them the launches before it wrote; nothing survives the last one.  Imports nothing foreign.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from layerport.dtypes import DType
from layerport.errors import UsageError, shown
from layerport.sizes.expressions import Expr, as_expr
from layerport.sizes.proofs import rises
from layerport.sizes.tensors import KnownDim, TensorType

WORKSPACE = ".workspace"
"""The name under which a launch is given the address of the workspace; no tensor can have it."""

MOST_SCRATCH, MOST_STEPS = 32, 32
"""The most scratch tensors, and the most launches, of one kernel."""

SCRATCH = re.compile(r"scratch\.([0-9]|[12][0-9]|3[01])")
_ALIGNMENT = 256


@dataclass(frozen=True)
class Scratch:
    """One scratch tensor of a kernel.  nbytes: over the sizes of the layer's inputs; it never falls where one grows."""

    dtype: DType
    nbytes: Expr

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scratch) and (self.dtype, str(self.nbytes)) == (other.dtype, str(other.nbytes))

    def __hash__(self) -> int:
        return hash((self.dtype, str(self.nbytes)))


@dataclass(frozen=True, eq=False)
class ScratchTensor(TensorType):
    """What `layerport.scratch` gives a launch rule: each one is memory of its own."""

    name: str = field(default="scratch", init=False)
    dtype: DType
    shape: tuple[KnownDim, ...]


def scratch(shape: int | Expr | Sequence[int | Expr], dtype: str) -> TensorType:
    """Memory that the launches of one kernel share, for the `args` of `layerport.Launch`.

    shape: one size or several: numbers, or expressions over the sizes of the layer's inputs that grow with them, since
    an engine takes the memory for its greatest sizes.  dtype: of its elements.  It begins at a multiple of 256 bytes,
    and holds what an earlier launch of the same call wrote there, garbage before.  Raises UsageError.
    """
    dims = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    faults = [
        f"axis {axis} is {shown(size)}"
        for axis, size in enumerate(dims)
        if isinstance(size, bool) or not isinstance(size, (int, Expr)) or (isinstance(size, int) and size < 0)
    ]
    faults += [f"{size} falls where a size grows" for size in dims if isinstance(size, Expr) and not rises(size)]
    known = [str(one) for one in DType]
    if dtype not in known:
        faults.append(f"dtype is {shown(dtype)}")
    if faults:
        raise UsageError(
            "lp.scratch cannot be made of these values",
            f"give sizes >= 0 or expressions that grow with the inputs, and a dtype: {', '.join(known)}",
            faults=faults,
        )
    return ScratchTensor(dtype=DType.of(dtype), shape=dims)


def scratch_of(tensor: TensorType) -> Scratch:
    """The memory of a scratch tensor."""
    return Scratch(tensor.dtype, as_expr(tensor.numel()) * tensor.itemsize)


def scratch_name(place: int) -> str:
    """The name of a kernel's scratch tensor in the arguments of its launches."""
    return f"scratch.{place}"


def lay_out(scratch: Sequence[Scratch], sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where each scratch tensor begins in the workspace, by name, and the bytes of it all.

    Raises UsageError where an expression has no value for these sizes, or a negative one.
    """
    offsets, end = {}, 0
    for place, one in enumerate(scratch):
        offsets[scratch_name(place)] = end
        nbytes = one.nbytes.evaluate(sizes)
        if nbytes < 0:
            raise UsageError(
                f"scratch tensor {place} has {nbytes} bytes for these sizes", f"correct the launch rule: {one.nbytes}"
            )
        end += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, end
