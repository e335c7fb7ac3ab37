"""Values: what a node of a graph computes, as one object for all that compute the same.

Two algebras make them.  *Exact* keeps every bit; *real* is equality as formulas over the real numbers: casts between
floats fall away, sums and products are flattened with their coefficients and exponents.  A table makes each value once,
so that two values are the same where they are one object.  Imports nothing of the project; the room's other files do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Parts: TypeAlias = "dict[Value, float]"
Shape: TypeAlias = tuple[Any, ...]

# No names of operators: Torch has one called sum.
INPUT, CONSTANT, LITERAL, SUM, PRODUCT = "an input", "a constant", "a literal", "a sum", "a product"


@dataclass(eq=False, slots=True)
class Value:
    """One value of a graph.

    op: INPUT, CONSTANT (of the model), LITERAL (a number), SUM, PRODUCT, or an operator's name.
    number: a literal, the constant of a sum, the coefficient of a product.  parts: the terms of a sum with their
    coefficients, the factors of a product with their exponents.
    args, literals: of any other operator; literals is a tuple of (argument, value), with HOLE for each tensor.
    is_constant: whether it depends on no input of the model.
    """

    op: str
    args: tuple[Value, ...]
    literals: tuple[Any, ...]
    shape: Shape
    is_constant: bool
    number: float = 0.0
    parts: Parts = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<{self.op} {self.literals or ''}>"

    @property
    def inner(self) -> Iterable[Value]:
        """The values that it is made of."""
        return self.args or self.parts


class Hole:
    """The place of a tensor among an operator's literals."""

    def __repr__(self) -> str:
        return "HOLE"


HOLE = Hole()


class Table:
    """Makes values, each once, and finds sums and products by what they are made of.

    views: of a view of views, which is one value, those that it was made from.
    """

    def __init__(self) -> None:
        self.views: dict[Value, dict[Value, None]] = {}
        self._made: dict[Any, Value] = {}
        self._by_parts: dict[Any, list[Value]] = {}

    def leaf(self, op: str, name: str, shape: Shape) -> Value:
        """A value of its own: an input or a constant of the model."""
        return self._once((op, name), lambda: Value(op, (), (name,), shape, op == CONSTANT))

    def unique(self, name: str, shape: Shape) -> Value:
        """A value that equals no other, because what makes it is random, or not known."""
        return Value(name, (), (), shape, False)

    def literal(self, number: float) -> Value:
        """A number."""
        number = kept(number)
        key = (LITERAL, "nan") if math.isnan(number) else (LITERAL, tidy(number))
        return self._once(key, lambda: Value(LITERAL, (), (), (), True, number))

    def operator(self, op: str, args: Iterable[Value], literals: tuple[Any, ...], shape: Shape, kind: Any) -> Value:
        """What an operator makes of its arguments.  kind: what else tells it apart, such as the dtype."""
        args = tuple(args)

        def make() -> Value:
            return Value(op, args, literals, shape, all(one.is_constant for one in args) and _static(literals))

        return self._once((op, args, literals, shape, kind), make)

    def sum(self, constant: float, terms: Mapping[Value, float]) -> Value:
        """constant + the terms times their coefficients; a term is neither a sum nor has a coefficient of its own."""
        constant = kept(constant)
        terms = {term: number for term, factor in terms.items() if (number := kept(factor)) != 0}
        if not terms:
            return self.literal(constant)
        if constant == 0 and len(terms) == 1:
            ((term, factor),) = terms.items()
            return self.product(factor, as_product(term)[1])
        return self._combined(SUM, constant, terms)

    def product(self, coefficient: float, factors: Mapping[Value, float]) -> Value:
        """coefficient * the factors to the power of their exponents; a factor is no product."""
        coefficient = kept(coefficient)
        factors = {factor: number for factor, exponent in factors.items() if (number := kept(exponent)) != 0}
        if not factors or coefficient == 0:
            return self.literal(coefficient)
        if tidy(coefficient) == 1 and len(factors) == 1:
            ((factor, exponent),) = factors.items()
            if tidy(exponent) == 1:
                return factor
        return self._combined(PRODUCT, coefficient, factors)

    def power(self, value: Value, exponent: float) -> Value:
        """value ** exponent, where the exponent of a factor may be multiplied without a change of sign."""
        coefficient, factors = as_product(value)
        if not factors:
            try:
                return self.literal(math.pow(coefficient, exponent))
            except (ArithmeticError, ValueError):  # no real number
                return self.operator("pow", (value,), (("exponent", exponent),), value.shape, "float")
        if coefficient == 0:
            return self.product(1.0, {value: exponent})
        whole = float(exponent).is_integer()
        single = len(factors) == 1 and coefficient > 0 and not _is_even(next(iter(factors.values())))
        if whole or single:
            raised = {factor: own * exponent for factor, own in factors.items()}
            return self.product(coefficient**exponent, raised)
        return self.product(1.0, {value: exponent})

    def known_sums(self, constant: float, terms: Mapping[Value, float]) -> list[Value]:
        """The sums made so far of these parts, with any shape."""
        constant = tidy(constant)
        if constant == 0 and len(terms) == 1:
            ((term, factor),) = terms.items()
            return self.known_products(factor, as_product(term)[1])
        return [one for one in self._by_parts.get((SUM, _members(terms)), ()) if tidy(one.number) == constant]

    def known_products(self, coefficient: float | None, factors: Mapping[Value, float]) -> list[Value]:
        """The products made so far of these factors, with any shape; with any coefficient where None is given."""
        members = _members(factors)
        found = list(self._by_parts.get((PRODUCT, members), ()))
        if len(members) == 1:
            ((factor, exponent),) = members
            if exponent == 1:
                found.insert(0, factor)
        if coefficient is None:
            return found
        return [one for one in found if tidy(as_product(one)[0]) == tidy(coefficient)]

    def _combined(self, op: str, number: float, parts: Parts) -> Value:
        members = _members(parts)

        def make() -> Value:
            shape: Shape = ()
            for part in parts:
                shape = broadcast(shape, part.shape)
            value = Value(op, (), (), shape, all(part.is_constant for part in parts), number, parts)
            self._by_parts.setdefault((op, members), []).append(value)
            return value

        return self._once((op, tidy(number), members), make)

    def _once(self, key: Any, make: Callable[[], Value]) -> Value:
        value = self._made.get(key)
        if value is None:
            value = self._made[key] = make()
        return value


