"""The formulas of Torch's functions of single elements, over the real numbers, as their documentation defines them.

What Torch does for the sake of rounding or of large numbers (the threshold of softplus, log1p) is no part of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from layerport.search.algebras import Algebra, Operand, part
from layerport.search.rules import Call, Rule, into
from layerport.search.values import LITERAL, SUM, Value, as_product

# From here on log(1 + exp(x)) is x but for 2e-9, which no float of 32 bits keeps beside 20.
_SOFTPLUS_IS_LINEAR = 20.0
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


@dataclass(frozen=True)
class Term:
    """A value that Python's operators take, within one call of an operator."""

    algebra: Algebra
    call: Call
    value: Operand

    @property
    def whole(self) -> Value:
        """The value, a number as one too."""
        return self.algebra.number(self.value)

    def __add__(self, other: Factor) -> Term:
        return self._made(self.algebra.add, self, other)

    def __sub__(self, other: Factor) -> Term:
        return self._made(self.algebra.sub, self, other)

    def __mul__(self, other: Factor) -> Term:
        return self._made(self.algebra.mul, self, other)

    def __truediv__(self, other: Factor) -> Term:
        return self._made(self.algebra.div, self, other)

    def __rtruediv__(self, other: float) -> Term:
        return self._made(self.algebra.div, other, self)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Term:
        return self * -1.0

    def __pow__(self, exponent: float) -> Term:
        return self.with_value(self.algebra.power(self.whole, exponent, self.call.shape, self.call.dtype))

    def of(self, function: str) -> Term:
        """A function of it that is no sum, product or power."""
        return self.with_value(self.algebra.operator(function, (self.whole,), (), self.call.shape, self.call.dtype))

    def with_value(self, value: Operand) -> Term:
        """Another value in the same call."""
        return Term(self.algebra, self.call, value)

    def _made(self, function: Callable[..., Value], one: Factor, other: Factor) -> Term:
        values = (each.value if isinstance(each, Term) else each for each in (one, other))
        return self.with_value(function(*values, self.call.shape, self.call.dtype))


Factor: TypeAlias = Term | float


def _exp(x: Term) -> Term:
    return x.of("exp")


def _log(x: Term) -> Term:
    """The logarithm; that of 1 / (a + b) is -log(a + b), so that a sigmoid's is one however it is written."""
    coefficient, factors = as_product(x.whole)
    if coefficient == 1 and len(factors) == 1:
        ((factor, exponent),) = factors.items()
        if exponent == -1 and factor.op == SUM:
            return -x.with_value(factor).of("log")
    return x.of("log")


def _larger(x: Term, y: Operand) -> Term:
    return x.with_value(_pair(x.algebra, x.call, "maximum", x.whole, x.algebra.number(y)))


def _smaller(x: Term, y: Operand) -> Term:
    return x.with_value(_pair(x.algebra, x.call, "minimum", x.whole, x.algebra.number(y)))


def _clamped(x: Term, low: Operand | None, high: Operand | None) -> Term:
    x = x if low is None else _larger(x, low)
    return x if high is None else _smaller(x, high)


def _above(x: Term, bound: Factor, then: Factor, other: Factor) -> Term:
    """`then` where x > bound, else `other`."""
    values = [one.whole if isinstance(one, Term) else x.algebra.number(one) for one in (bound, then, other)]
    condition = x.algebra.operator("gt", (x.whole, values[0]), (), x.call.shape, torch.bool)
    return x.with_value(_chosen(x.algebra, x.call, condition, *values[1:]))


def _softplus(x: Term, beta: float = 1.0, threshold: float = _SOFTPLUS_IS_LINEAR) -> Term:
    smooth = _log(1 + _exp(beta * x)) / beta
    return smooth if threshold >= _SOFTPLUS_IS_LINEAR else _above(beta * x, threshold, x, smooth)


def _gelu(x: Term, approximate: str) -> Term:
    if approximate == "none":
        return 0.5 * x * (1 + (x * math.sqrt(0.5)).of("erf"))
    return 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).of("tanh"))


def _elu(x: Term, alpha: float, scale: float = 1.0, inner: float = 1.0) -> Term:
    return _above(x, 0, scale * x, alpha * scale * (_exp(inner * x) - 1))


def _prelu(x: Term, weight: Value) -> Term | None:
    rank = len(x.call.shape)
    if weight.shape != (1,) and rank < 2:
        return None
    sizes = weight.shape if weight.shape == (1,) else (*weight.shape, *(1,) * (rank - 2))
    turned = weight
    if sizes != weight.shape:
        turned = x.algebra.operator("view", (weight,), (("sizes", sizes),), sizes, x.call.dtype)
    return _above(x, 0, x, x.with_value(turned) * x)


