"""Finds what the tensors and attributes of a pattern would be at one value of a model.

It only proposes: `places` proves a proposal by tracing the reference on what it found.  So it may take whole numbers
and sizes for anything, but it must not miss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from layerport.parameters.signature import Kind
from layerport.search.model_values import ModelValues
from layerport.search.patterns import Pattern
from layerport.search.slots import NAMED_AXES
from layerport.search.values import LITERAL, PRODUCT, SUM, Parts, Value, as_product, as_sum, merged, tidy

Binding: TypeAlias = "dict[Any, Any]"
"""Model values by the pattern's leaves, numbers by attribute."""

_VIEWS = ("view", "permute", "part")
_COMMUTATIVE = ("maximum", "minimum")
_MOST_STEPS = 3000
_MOST_BINDINGS = 24


class _SpentError(Exception):
    """A match took more steps than it is given."""


class Matcher:
    """Matches one pattern against values of one model."""

    def __init__(self, pattern: Pattern, model: ModelValues) -> None:
        self._pattern, self._model, self._table = pattern, model, model.real.table
        self._steps = 0
        self._deepest: tuple[int, Value, Value] | None = None
        self._passed: set[Value] = set()
        self._size = len(_inner_values(pattern.outputs[pattern.root]))

    def at(self, value: Value) -> list[Binding]:
        """What the leaves and attributes may be where the pattern's root is this value."""
        self._steps, self._deepest, self._passed = 0, None, set()
        found: list[Binding] = []
        try:
            for binding in self._match(self._pattern.outputs[self._pattern.root], value, {}):
                if binding not in found:
                    found.append(binding)
                if len(found) >= _MOST_BINDINGS:
                    break
        except _SpentError:
            pass
        return found

    @property
    def parted(self) -> tuple[float, Value, Value] | None:
        """How much of the pattern the last value met, and the two values at which they parted."""
        if self._deepest is None:
            return None
        return len(self._passed) / max(1, self._size), *self._deepest[1:]

    def _match(self, own: Value, other: Value, binding: Binding) -> Iterator[Binding]:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise _SpentError
        argument = self._pattern.leaves.get(own)
        if argument is not None:
            bound = binding.get(own)
            if bound is other:
                yield binding
            elif bound is None and other.op != LITERAL and (other.is_constant or argument.kind is Kind.INPUT):
                yield {**binding, own: other}
            return
        if own.op == LITERAL:
            number = self._number(own, "number", own.number, other.number, binding) if other.op == LITERAL else None
            if number is not None:
                yield number
            return
        found = False
        for made in self._inner(own, other, binding):
            if not found:
                found = True
                self._passed.add(own)
            yield made
        if not found and (self._deepest is None or len(self._passed) >= self._deepest[0]) and own not in self._passed:
            self._deepest = (len(self._passed), own, other)

    def _inner(self, own: Value, other: Value, binding: Binding) -> Iterator[Binding]:
        made: Binding | None
        if own.op == PRODUCT:
            coefficient, factors = as_product(other)
            yield from self._product(own, coefficient, factors, binding, other)
        elif own.op == SUM:
            constant, terms = as_sum(self._table, other)
            yield from self._sum(own, constant, terms, binding, other)
        elif own.op == other.op and len(own.args) == len(other.args):
            made = self._literals(own, own.literals, other.literals, binding)
            if made is not None:
                yield from self._all(own.args, other.args, made)
                if own.op in _COMMUTATIVE:
                    yield from self._all(own.args, other.args[::-1], made)
            if own.op in _VIEWS:
                yield from self._looked_through(own, other, binding if made is None else made)
        elif _alike(own, other):
            yield from self._looked_through(own, other, binding)

    def _looked_through(self, own: Value, other: Value, binding: Binding) -> Iterator[Binding]:
        """What a view looks at, of a chain of views that is one value and may hide an argument of the layer."""
        for inner in self._model.viewed(other):
            if inner is not other.args[0] or own.op != other.op:
                yield from self._match(own.args[0], inner, binding)

    def _all(self, own: tuple[Value, ...], others: tuple[Value, ...], binding: Binding) -> Iterator[Binding]:
        if not own:
            yield binding
            return
        for made in self._match(own[0], others[0], binding):
            yield from self._all(own[1:], others[1:], made)

    def _literals(self, value: Value, own: Any, other: Any, binding: Binding, path: Any = ()) -> Binding | None:
        """The binding, where two literals are the same; whole numbers are, unless they are axes or attributes."""
        if isinstance(own, tuple) and isinstance(other, tuple):
            if len(own) != len(other):
                return binding if path and path[0] == "sizes" else None
            for place, (a, b) in enumerate(zip(own, other, strict=True)):
                name = a[0] if not path and isinstance(a, tuple) and a else place
                made = self._literals(value, a, b, binding, (*path, name))
                if made is None:
                    return None
                binding = made
            return binding
        if own is other:
            return binding
        slot = self._pattern.slots.get((value, path))
        if slot is not None and slot.attribute is None:
            return binding
        if slot is not None or isinstance(own, float):
            if isinstance(other, bool) or not isinstance(other, (int, float)):
                return None
            return self._number(value, path, float(own), float(other), binding)
        is_whole = isinstance(own, int) and not isinstance(own, bool)
        if is_whole and not NAMED_AXES & set(path) and not isinstance(other, (bool, str, float, type(None))):
            return binding
        return binding if type(own) is type(other) and own == other else None

    def _number(self, value: Value, key: Any, own: float, other: float, binding: Binding) -> Binding | None:
        """The binding, where a number of the pattern may be this number of the model."""
        slot = self._pattern.slots.get((value, key))
        if slot is None:
            return binding if math.isclose(own, other, rel_tol=1e-9, abs_tol=1e-300) else None
        if slot.attribute is None:
            return binding
        read = slot.read(other)
        if read is None:
            return None
        before = binding.get(slot.attribute)
        if before is None:
            return {**binding, slot.attribute: read}
        return binding if math.isclose(before, read, rel_tol=1e-9, abs_tol=1e-300) else None

    def _product(
        self, own: Value, coefficient: float, factors: Parts, binding: Binding, whole: Value | None
    ) -> Iterator[Binding]:
        places = list(enumerate(own.parts.items()))
        inner = [(place, part, exponent) for place, (part, exponent) in places if part not in self._pattern.leaves]
        leaves = [(part, exponent) for _, (part, exponent) in places if part in self._pattern.leaves]
        for left, made in self._factors(own, inner, factors, binding):
            yield from self._factor_leaves(own, leaves, coefficient, left, made, whole)

    def _factors(
        self, own: Value, inner: list[tuple[int, Value, float]], factors: Parts, binding: Binding
    ) -> Iterator[tuple[Parts, Binding]]:
        """Take the factors that are no leaves out of a product; what is left of it."""
        if not inner:
            yield factors, binding
            return
        place, part, exponent = inner[0]
        for other, given in factors.items():
            if not _alike(part, other):
                continue
            slot = self._pattern.slots.get((own, place))
            takes, start = exponent, binding
            if slot is not None:
                number = self._number(own, place, exponent, given, binding)
                if number is None:
                    continue
                takes, start = given, number
            if not _within(takes, given):
                continue
            for made in self._match(part, other, start):
                yield from self._factors(own, inner[1:], _without(factors, {other: takes}), made)

    def _factor_leaves(
        self,
        own: Value,
        leaves: list[tuple[Value, float]],
        coefficient: float,
        factors: Parts,
        binding: Binding,
        whole: Value | None,
    ) -> Iterator[Binding]:
        open_leaves = []
        for leaf, exponent in leaves:
            if (bound := binding.get(leaf)) is None:
                open_leaves.append((leaf, exponent))
                continue
            taken = _taken(factors, coefficient, bound, exponent)
            if taken is None:
                return
            factors, coefficient = taken
        if not open_leaves:
            number = None if factors else self._number(own, "number", own.number, coefficient, binding)
            if number is not None:
                yield number
            return
        leaf, exponent = open_leaves[0]
        if len(open_leaves) > 1:
            for candidate in self._model.operands(whole) if whole is not None else ():
                taken = _taken(factors, coefficient, candidate, exponent)
                if taken is None:
                    continue
                for made in self._match(leaf, candidate, binding):
                    rest = [*open_leaves[1:]]
                    yield from self._factor_leaves(own, rest, taken[1], taken[0], made, whole)
            return
        rooted = {factor: given / exponent for factor, given in factors.items()}
        if (own, "number") in self._pattern.slots:
            for candidate in self._table.known_products(None, rooted):
                rest_coefficient = coefficient / as_product(candidate)[0] ** exponent
                number = self._number(own, "number", own.number, rest_coefficient, binding)
                if number is not None:
                    yield from self._match(leaf, candidate, number)
            return
        ratio = coefficient / own.number
        if ratio < 0 and float(exponent) % 2 != 1:
            return
        root = ratio if exponent == 1 else math.copysign(abs(ratio) ** (1 / exponent), ratio)
        for candidate in self._table.known_products(root, rooted):
            yield from self._match(leaf, candidate, binding)

    def _sum(self, own: Value, constant: float, terms: Parts, binding: Binding, whole: Value) -> Iterator[Binding]:
        places = list(enumerate(own.parts.items()))
        inner = [(place, part, factor) for place, (part, factor) in places if part not in self._pattern.leaves]
        leaves = [(place, part, factor) for place, (part, factor) in places if part in self._pattern.leaves]
        for left, made in self._terms(own, inner, terms, binding):
            yield from self._term_leaves(own, leaves, constant, left, made, whole)

    def _terms(
        self, own: Value, inner: list[tuple[int, Value, float]], terms: Parts, binding: Binding
    ) -> Iterator[tuple[Parts, Binding]]:
        if not inner:
            yield terms, binding
            return
        place, part, factor = inner[0]
        for other, given in terms.items():
            if part.op != PRODUCT and not _alike(part, other):
                continue
            ratio, start = given / factor, binding
            if (own, place) in self._pattern.slots:
                number = self._number(own, place, factor, given, binding)
                if number is None:
                    continue
                ratio, start = 1.0, number
            if part.op == PRODUCT:
                coefficient, factors = as_product(other)
                # The product that stands in the model; a sum keeps its coefficient apart.
                whole = next(iter(self._table.known_products(given * coefficient, factors)), other)
                matches = self._product(part, ratio * coefficient, factors, start, whole)
            elif math.isclose(ratio, 1.0):
                matches = self._match(part, other, start)
            else:
                continue
            rest = {term: number for term, number in terms.items() if term is not other}
            for made in matches:
                yield from self._terms(own, inner[1:], rest, made)

    def _term_leaves(
        self,
        own: Value,
        leaves: list[tuple[int, Value, float]],
        constant: float,
        terms: Parts,
        binding: Binding,
        whole: Value,
    ) -> Iterator[Binding]:
        open_leaves = []
        for place, leaf, factor in leaves:
            if (bound := binding.get(leaf)) is None:
                open_leaves.append((place, leaf, factor))
                continue
            more, others = as_sum(self._table, bound)
            constant, terms = constant - factor * more, _tidied(merged(terms, others, -factor))
        if not open_leaves:
            number = None if terms else self._number(own, "number", own.number, constant, binding)
            if number is not None:
                yield number
            return
        _, leaf, factor = open_leaves[0]
        if len(open_leaves) > 1:
            for candidate in self._model.operands(whole):
                more, others = as_sum(self._table, candidate)
                if not others or any(part not in terms for part in others):
                    continue
                rest = _tidied(merged(terms, others, -factor))
                for made in self._match(leaf, candidate, binding):
                    yield from self._term_leaves(own, open_leaves[1:], constant - factor * more, rest, made, whole)
            return
        divided = {term: given / factor for term, given in terms.items()}
        if (own, "number") in self._pattern.slots:
            offset, start = 0.0, self._number(own, "number", own.number, constant, binding)
        else:
            offset, start = (constant - own.number) / factor, binding
        if start is not None:
            for candidate in self._table.known_sums(offset, divided):
                yield from self._match(leaf, candidate, start)