def as_product(value: Value) -> tuple[float, Parts]:
    """A value as coefficient and factors."""
    if value.op == LITERAL:
        return value.number, {}
    return (value.number, value.parts) if value.op == PRODUCT else (1.0, {value: 1.0})


def as_sum(table: Table, value: Value) -> tuple[float, Parts]:
    """A value as constant and terms."""
    if value.op == LITERAL:
        return value.number, {}
    if value.op == SUM:
        return value.number, value.parts
    if value.op == PRODUCT and value.number != 1:
        term = table.product(1.0, value.parts)
        if term.op == SUM:
            return value.number * term.number, {one: value.number * factor for one, factor in term.parts.items()}
        return 0.0, {term: value.number}
    return 0.0, {value: 1.0}


def merged(one: Mapping[Value, float], other: Mapping[Value, float], factor: float = 1.0) -> Parts:
    """Parts added up, those of `other` times a factor."""
    result = dict(one)
    for part, number in other.items():
        result[part] = added(result.get(part, 0.0), factor * number)
    return result


def added(one: float, other: float) -> float:
    """The sum of two numbers; 0 where it is nothing but their rounding."""
    total = one + other
    return total if abs(total) > 1e-12 * abs(one) else 0.0


def broadcast(one: Shape, other: Shape) -> Shape:
    """The shape of what two shapes give together; Torch has checked that they fit."""
    long, short = (one, other) if len(one) >= len(other) else (other, one)
    short = (1,) * (len(long) - len(short)) + short
    return tuple(b if a == 1 else a for a, b in zip(long, short, strict=True))


def tidy(number: float) -> float:
    """A number to twelve digits: what is computed in another order is the same number."""
    return float(f"{number:.12g}") + 0.0


def kept(number: float) -> float:
    """A number as a value keeps it: to three digits more, so that what is computed with it has twelve."""
    return float(f"{number:.15g}") + 0.0


def _members(parts: Mapping[Value, float]) -> frozenset[tuple[Value, float]]:
    """What tells sums and products apart."""
    return frozenset((part, tidied) for part, number in parts.items() if (tidied := tidy(number)) != 0)


def _is_even(exponent: float) -> bool:
    return float(exponent).is_integer() and exponent % 2 == 0


def _static(literals: Any) -> bool:
    """Whether no size in an operator's literals is symbolic."""
    if isinstance(literals, tuple):
        return all(map(_static, literals))
    return not getattr(literals, "free_symbols", None)
