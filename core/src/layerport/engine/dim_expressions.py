"""Size expressions as TensorRT dimension expressions.  The TensorRT plugin imports it, inside a plan's build.

It names no flavour of TensorRT: the operations come from the module that the builder's class comes from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from layerport.errors import UsageError
from layerport.sizes.expressions import Const, Expr, Operation, Symbol
from layerport.sizes.simplify import is_negative

_PAIRWISE = {
    "floordiv": "FLOOR_DIV",
    "ceildiv": "CEIL_DIV",
    "mul": "PROD",
    "and": "PROD",
    "min": "MIN",
    "max": "MAX",
    "or": "MAX",
    "eq": "EQUAL",
    "lt": "LESS",
}


def lower(expr: Expr, builder: Any, env: Mapping[str, Any]) -> Any:
    """The expression as an IDimensionExpr.

    builder: TensorRT's IExprBuilder.  env: the IDimensionExpr of each size ("x.0", "u0") that the expression names.
    A condition is 0 or 1, as TensorRT's EQUAL and LESS are; `where(c, a, b)` becomes c*a + (1 - c)*b.
    Raises UsageError for a size that env lacks.
    """
    return _Lowering(builder, env).of(expr)


class _Lowering:
    def __init__(self, builder: Any, env: Mapping[str, Any]) -> None:
        self._builder = builder
        self._env = env
        self._operations = sys.modules[type(builder).__module__].DimensionOperation
        self._made: dict[str, Any] = {}

    def of(self, expr: Expr) -> Any:
        if expr.text not in self._made:
            self._made[expr.text] = self._make(expr)
        return self._made[expr.text]

    def _make(self, expr: Expr) -> Any:
        if isinstance(expr, Const):
            return self._builder.constant(expr.value)
        if isinstance(expr, Symbol):
            if expr.name not in self._env:
                known = ", ".join(sorted(self._env)) or "none"
                raise UsageError(f"the size {expr.name} is no input of the plugin", f"known sizes: {known}")
            return self._env[expr.name]
        assert isinstance(expr, Operation)
        special: dict[str, Callable[[tuple[Expr, ...]], Any]] = {
            "add": self._add,
            "not": lambda args: self._apply("SUB", self._builder.constant(1), self.of(args[0])),
            "where": self._where,
        }
        if expr.op in special:
            return special[expr.op](expr.args)
        result, *others = (self.of(arg) for arg in expr.args)
        for other in others:
            result = self._apply(_PAIRWISE[expr.op], result, other)
        return result

    def _apply(self, name: str, a: Any, b: Any) -> Any:
        return self._builder.operation(getattr(self._operations, name), a, b)

    def _add(self, args: tuple[Expr, ...]) -> Any:
        # What is added comes first, so that a size such as s - (s + 1)//2 stays positive at every step.
        taken = [-arg for arg in args if is_negative(arg)]
        result, *others = [self.of(arg) for arg in args if not is_negative(arg)] or [self._builder.constant(0)]
        for other in others:
            result = self._apply("SUM", result, other)
        for other in taken:
            result = self._apply("SUB", result, self.of(other))
        return result

    def _where(self, args: tuple[Expr, ...]) -> Any:
        condition, a, b = (self.of(arg) for arg in args)
        inverse = self._apply("SUB", self._builder.constant(1), condition)
        return self._apply("SUM", self._apply("PROD", condition, a), self._apply("PROD", inverse, b))