def _alike(own: Value, other: Value) -> bool:
    """Whether a value of the pattern may be one of the model, by what makes them; any view may hide another."""
    return own.op == other.op or (own.op in _VIEWS and other.op in _VIEWS)


def _within(takes: float, given: float) -> bool:
    """Whether a power of this exponent can be taken out of one of that."""
    if math.isclose(takes, given):
        return True
    return takes * given > 0 and abs(given) > abs(takes) and float(takes).is_integer() and float(given).is_integer()


def _taken(factors: Parts, coefficient: float, value: Value, exponent: float) -> tuple[Parts, float] | None:
    """A product without a value to the power of this exponent; None where it is not in it."""
    own, parts = as_product(value)
    if not parts or own == 0:
        return None
    taken = {part: given * exponent for part, given in parts.items()}
    if any(part not in factors or not _within(tidy(number), factors[part]) for part, number in taken.items()):
        return None
    if own < 0 and not float(exponent).is_integer():
        return None
    return _without(factors, taken), coefficient / own**exponent


def _without(factors: Parts, taken: Mapping[Value, float]) -> Parts:
    return _tidied(merged(factors, taken, -1.0))


def _tidied(parts: Parts) -> Parts:
    return {part: tidied for part, number in parts.items() if (tidied := tidy(number)) != 0}


def _inner_values(root: Value) -> set[Value]:
    found: set[Value] = set()
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if value not in found and value.inner:
            found.add(value)
            waiting += value.inner
    return found
