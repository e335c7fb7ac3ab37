"""Sizes as whole-number expressions: the one form that becomes ints, TensorRT dimension expressions, and text.

Shape rules and launch rules are written on it, plugin specs store its text (`parse` reads it back).
`nodes` are what it is made of, `simplify` the rules of its operators, `text` its text.  Imports nothing foreign; anyone
may import it.

Arithmetic is Python's: `//` rounds down.  Expressions are brought to one canonical shape as they are made, so equal
texts mean equal expressions.  Folding takes for granted that no divisor is zero (`0 // x` is 0) and reorders nothing
else that could change a value.
"""

from __future__ import annotations

from typing import overload

from layerport.errors import UsageError
from layerport.sizes import simplify, text
from layerport.sizes.nodes import (
    MAX_DEPTH,
    MAX_NODES,
    NO_VALUE_YET,
    Const,
    Expr,
    ExprLike,
    NoNumberYetError,
    Operation,
    Symbol,
    as_expr,
)
from layerport.sizes.text import parse

__all__ = [
    "MAX_DEPTH",
    "MAX_NODES",
    "Const",
    "Expr",
    "ExprLike",
    "NoNumberYetError",
    "Operation",
    "Symbol",
    "as_expr",
    "cdiv",
    "maximum",
    "minimum",
    "next_power_of_2",
    "parse",
    "where",
]

Expr.rules = simplify
Expr.render = staticmethod(text.render)
Expr.parse = staticmethod(text.parse)


@overload
def cdiv(a: int, b: int) -> int: ...  # type: ignore[overload-overlap]
@overload
def cdiv(a: ExprLike, b: ExprLike) -> Expr: ...
def cdiv(a: ExprLike, b: ExprLike) -> ExprLike:
    """a / b rounded up.  An int for ints, an expression otherwise; UsageError where b is zero."""
    return _plain(simplify.divide(as_expr(a), as_expr(b), up=True), a, b)


@overload
def minimum(a: int, b: int) -> int: ...  # type: ignore[overload-overlap]
@overload
def minimum(a: ExprLike, b: ExprLike) -> Expr: ...
def minimum(a: ExprLike, b: ExprLike) -> ExprLike:
    """The smaller of two sizes.  An int for ints, an expression otherwise."""
    return _plain(simplify.extreme("min", (as_expr(a), as_expr(b))), a, b)


@overload
def maximum(a: int, b: int) -> int: ...  # type: ignore[overload-overlap]
@overload
def maximum(a: ExprLike, b: ExprLike) -> Expr: ...
def maximum(a: ExprLike, b: ExprLike) -> ExprLike:
    """The larger of two sizes.  An int for ints, an expression otherwise."""
    return _plain(simplify.extreme("max", (as_expr(a), as_expr(b))), a, b)


@overload
def where(condition: int, a: int, b: int) -> int: ...  # type: ignore[overload-overlap]
@overload
def where(condition: ExprLike, a: ExprLike, b: ExprLike) -> Expr: ...
def where(condition: ExprLike, a: ExprLike, b: ExprLike) -> ExprLike:
    """a where the condition holds (is not 0), else b.  Both are computed: neither may divide by zero."""
    return _plain(simplify.choice(simplify.as_condition(as_expr(condition)), as_expr(a), as_expr(b)), condition, a, b)


def next_power_of_2(size: ExprLike) -> int:
    """The smallest power of 2 that is not below a size from 1; 1 for 0.  UsageError where the size is symbolic."""
    if isinstance(size, Expr) and size.symbols():
        raise UsageError(f"{size} is symbolic here: its next power of 2 is no number yet", NO_VALUE_YET)
    number = int(size)
    if number < 0:
        raise UsageError(f"{number} has no next power of 2", "give a size, which is 0 or more")
    return 1 << max(number - 1, 0).bit_length()


def _plain(result: Expr, *given: ExprLike) -> ExprLike:
    return result if any(isinstance(value, Expr) for value in given) else int(result)
