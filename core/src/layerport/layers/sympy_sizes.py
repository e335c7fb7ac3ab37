"""Torch's symbolic sizes (sympy, with Torch's own functions) as size expressions.  `derivation` imports it.

Classes are told apart by name: Torch's functions live in a private module that moves, their names have not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import sympy

from layerport.errors import UsageError
from layerport.sizes.expressions import Const, Expr, Operation, Symbol, as_expr, cdiv, maximum, minimum, where

# Floats are exact for whole numbers below 2**53; sizes below 2**31 times such a factor stay there.
_LARGEST_FACTOR = 2**20


def from_sympy(expr: sympy.Basic, names: Mapping[str, Expr]) -> Expr:
    """The size expression of a sympy expression.

    names: the expression of each sympy symbol, by its name.  Modulo is rewritten with `//`.  Float arithmetic is
    accepted where whole numbers give the same value for every size below 2**31: a quotient of whole numbers, or a
    product with a number such as 1.5, rounded to an int at the end.  UsageError names the part that has no form.
    """
    return _Conversion(names).of(expr)


class _Conversion:
    def __init__(self, names: Mapping[str, Expr]) -> None:
        self._names = names
        self._rules: dict[str, Callable[..., Expr]] = {
            "Add": lambda *v: reduce(lambda a, b: a + b, v),
            "Mul": lambda *v: reduce(lambda a, b: a * b, v),
            "FloorDiv": lambda a, b: a // b,
            "CleanDiv": lambda a, b: a // b,
            "CeilDiv": cdiv,
            "Mod": lambda a, b: a % b,
            "PythonMod": lambda a, b: a % b,
            "ModularIndexing": lambda a, b, c: a // b % c,
            "Max": lambda *v: reduce(maximum, v),
            "Min": lambda *v: reduce(minimum, v),
            "Where": where,
            "Identity": lambda a: a,
            "Equality": lambda a, b: a == b,
            "Unequality": lambda a, b: a != b,
            "StrictLessThan": lambda a, b: a < b,
            "LessThan": lambda a, b: a <= b,
            "StrictGreaterThan": lambda a, b: a > b,
            "GreaterThan": lambda a, b: a >= b,
            "And": lambda *v: reduce(lambda a, b: a & b, v),
            "Or": lambda *v: reduce(lambda a, b: a | b, v),
            "Not": lambda a: ~a,
        }

    def of(self, expr: Any) -> Expr:
        name = type(expr).__name__
        if expr is sympy.true or expr is sympy.false:
            return Const(int(expr is sympy.true))
        if isinstance(expr, sympy.Integer):
            return Const(int(expr))
        if isinstance(expr, sympy.Symbol):
            if expr.name not in self._names:
                raise UsageError(
                    f"the size {expr.name} is the size of no argument", "say the outputs with @layer.shape_rule"
                )
            return self._names[expr.name]
        if name in self._rules:
            return as_expr(self._rules[name](*(self.of(arg) for arg in expr.args)))
        if name in ("Pow", "PowByNatural", "LShift"):
            return self._power(name, *expr.args)
        if name == "Piecewise":
            return self._piecewise(expr)
        if name in ("TruncToInt", "FloorToInt", "CeilToInt"):
            return self._rounded(name, expr.args[0])
        raise _inexpressible(expr)

    def _power(self, name: str, base: Any, exponent: Any) -> Expr:
        if not isinstance(exponent, sympy.Integer) or not 0 <= int(exponent) <= 16:
            raise _inexpressible(f"{name}({base}, {exponent})")
        return self.of(base) * 2 ** int(exponent) if name == "LShift" else self.of(base) ** int(exponent)

    def _piecewise(self, expr: Any) -> Expr:
        *cases, last = expr.args
        if last[1] is not sympy.true:
            raise _inexpressible(expr)
        result = self.of(last[0])
        for value, condition in reversed(cases):
            result = where(self.of(condition), self.of(value), result)
        return result

    def _rounded(self, name: str, inner: Any) -> Expr:
        above, below = self._quotient(inner)
        down, up = as_expr(above // below), as_expr(cdiv(above, below))
        if name == "FloorToInt":
            return down
        if name == "CeilToInt":
            return up
        if _never_negative(above) and _never_negative(below):
            return down
        return where(above * below < 0, up, down)

    def _quotient(self, expr: Any) -> tuple[Expr, Expr]:
        # One rounding at the end cannot carry a quotient over a whole number; a second one can.
        name = type(expr).__name__
        if name in ("IntTrueDiv", "FloatTrueDiv"):
            above, above_scale = self._exact(expr.args[0])
            below, below_scale = self._exact(expr.args[1])
            return above * below_scale, below * above_scale
        above, scale = self._exact(expr)
        return above, Const(scale)

    def _exact(self, expr: Any) -> tuple[Expr, int]:
        """A number without rounding: a whole-number expression over a power of two."""
        name = type(expr).__name__
        if isinstance(expr, (sympy.Float, sympy.Rational)):
            ratio = float(expr).as_integer_ratio()
            if max(abs(ratio[0]), ratio[1]) > _LARGEST_FACTOR:
                raise _inexpressible(expr)
            return Const(ratio[0]), ratio[1]
        if name in ("ToFloat", "Identity"):
            return self.of(expr.args[0]), 1
        if name == "FloatTrueDiv" and isinstance(expr.args[1], (sympy.Float, sympy.Integer)):
            divisor = float(expr.args[1])
            if divisor > 0 and divisor.is_integer() and int(divisor).bit_count() == 1:
                above, scale = self._exact(expr.args[0])
                return above, scale * int(divisor)
        if name == "Mul":
            parts = [self._exact(arg) for arg in expr.args]
            if sum(not isinstance(above, Const) for above, _ in parts) > 1:
                raise _inexpressible(expr)
            return reduce(lambda a, b: (a[0] * b[0], a[1] * b[1]), parts)
        if name == "Add":
            return reduce(lambda a, b: (a[0] * b[1] + b[0] * a[1], a[1] * b[1]), map(self._exact, expr.args))
        if expr.is_integer:
            return self.of(expr), 1
        raise _inexpressible(expr)


def _never_negative(expr: Expr) -> bool:
    if isinstance(expr, Const):
        return expr.value >= 0
    if isinstance(expr, Symbol):
        return True
    return isinstance(expr, Operation) and all(_never_negative(arg) for arg in expr.args)


def _inexpressible(part: object) -> UsageError:
    return UsageError(f"{part} is no arithmetic on whole numbers", "say the outputs with @layer.shape_rule")
