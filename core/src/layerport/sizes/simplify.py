"""How size expressions are simplified as they are made, so that equal ones have equal texts.

Part of `expressions`, which hands it to the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from layerport.errors import UsageError
from layerport.sizes.nodes import Const, Expr, Operation

_CONDITIONS = frozenset({"eq", "lt", "and", "or", "not"})


def is_condition(value: Expr) -> bool:
    """Whether the expression can only be 0 or 1."""
    if isinstance(value, Const):
        return value.value in (0, 1)
    return isinstance(value, Operation) and value.op in _CONDITIONS


def as_condition(value: Expr) -> Expr:
    """0 where the expression is 0, otherwise 1."""
    return value if is_condition(value) else negation(equal(value, Const(0)))


def linear_terms(value: Expr) -> tuple[list[tuple[Expr, int]], int]:
    """The expression as a sum: terms with their whole factors, and the constant."""
    if isinstance(value, Const):
        return [], value.value
    if not isinstance(value, Operation) or value.op not in ("add", "mul"):
        return [(value, 1)], 0
    if value.op == "mul":
        first, *rest = value.args
        if not isinstance(first, Const):
            return [(value, 1)], 0
        return [(rest[0] if len(rest) == 1 else Operation("mul", rest), first.value)], 0
    terms: list[tuple[Expr, int]] = []
    constant = 0
    for arg in value.args:
        inner, number = linear_terms(arg)
        terms, constant = terms + inner, constant + number
    return terms, constant


def is_negative(term: Expr) -> bool:
    """Whether a term of a sum is taken away: its whole factor is below zero."""
    first = term.args[0] if isinstance(term, Operation) and term.op == "mul" else term
    return isinstance(first, Const) and first.value < 0


def total(parts: Iterable[tuple[Expr, int]], constant: int = 0) -> Expr:
    totals: dict[str, tuple[Expr, int]] = {}
    for part, factor in parts:
        terms, number = linear_terms(part)
        constant += number * factor
        for term, count in terms:
            totals[term.text] = (term, totals.get(term.text, (term, 0))[1] + count * factor)
    kept = sorted(((t, c) for t, c in totals.values() if c), key=lambda item: item[0].sort_key)
    args = [_scaled(term, count) for term, count in kept]
    if constant or not args:
        args.append(Const(constant))
    return args[0] if len(args) == 1 else Operation("add", args)


def _scaled(term: Expr, factor: int) -> Expr:
    if factor == 1:
        return term
    factors = term.args if isinstance(term, Operation) and term.op == "mul" else (term,)
    return Operation("mul", (Const(factor), *factors))


def product(values: Iterable[Expr]) -> Expr:
    number, factors = 1, list[Expr]()
    for value in values:
        for factor in value.args if isinstance(value, Operation) and value.op == "mul" else (value,):
            if isinstance(factor, Const):
                number *= factor.value
            else:
                factors.append(factor)
    if number == 0 or not factors:
        return Const(number)
    if len(factors) == 1:
        return total([(factors[0], number)])
    for index, factor in enumerate(factors):
        if isinstance(factor, Operation) and factor.op == "add":
            content, factors[index] = _primitive(factor)
            number *= content
    return _scaled(Operation("mul", sorted(factors, key=lambda f: f.sort_key)), number)


def _primitive(factor: Expr) -> tuple[int, Expr]:
    # 2*(a + b)*c and (2*a + 2*b)*c have to become the same product.
    terms, constant = linear_terms(factor)
    content = math.gcd(constant, *(count for _, count in terms)) * (-1 if terms[0][1] < 0 else 1)
    return content, total([(term, count // content) for term, count in terms], constant // content)


def floordiv(a: Expr, b: Expr) -> Expr:
    return divide(a, b, up=False)


def modulo(a: Expr, b: Expr) -> Expr:
    return a - floordiv(a, b) * b


def divide(a: Expr, b: Expr, *, up: bool) -> Expr:
    if isinstance(b, Const):
        if b.value == 0:
            raise UsageError(f"division by zero: {a} over 0", "keep the divisor positive")
        if b.value < 0:
            return divide(-a, -b, up=up)
        if b.value == 1:
            return a
    terms, constant = linear_terms(a)
    if not terms and constant == 0:
        return a
    # TensorRT's rounding of negative quotients is not something to lean on: numerators are made positive.
    if constant <= 0 and all(count < 0 for _, count in terms):
        return -divide(-a, b, up=not up)
    if not isinstance(b, Const):
        return Operation("ceildiv" if up else "floordiv", (a, b))
    return _divide_by_number(terms, constant, b.value, up=up)


def _divide_by_number(terms: Sequence[tuple[Expr, int]], constant: int, divisor: int, *, up: bool) -> Expr:
    whole = [(term, count // divisor) for term, count in terms if count % divisor == 0]
    rest = [(term, count) for term, count in terms if count % divisor]
    left_over = constant % divisor
    if not rest:
        return total(whole, constant // divisor + int(up and left_over > 0))
    if whole or left_over != constant:
        return total([*whole, (divide(total(rest, left_over), Const(divisor), up=up), 1)], constant // divisor)
    common = math.gcd(divisor, *(count for _, count in rest))
    if common > 1:
        number = -(-left_over // common) if up else left_over // common
        shared = total([(term, count // common) for term, count in rest], number)
        return divide(shared, Const(divisor // common), up=up)
    numerator = total(rest, left_over)
    op = "ceildiv" if up else "floordiv"
    if isinstance(numerator, Operation) and numerator.op == op and isinstance(numerator.args[1], Const):
        return divide(numerator.args[0], Const(numerator.args[1].value * divisor), up=up)
    return Operation(op, (numerator, Const(divisor)))


def extreme(op: str, values: Iterable[Expr]) -> Expr:
    best: dict[str, tuple[Expr, int]] = {}
    choose = min if op == "min" else max
    for value in values:
        for arg in value.args if isinstance(value, Operation) and value.op == op else (value,):
            terms, constant = linear_terms(arg)
            base = total(terms)
            known = best.get(base.text, (base, constant))[1]
            best[base.text] = (base, choose(known, constant))
    args = sorted((total([(base, 1)], c) for base, c in best.values()), key=lambda arg: arg.sort_key)
    return args[0] if len(args) == 1 else Operation(op, args)


def equal(a: Expr, b: Expr) -> Expr:
    """1 where both have the same value, else 0."""
    difference = a - b
    if isinstance(difference, Const):
        return Const(int(difference.value == 0))
    a, b = _balanced(a, b)
    if isinstance(a, Const) or (not isinstance(b, Const) and b.sort_key < a.sort_key):
        a, b = b, a
    return Operation("eq", (a, b))


def less(a: Expr, b: Expr) -> Expr:
    """1 where a is below b, else 0."""
    difference = a - b
    if isinstance(difference, Const):
        return Const(int(difference.value < 0))
    return Operation("lt", _balanced(a, b))


def _balanced(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    # x + 1 < 4 and x < 3 have to become the same comparison.
    left, right = linear_terms(a)[1], linear_terms(b)[1]
    shift = right if isinstance(a, Const) else left if isinstance(b, Const) else min(left, right, key=abs)
    return (a - shift, b - shift) if shift else (a, b)


def negation(value: Expr) -> Expr:
    if isinstance(value, Const):
        return Const(int(not value.value))
    if isinstance(value, Operation) and value.op == "not":
        return value.args[0]
    if isinstance(value, Operation) and value.op == "lt":
        return less(value.args[1], value.args[0] + 1)
    return Operation("not", (value,))


def junction(op: str, values: Iterable[Expr]) -> Expr:
    deciding = 0 if op == "and" else 1
    kept: dict[str, Expr] = {}
    for value in values:
        if not is_condition(value):
            raise UsageError(f"{op!r} joins conditions, and {value} is a number", "compare it first")
        for arg in value.args if isinstance(value, Operation) and value.op == op else (value,):
            if isinstance(arg, Const) and arg.value == deciding:
                return arg
            if not isinstance(arg, Const):
                kept[arg.text] = arg
    args = sorted(kept.values(), key=lambda arg: arg.sort_key)
    if not args:
        return Const(1 - deciding)
    return args[0] if len(args) == 1 else Operation(op, args)


def choice(condition: Expr, a: Expr, b: Expr) -> Expr:
    if isinstance(condition, Const):
        return a if condition.value else b
    return a if a.text == b.text else Operation("where", (condition, a, b))
