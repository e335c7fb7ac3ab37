"""The two algebras: how values are made of values, in *exact* to the bit, in *real* as formulas.

`rules` says what an operator computes in terms of these; views are values of their own in both, and chains of them are
one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from layerport.search.values import LITERAL, Shape, Table, Value, added, as_product, as_sum, merged

Number: TypeAlias = float | int
Operand: TypeAlias = Value | float | int


class Exact:
    """Values that are the same to the bit."""

    is_real = False

    def __init__(self) -> None:
        self.table = Table()

    def number(self, value: Operand) -> Value:
        """A number as a value."""
        if isinstance(value, Value):
            return value
        text = value if hasattr(value, "free_symbols") else repr(float(value))
        return self.table.operator("number", (), (("value", text),), (), None)

    def operator(
        self, op: str, args: Sequence[Value], literals: tuple[Any, ...], shape: Shape, dtype: torch.dtype
    ) -> Value:
        """What any operator gives."""
        return self.table.operator(op, args, literals, shape, dtype)

    def cast(self, value: Value, source: torch.dtype, target: torch.dtype) -> Value:
        """The value in another dtype."""
        if source == target:
            return value
        return self.operator("cast", (value,), (), value.shape, target)

    def add(self, one: Operand, other: Operand, shape: Shape, dtype: torch.dtype) -> Value:
        return self._commutative("add", one, other, shape, dtype)

    def sub(self, one: Operand, other: Operand, shape: Shape, dtype: torch.dtype) -> Value:
        return self.operator("sub", (self.number(one), self.number(other)), (), shape, dtype)

    def mul(self, one: Operand, other: Operand, shape: Shape, dtype: torch.dtype) -> Value:
        return self._commutative("mul", one, other, shape, dtype)

    def div(self, one: Operand, other: Operand, shape: Shape, dtype: torch.dtype) -> Value:
        return self.operator("div", (self.number(one), self.number(other)), (), shape, dtype)

    def power(self, value: Value, exponent: Number, shape: Shape, dtype: torch.dtype) -> Value:
        if exponent == 2:
            return self.mul(value, value, shape, dtype)
        names = {0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
        if (name := names.get(exponent)) is not None:
            return self.operator(name, (value,), (), shape, dtype)
        return self.operator("pow", (value,), (("exponent", repr(float(exponent))),), shape, dtype)

    def _commutative(self, op: str, one: Operand, other: Operand, shape: Shape, dtype: torch.dtype) -> Value:
        pair = sorted((self.number(one), self.number(other)), key=id)
        return self.operator(op, pair, (), shape, dtype)


class Real:
    """Values that are the same as formulas over the real numbers."""

    is_real = True

    def __init__(self) -> None:
        self.table = Table()

    def number(self, value: Operand) -> Value:
        """A number as a value; a size of the model is one of its own."""
        if isinstance(value, Value):
            return value
        if hasattr(value, "free_symbols"):
            return self.table.operator("number", (), (("value", value),), (), None)
        return self.table.literal(float(value))

    def operator(
        self, op: str, args: Sequence[Value], literals: tuple[Any, ...], shape: Shape, dtype: torch.dtype
    ) -> Value:
        return self.table.operator(op, args, literals, shape, category(dtype))

    def cast(self, value: Value, source: torch.dtype, target: torch.dtype) -> Value:
        # A float of eight bits keeps so little that the cast is a step of the formula.
        coarse = any(one.is_floating_point and one.itemsize < 2 for one in (source, target)) and source != target
        # A narrower integer keeps the last bits only.
        coarse = coarse or (category(target) == "int" and not _holds(target, source))
        if category(source) == category(target) and not coarse:
            return value
        return self.operator(
            "cast", (value,), (("to", str(target) if coarse else category(target)),), value.shape, target
        )

    def add(self, one: Operand, other: Operand, shape: Shape, dtype: torch.dtype) -> Value:
        return self._sum(one, other, 1.0, shape, dtype)

    def sub(self, one: Operand, other: Operand, shape: Shape, dtype: torch.dtype) -> Value:
        return self._sum(one, other, -1.0, shape, dtype)

    def mul(self, one: Operand, other: Operand, shape: Shape, dtype: torch.dtype) -> Value:
        coefficient, factors = as_product(self._operand(one))
        more, others = as_product(self._operand(other))
        return self._of_shape(self.table.product(coefficient * more, merged(factors, others)), shape, dtype)

    def div(self, one: Operand, other: Operand, shape: Shape, dtype: torch.dtype) -> Value:
        divisor = self._operand(other)
        if divisor.op == LITERAL and divisor.number == 0:
            return self.operator("div", (self.number(one), divisor), (), shape, dtype)
        return self.mul(one, self.table.power(divisor, -1.0), shape, dtype)

    def power(self, value: Value, exponent: Number, shape: Shape, dtype: torch.dtype) -> Value:
        return self._of_shape(self.table.power(self._operand(value), float(exponent)), shape, dtype)

    def _sum(self, one: Operand, other: Operand, factor: float, shape: Shape, dtype: torch.dtype) -> Value:
        constant, terms = as_sum(self.table, self._operand(one))
        more, others = as_sum(self.table, self._operand(other))
        made = self.table.sum(added(constant, factor * more), merged(terms, others, factor))
        return self._of_shape(made, shape, dtype)

    def _operand(self, value: Operand) -> Value:
        """A term or a factor without what broadcasting does anyway: an expansion, first axes of 1 of a constant."""
        made = self.number(value)
        made = made.args[0] if made.op == "expand" else made
        if made.op == "view" and made.is_constant and made.shape[:1] == (1,):
            ones = next((place for place, size in enumerate(made.shape) if size != 1), len(made.shape))
            sizes = made.shape[ones:]
            source = made.args[0]
            return (
                source
                if source.shape == sizes
                else self.operator("view", (source,), (("sizes", sizes),), sizes, torch.float32)
            )
        return made

    def _of_shape(self, value: Value, shape: Shape, dtype: torch.dtype) -> Value:
        """The value with the shape that Torch says: a term that fell away may have widened it."""
        if value.shape == shape or value.op == LITERAL:
            return value
        return self.operator("expand", (value,), (("sizes", shape),), shape, dtype)


Algebra: TypeAlias = Exact | Real


def category(dtype: torch.dtype) -> str:
    """What dtypes a cast in between which changes nothing but the rounding have in common."""
    if dtype == torch.bool:
        return "bool"
    return "float" if dtype.is_floating_point else "complex" if dtype.is_complex else "int"


def _holds(target: torch.dtype, source: torch.dtype) -> bool:
    """Whether an integer dtype has every number of another."""
    if category(source) != "int":
        return target == torch.int64
    wide, own = torch.iinfo(target), torch.iinfo(source)
    return wide.min <= own.min and own.max <= wide.max


def view(algebra: Algebra, value: Value, shape: Shape, dtype: torch.dtype) -> Value:
    """The elements in another shape; views of views are one."""
    if value.op == LITERAL:
        return value
    given = value
    if value.op == "view":
        value = value.args[0]
    if value.shape == shape:
        return value
    made = algebra.operator("view", (value,), (("sizes", shape),), shape, dtype)
    if given is not value and given is not made:
        algebra.table.views.setdefault(made, {})[given] = None
    return made


def permute(algebra: Algebra, value: Value, order: Sequence[int], dtype: torch.dtype) -> Value:
    """The axes in another order."""
    if value.op == LITERAL:
        return value
    if value.op == "permute":
        inner = value.literals[0][1]
        value, order = value.args[0], [inner[axis] % len(order) for axis in order]
    if list(order) == list(range(len(order))):
        return value
    shape = tuple(value.shape[axis] for axis in order)
    # Counted from the end, so that it says the same where there are more axes before.
    dims = tuple(axis - len(order) for axis in order)
    return algebra.operator("permute", (value,), (("dims", dims),), shape, dtype)


def part(algebra: Algebra, value: Value, dim: int, start: Any, step: int, size: Any, dtype: torch.dtype) -> Value:
    """`size` elements along a dim; parts of parts are one.

    One element of a last axis that a view made is every so many of the row before.
    """
    if value.op == LITERAL:
        return value
    rank = len(value.shape)
    dim = dim % rank
    if value.shape[dim] == size and step == 1:
        return value
    if value.op == "view" and size == 1 and 0 < dim == rank - 1 and isinstance(value.shape[dim], int):
        *outer, rows, count = value.shape
        whole = view(algebra, value, (*outer, rows * count), dtype)
        return view(algebra, part(algebra, whole, dim - 1, start, count, rows, dtype), (*outer, rows, 1), dtype)
    ranges: dict[int, tuple[Any, int, Any]] = {}
    shape = list(value.shape)
    if value.op == "part":
        ranges = {one[0] % rank: one[1:] for one in zip(*(entry[1] for entry in value.literals), strict=True)}
        value = value.args[0]
    first, pace, _ = ranges.get(dim, (0, 1, None))
    ranges[dim] = (first + start * pace, pace * step, size)
    shape[dim] = size
    ordered = sorted(ranges.items())
    literals: Mapping[str, Any] = {
        "dims": tuple(axis - rank for axis, _ in ordered),
        "starts": tuple(one[0] for _, one in ordered),
        "steps": tuple(one[1] for _, one in ordered),
        "sizes": tuple(one[2] for _, one in ordered),
    }
    return algebra.operator("part", (value,), tuple(literals.items()), tuple(shape), dtype)
