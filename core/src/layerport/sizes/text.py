"""The text of size expressions and back: the form that plugin specs and manifests store.

`expressions` renders with it; readers of bundles call `parse`.  A grammar of its own, never `eval`, because the text
may come from a stranger's file: length and nesting are limited, and what it names are sizes only.

    expression := sum [("==" | "!=" | "<" | "<=" | ">" | ">=") sum]
    sum        := term {("+" | "-") term}
    term       := operand {("*" | "//" | "%") operand}
    operand    := {"-"} (number | size | function "(" expression {"," expression} ")" | "(" expression ")")
    function   := "min" | "max" | "ceildiv" | "where" | "and" | "or" | "not"
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from functools import reduce
from typing import Any

from layerport.errors import UsageError
from layerport.sizes.nodes import Const, Expr, Operation, Symbol, as_expr
from layerport.sizes.simplify import as_condition, choice, divide, extreme, is_negative

MAX_LENGTH = 400_000
MAX_NESTING = 110
_TOKEN = re.compile(r"\s*(?:(\d+)|([A-Za-z_]\w*(?:\.\d+)?)|(//|[<>=!]=|[-+*%<>(),]))", re.ASCII)
_COMPARE, _ADD, _MULTIPLY, _ATOM = range(4)
_BINARY: dict[str, tuple[int, Callable[[Any, Any], Any]]] = {
    "==": (_COMPARE, operator.eq),
    "!=": (_COMPARE, operator.ne),
    "<": (_COMPARE, operator.lt),
    "<=": (_COMPARE, operator.le),
    ">": (_COMPARE, operator.gt),
    ">=": (_COMPARE, operator.ge),
    "+": (_ADD, operator.add),
    "-": (_ADD, operator.sub),
    "*": (_MULTIPLY, operator.mul),
    "//": (_MULTIPLY, operator.floordiv),
    "%": (_MULTIPLY, operator.mod),
}
_FUNCTIONS: dict[str, tuple[range, Callable[..., Expr]]] = {
    "min": (range(1, 2001), lambda *values: extreme("min", values)),
    "max": (range(1, 2001), lambda *values: extreme("max", values)),
    "ceildiv": (range(2, 3), lambda a, b: divide(a, b, up=True)),
    "where": (range(3, 4), lambda condition, a, b: choice(as_condition(condition), a, b)),
    "and": (range(1, 2001), lambda *values: reduce(operator.and_, values)),
    "or": (range(1, 2001), lambda *values: reduce(operator.or_, values)),
    "not": (range(1, 2), operator.invert),
}


def parse(text: str) -> Expr:
    """The expression of a text, the inverse of `str`; UsageError says where the text is wrong."""
    if len(text) > MAX_LENGTH:
        raise UsageError(
            f"a size expression of {len(text)} characters (limit {MAX_LENGTH}): {text[:60]!r}...",
            "make the rule that gives it shorter, or the layer several, each with a rule of its own",
        )
    return _Parser(text).whole()


def render(value: Expr) -> str:
    """The canonical text of an expression."""
    return _render(value)[1]


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str, int]] = []
        self._next = 0
        at = 0
        end = len(text.rstrip())
        while at < end:
            found = _TOKEN.match(text, at)
            if not found:
                raise self._fault("nothing of an expression", at)
            kind = ("number", "name", "sign")[found.lastindex - 1 if found.lastindex else 2]
            self._tokens.append((kind, found[found.lastindex or 0], found.start(found.lastindex or 0)))
            at = found.end()

    def whole(self) -> Expr:
        value = self._expression(_COMPARE, 0)
        if self._next < len(self._tokens):
            raise self._fault("more text after the end of the expression", self._tokens[self._next][2])
        return value

    def _expression(self, level: int, nesting: int) -> Expr:
        left = self._operand(nesting)
        while True:
            strength, apply = _BINARY.get(self._peek(), (-1, operator.add))
            if strength < level:
                return left
            self._next += 1
            left = as_expr(apply(left, self._expression(strength + 1, nesting)))
            if strength == _COMPARE:
                return left

    def _operand(self, nesting: int) -> Expr:
        negative = False
        while self._peek() == "-":
            self._next += 1
            negative = not negative
        kind, token, at = self._take()
        if nesting > MAX_NESTING:
            raise self._fault(f"nesting deeper than {MAX_NESTING}", at)
        if kind == "number":
            value: Expr = Const(int(token) if len(token) < 40 else 2**64)
        elif kind == "name":
            value = self._call(token, at, nesting + 1) if self._peek() == "(" else Symbol(token)
        elif token == "(":
            value = self._expression(_COMPARE, nesting + 1)
            self._expect(")")
        else:
            raise self._fault(f"expected a number, a size or '(', got {token!r}", at)
        return -value if negative else value

    def _call(self, name: str, at: int, nesting: int) -> Expr:
        if name not in _FUNCTIONS:
            raise self._fault(f"unknown function {name!r} (known: {', '.join(_FUNCTIONS)})", at)
        self._expect("(")
        values = [self._expression(_COMPARE, nesting)]
        while self._peek() == ",":
            self._next += 1
            values.append(self._expression(_COMPARE, nesting))
        self._expect(")")
        count, function = _FUNCTIONS[name]
        if len(values) not in count:
            raise self._fault(f"{name} takes {count[0]} values, got {len(values)}", at)
        return function(*values)

    def _peek(self) -> str:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else ""

    def _take(self) -> tuple[str, str, int]:
        if self._next == len(self._tokens):
            raise self._fault("the expression ends too early", len(self._text))
        self._next += 1
        return self._tokens[self._next - 1]

    def _expect(self, sign: str) -> None:
        _, token, at = self._take()
        if token != sign:
            raise self._fault(f"expected {sign!r}, got {token!r}", at)

    def _fault(self, what: str, at: int) -> UsageError:
        around = self._text[max(0, at - 30) : at + 30]
        return UsageError(
            f"size expression, character {at + 1}: {what}, near {around!r}",
            "write names and whole numbers with + - * // %, comparisons, min, max, ceildiv, where, and, or, not",
        )


def _render(value: Expr) -> tuple[int, str]:
    if isinstance(value, Const):
        return _ATOM, str(value.value)
    if isinstance(value, Symbol):
        return _ATOM, value.name
    assert isinstance(value, Operation)
    if value.op == "add":
        return _ADD, _render_sum(value)
    if value.op == "mul":
        return _MULTIPLY, _render_product(value)
    if value.op == "floordiv":
        left, right = value.args
        return _MULTIPLY, f"{_enclosed(left, _MULTIPLY)}//{_enclosed(right, _ATOM)}"
    if value.op == "eq":
        return _COMPARE, _compared(value, "==")
    if value.op == "lt":
        return _COMPARE, _compared(value, "<")
    if value.op == "not" and isinstance(value.args[0], Operation) and value.args[0].op == "eq":
        return _COMPARE, _compared(value.args[0], "!=")
    return _ATOM, f"{value.op}({', '.join(arg.text for arg in value.args)})"


def _render_sum(value: Operation) -> str:
    added = [arg for arg in value.args if not is_negative(arg)]
    taken = [arg for arg in value.args if is_negative(arg)]
    start = " + ".join(_enclosed(arg, _MULTIPLY) for arg in added) or taken.pop(0).text
    return start + "".join(f" - {_enclosed(-arg, _MULTIPLY)}" for arg in taken)


def _render_product(value: Operation) -> str:
    number, factors = "", list(value.args)
    if isinstance(factors[0], Const):
        number = "-" if factors[0].value == -1 else f"{factors[0].value}*"
        factors = factors[1:]
    return number + "*".join(_enclosed(factor, _ATOM) for factor in factors)


def _compared(value: Operation, sign: str) -> str:
    left, right = value.args
    return f"{_enclosed(left, _ADD)} {sign} {_enclosed(right, _ADD)}"


def _enclosed(value: Expr, level: int) -> str:
    strength, text = _render(value)
    return text if strength >= level else f"({text})"
