"""Where an attribute stands in a pattern: the numbers that change with it, and how to read it from one of them.

Found by tracing a reference with several values of its attributes and comparing the values side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from layerport.search.values import LITERAL, Value, tidy

# Where a number stands: in which value, and there as its number, a part's, or a literal.
Spot: TypeAlias = tuple[Value, Any]

_POWERS = (1.0, -1.0, 2.0, -2.0, 0.5, -0.5)
NAMED_AXES = frozenset({"dims", "dim", "dim0", "dim1", "axis"})


@dataclass(frozen=True)
class Slot:
    """A number that follows from an attribute: factor * attribute ** power + offset; from none where it is None."""

    attribute: str | None
    factor: float = 1.0
    power: float = 1.0
    offset: float = 0.0

    def read(self, number: float) -> float | None:
        """The attribute, where this number stands in the place; None where there is none."""
        base = (number - self.offset) / self.factor
        if (base == 0 and self.power < 0) or (base < 0 and self.power not in (1.0, -1.0)):
            return None
        return tidy(base if self.power == 1 else base ** (1 / self.power))


WILD = Slot(None)


class ApartError(Exception):
    """Two traces of one reference are of another structure."""


def differing(one: Sequence[Value], other: Sequence[Value]) -> dict[Spot, tuple[float, float]]:
    """The numbers in which two traces of one structure differ.  Raises ApartError where their structures do."""
    found: dict[Spot, tuple[float, float]] = {}
    seen: dict[Value, Value] = {}
    waiting = list(zip(one, other, strict=True))
    while waiting:
        left, right = waiting.pop()
        if left in seen:
            if seen[left] is not right:
                raise ApartError
            continue
        seen[left] = right
        if left.op != right.op or len(left.args) != len(right.args) or len(left.parts) != len(right.parts):
            raise ApartError
        if not left.inner and left.op != LITERAL and left.literals != right.literals:
            raise ApartError
        numbers: list[tuple[Any, float, float]] = [("number", left.number, right.number)]
        numbers += [
            (place, a, b) for place, (a, b) in enumerate(zip(left.parts.values(), right.parts.values(), strict=True))
        ]
        numbers += list(_literal_numbers(left.literals, right.literals))
        found |= {(left, key): (a, b) for key, a, b in numbers if a != b}
        waiting += zip(left.inner, right.inner, strict=True)
    return found


def _literal_numbers(one: Any, other: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, float, float]]:
    """The numbers of two literals that differ; sizes may differ in any way."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        if len(one) != len(other):
            if path and "sizes" in path:
                return
            raise ApartError
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            name = a[0] if not path and isinstance(a, tuple) and a else place
            yield from _literal_numbers(a, b, (*path, name))
    elif one != other:
        is_number = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (one, other))
        if not is_number or NAMED_AXES & set(path):
            raise ApartError
        yield path, float(one), float(other)


def fit(numbers: Sequence[float], attributes: Mapping[str, Sequence[float]]) -> Slot:
    """How a number that took these values follows from one of the attributes; WILD if it does not.

    attributes: the values that each took, the first as many of which are those of the number.
    """
    for name, values in attributes.items():
        for power in _POWERS:
            factor = numbers[0] / values[0] ** power
            if factor and all(
                _close(factor * value**power, number) for value, number in zip(values, numbers, strict=False)
            ):
                return Slot(name, tidy(factor), power)
        if values[1] == values[0]:
            continue
        slope = (numbers[1] - numbers[0]) / (values[1] - values[0])
        if len(numbers) == 2 and not _close(abs(slope), 1.0):
            continue  # any two numbers lie on a line
        offset = numbers[0] - slope * values[0]
        if slope and all(
            _close(slope * value + offset, number) for value, number in zip(values, numbers, strict=False)
        ):
            return Slot(name, tidy(slope), 1.0, tidy(offset))
    return WILD


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-15)
