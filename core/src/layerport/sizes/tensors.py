"""What is known of a tensor before it has elements: the one description that all rooms share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.sizes.expressions import Const, Expr, Symbol, as_expr

Dim: TypeAlias = "int | Expr | None"
KnownDim: TypeAlias = "int | Expr | Any"  # what a rule sees is never None, and rules calculate with it


@dataclass(frozen=True, eq=False)
class TensorType:
    """A tensor's name, dtype and shape.

    shape: each dim is a size, an expression over sizes known later, or None where only its axis is known.  Dims that
    are the same expression are equal.  Rules of a layer see sizes of other tensors as symbols: "x.0" is axis 0 of x.
    """

    name: str
    dtype: DType
    shape: tuple[KnownDim, ...]

    def __post_init__(self) -> None:
        # What is known to be a number is one: a rule may take roots and quotients of it.
        shape = tuple(int(dim) if isinstance(dim, Const) else dim for dim in self.shape)
        for axis, dim in enumerate(shape):
            good = dim is None or isinstance(dim, Expr) or (isinstance(dim, int) and dim >= 0)
            if not good or isinstance(dim, bool):
                raise UsageError(
                    f"{self.name}: axis {axis} of a tensor is {dim!r}",
                    "give a size >= 0, an expression over sizes, or None",
                )
        object.__setattr__(self, "shape", shape)

    @classmethod
    def symbolic(cls, name: str, dtype: DType, rank: int) -> TensorType:
        """A tensor of which only the rank is known; its sizes are the symbols "name.0", "name.1", ..."""
        return cls(name, dtype, (None,) * rank).by_place()

    @property
    def ndim(self) -> int:
        """The number of dims."""
        return len(self.shape)

    @property
    def dims(self) -> tuple[Expr, ...]:
        """The shape as expressions, the symbol of its place where nothing is known of a dim."""
        return tuple(self._place(axis) if dim is None else as_expr(dim) for axis, dim in enumerate(self.shape))

    def symbols(self) -> frozenset[str]:
        """The names of the sizes that its shape depends on."""
        return frozenset().union(*(dim.symbols() for dim in self.dims))

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    def numel(self) -> int | Expr:
        """The number of elements."""
        return math.prod(self.shape)

    def by_place(self) -> TensorType:
        """The same tensor with the symbol of its place ("x.0") for each dim that is no number."""
        dims = (dim if isinstance(dim, int) else self._place(axis) for axis, dim in enumerate(self.shape))
        return TensorType(self.name, self.dtype, tuple(dims))

    def _place(self, axis: int) -> Symbol:
        return Symbol(f"{self.name}.{axis}")

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for these sizes.  Raises UsageError where a dim does not follow from them."""
        shape = []
        for axis, dim in enumerate(self.shape):
            if dim is None:
                raise UsageError(f"{self.name}: axis {axis} has no known size", "give it a name in the model")
            shape.append(dim if isinstance(dim, int) else dim.evaluate(sizes))
        return tuple(shape)

    def _parts(self) -> tuple[Any, ...]:
        # Comparing expressions makes expressions, so their texts are compared.
        return self.name, self.dtype, tuple(map(str, self.shape))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorType) and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash(self._parts())

    def __str__(self) -> str:
        return f"{self.name}: {self.form}"

    @property
    def form(self) -> str:
        """dtype and shape in words, such as `float16[batch, 8, ?]`."""
        return f"{self.dtype}[{', '.join('?' if dim is None else str(dim) for dim in self.shape)}]"


def renamed(tensors: Iterable[TensorType], names: Iterable[str]) -> tuple[TensorType, ...]:
    """The same tensors, as many as the names, under these names."""
    return tuple(replace(tensor, name=name) for tensor, name in zip(tensors, names, strict=True))


def sizes_of(shapes: Mapping[str, Any]) -> dict[str, int]:
    """The value of each place ("x.0") for shapes by the tensor's name."""
    return {f"{name}.{axis}": int(size) for name, shape in shapes.items() for axis, size in enumerate(shape)}