# By the name of the operator; the first argument is the tensor, whatever its name.
_FORMULAS: dict[str, Callable[[Term, Call], Term | None]] = {
    "exp2": lambda x, call: _exp(math.log(2) * x),
    "expm1": lambda x, call: _exp(x) - 1,
    "log": lambda x, call: _log(x),
    "log1p": lambda x, call: _log(1 + x),
    "log2": lambda x, call: _log(x) / math.log(2),
    "log10": lambda x, call: _log(x) / math.log(10),
    "sigmoid": lambda x, call: 1 / (1 + _exp(-x)),
    "silu": lambda x, call: x / (1 + _exp(-x)),
    "log_sigmoid": lambda x, call: -_log(1 + _exp(-x)),
    "softplus": lambda x, call: _softplus(x, call["beta"], call["threshold"]),
    "mish": lambda x, call: x * _softplus(x).of("tanh"),
    "gelu": lambda x, call: _gelu(x, call["approximate"]),
    "relu": lambda x, call: _larger(x, 0),
    "relu6": lambda x, call: _clamped(x, 0, 6),
    "hardtanh": lambda x, call: _clamped(x, call["min_val"], call["max_val"]),
    "clamp": lambda x, call: _clamped(x, call["min"], call["max"]),
    "clamp_min": lambda x, call: _clamped(x, call["min"], None),
    "clamp_max": lambda x, call: _clamped(x, None, call["max"]),
    "hardsigmoid": lambda x, call: _clamped(x + 3, 0, 6) / 6,
    "hardswish": lambda x, call: x * _clamped(x + 3, 0, 6) / 6,
    "softsign": lambda x, call: x / (1 + x.of("abs")),
    "leaky_relu": lambda x, call: _above(x, 0, x, call["negative_slope"] * x),
    "prelu": lambda x, call: _prelu(x, call["weight"]),
    "elu": lambda x, call: _elu(x, call["alpha"], call["scale"], call["input_scale"]),
    "selu": lambda x, call: _SELU_SCALE * _elu(x, _SELU_ALPHA),
    "celu": lambda x, call: _elu(x, call["alpha"], inner=1 / call["alpha"]),
    "threshold": lambda x, call: _above(x, call["threshold"], x, call["value"]),
    "hardshrink": lambda x, call: _above(x.of("abs"), call["lambd"], x, 0),
    "softshrink": lambda x, call: _above(
        x, call["lambd"], x - call["lambd"], _above(-x, call["lambd"], x + call["lambd"], 0)
    ),
}


def _as_rule(formula: Callable[[Term, Call], Term | None]) -> Rule:
    def made(algebra: Algebra, call: Call) -> Any:
        first = next(iter(call.arguments.values()))
        numbers = [one for one in call.arguments.values() if isinstance(one, (int, float))]
        if not algebra.is_real or not all(map(math.isfinite, numbers)):
            return None
        result = formula(Term(algebra, call, first), call)
        return None if result is None else result.value

    return made


RULES: dict[str, Rule] = {name: _as_rule(formula) for name, formula in _FORMULAS.items()}
rule = into(RULES)


@rule("gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal")
def _compared(algebra: Algebra, call: Call) -> Any:
    """Comparisons the one way round: a < b is b > a."""
    one, other = (algebra.number(call[name]) for name in ("self", "other"))
    if call.op.startswith("l"):
        one, other = other, one
    name = "ge" if call.op.endswith("e") or call.op.endswith("equal") else "gt"
    return algebra.operator(name, (one, other), (), call.shape, call.dtype)


@rule("maximum", "minimum", "max", "min")
def _extreme(algebra: Algebra, call: Call) -> Any:
    if not algebra.is_real or call.get("other") is None:
        return None  # of one tensor
    name = {"max": "maximum", "min": "minimum"}.get(call.op, call.op)
    return _pair(algebra, call, name, *(algebra.number(call[one]) for one in ("self", "other")))


@rule("glu")
def _glu(algebra: Algebra, call: Call) -> Any:
    value = call["self"]
    if not algebra.is_real or value.op == LITERAL:
        return None
    dim = call["dim"] % len(value.shape)
    halves = [part(algebra, value, dim, start, 1, call.shape[dim], call.dtype) for start in (0, call.shape[dim])]
    first, second = (Term(algebra, call, half) for half in halves)
    return (first / (1 + _exp(-second))).value


@rule("masked_fill")
def _masked_fill(algebra: Algebra, call: Call) -> Any:
    value = algebra.number(call["value"])
    return _chosen(algebra, call, call["mask"], value, algebra.number(call["self"]))


@rule("where")
def _where(algebra: Algebra, call: Call) -> Any:
    if call.get("self") is None or call.get("other") is None:
        return None
    return _chosen(algebra, call, call["condition"], *(algebra.number(call[one]) for one in ("self", "other")))


def _chosen(algebra: Algebra, call: Call, condition: Value, then: Value, other: Value) -> Value:
    """What torch.where gives; of the real numbers conditions are `gt`, and the larger or smaller of two is that."""
    if algebra.is_real and condition.op in ("logical_not", "bitwise_not"):
        return _chosen(algebra, call, condition.args[0], other, then)
    if algebra.is_real and condition.op == "ge":
        condition = algebra.operator("gt", tuple(reversed(condition.args)), (), condition.shape, torch.bool)
        then, other = other, then
    if algebra.is_real and condition.op == "gt" and {then, other} == set(condition.args):
        name = "maximum" if then is condition.args[0] else "minimum"
        return _pair(algebra, call, name, then, other)
    if algebra.is_real and condition.op == "gt" and condition.args[0] is then:
        bound, term = condition.args[1], Term(algebra, call, then)
        if bound.op == LITERAL and bound.number >= _SOFTPLUS_IS_LINEAR and _softplus(term).value is other:
            return other
    return algebra.operator("where", (condition, then, other), (), call.shape, call.dtype)


def _pair(algebra: Algebra, call: Call, name: str, one: Value, other: Value) -> Value:
    """The larger or the smaller of two values, in whatever order; a number stands last."""
    pair = sorted((one, other), key=lambda value: (value.op == LITERAL, id(value)))
    return algebra.operator(name, pair, (), call.shape, call.dtype)
