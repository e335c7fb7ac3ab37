"""The nodes of size expressions, with Python's operators: what an operator makes of them is up to the rules.

`expressions` gives the rules (`simplify`) and the text (`text`), which are made of these nodes; import that.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, NoReturn, Protocol, TypeAlias, cast

from layerport.errors import UsageError

MAX_DEPTH = 50
MAX_NODES = 2000
# Without -2**63, so that every number has a negative.
_LARGEST = 2**63 - 1
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}(\.[0-9]{1,4})?\Z")
_DIGITS = re.compile(r"([0-9]+)")
NO_VALUE_YET = (
    "write lp.where(condition, a, b), lp.minimum(a, b) or lp.maximum(a, b); or give the layer several kernels, "
    "each with its own predicate"
)

_NO_FLOAT = (
    "make the sizes it is made of static in the export; or pass the sizes as arguments of the kernel, and compute the "
    "float there"
)

ExprLike: TypeAlias = "Expr | int"


class Rules(Protocol):
    """What operators make of their operands, in canonical shape; see `simplify`."""

    def total(self, parts: Iterable[tuple[Expr, int]], constant: int = 0) -> Expr: ...
    def product(self, values: Iterable[Expr]) -> Expr: ...
    def floordiv(self, a: Expr, b: Expr) -> Expr: ...
    def modulo(self, a: Expr, b: Expr) -> Expr: ...
    def equal(self, a: Expr, b: Expr) -> Expr: ...
    def less(self, a: Expr, b: Expr) -> Expr: ...
    def negation(self, value: Expr) -> Expr: ...
    def junction(self, op: str, values: Sequence[Expr]) -> Expr: ...
    def is_condition(self, value: Expr) -> bool: ...


class NoNumberYetError(UsageError):
    """A float is wanted of a size that is not known yet."""


class Expr:
    """A whole number that is known once the sizes it names are known.

    Operators build expressions, comparisons included: `n == 4` is an expression of value 0 or 1.  Where Python wants
    a value now (`if`, `range`, `int()`), UsageError tells the ways out.  Expressions hash and pickle by their text.
    """

    rules: ClassVar[Rules]
    render: ClassVar[Callable[[Expr], str]]
    parse: ClassVar[Callable[[str], Expr]]
    depth: int = 1
    nodes: int = 1

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"an expression cannot be changed: {self}")

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Expr({self.text!r})"

    def __hash__(self) -> int:
        return hash(self.text)

    def __reduce__(self) -> tuple[Callable[[str], Expr], tuple[str]]:
        return Expr.parse, (self.text,)

    @cached_property
    def text(self) -> str:
        """The expression as Python would read it."""
        return Expr.render(self)

    @cached_property
    def sort_key(self) -> tuple[int, list[tuple[int, str]]]:
        """Leaves first, then by name with numbers in their order ("x.2" before "x.10")."""
        parts = _DIGITS.split(self.text)
        return self.depth, [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

    def structurally_equals(self, other: object) -> bool:
        """Whether both are the same expression, not only of the same value."""
        return isinstance(other, Expr) and self.text == other.text

    def symbols(self) -> frozenset[str]:
        """The names of the sizes that the value depends on."""
        return frozenset()

    def evaluate(self, sizes: Mapping[str, int]) -> int:
        """The value for these sizes; UsageError for a size that is missing and for a division by zero."""
        raise NotImplementedError

    def __add__(self, other: object) -> Expr:
        return _binary(lambda a, b: Expr.rules.total([(a, 1), (b, 1)]), self, other)

    def __radd__(self, other: object) -> Expr:
        return _binary(lambda a, b: Expr.rules.total([(a, 1), (b, 1)]), other, self)

    def __sub__(self, other: object) -> Expr:
        return _binary(lambda a, b: Expr.rules.total([(a, 1), (b, -1)]), self, other)

    def __rsub__(self, other: object) -> Expr:
        return _binary(lambda a, b: Expr.rules.total([(a, 1), (b, -1)]), other, self)

    def __mul__(self, other: object) -> Expr:
        return _binary(lambda a, b: Expr.rules.product([a, b]), self, other)

    def __rmul__(self, other: object) -> Expr:
        return _binary(lambda a, b: Expr.rules.product([a, b]), other, self)

    def __floordiv__(self, other: object) -> Expr:
        return _binary(Expr.rules.floordiv, self, other)

    def __rfloordiv__(self, other: object) -> Expr:
        return _binary(Expr.rules.floordiv, other, self)

    def __mod__(self, other: object) -> Expr:
        return _binary(Expr.rules.modulo, self, other)

    def __rmod__(self, other: object) -> Expr:
        return _binary(Expr.rules.modulo, other, self)

    def __divmod__(self, other: object) -> tuple[Expr, Expr]:
        return self // other, self % other

    def __pow__(self, exponent: Any) -> Expr:
        if isinstance(exponent, (Expr, float)):
            raise _no_float(f"{self} ** {exponent}")
        power = operator.index(exponent)
        if power < 0:
            raise _no_float(f"{self} ** {power}")
        if power > 16:
            raise UsageError(f"{self} ** {power} is not a size", "use an exponent from 0 to 16")
        return Expr.rules.product([self] * power)

    def __rpow__(self, base: object) -> NoReturn:
        raise _no_float(f"{base} ** {self}")

    def __neg__(self) -> Expr:
        return Expr.rules.total([(self, -1)])

    def __pos__(self) -> Expr:
        return self

    def __eq__(self, other: object) -> Expr:  # type: ignore[override]
        return _binary(Expr.rules.equal, self, other)

    def __ne__(self, other: object) -> Expr:  # type: ignore[override]
        return _binary(lambda a, b: Expr.rules.negation(Expr.rules.equal(a, b)), self, other)

    def __lt__(self, other: object) -> Expr:
        return _binary(Expr.rules.less, self, other)

    def __gt__(self, other: object) -> Expr:
        return _binary(lambda a, b: Expr.rules.less(b, a), self, other)

    def __le__(self, other: object) -> Expr:
        return _binary(lambda a, b: Expr.rules.less(a, b + 1), self, other)

    def __ge__(self, other: object) -> Expr:
        return _binary(lambda a, b: Expr.rules.less(b, a + 1), self, other)

    def __and__(self, other: object) -> Expr:
        return _binary(lambda a, b: Expr.rules.junction("and", (a, b)), self, other)

    __rand__ = __and__

    def __or__(self, other: object) -> Expr:
        return _binary(lambda a, b: Expr.rules.junction("or", (a, b)), self, other)

    __ror__ = __or__

    def __invert__(self) -> Expr:
        if not Expr.rules.is_condition(self):
            raise UsageError(f"~ is 'not' of a condition, and {self} is a number", "compare it first")
        return Expr.rules.negation(self)

    def __truediv__(self, other: object) -> NoReturn:
        raise _no_float(f"{self} / {other}", "use // or lp.cdiv for a whole number; for a float, ")

    def __rtruediv__(self, other: object) -> NoReturn:
        raise _no_float(f"{other} / {self}", "use // or lp.cdiv for a whole number; for a float, ")

    def __bool__(self) -> bool:
        raise UsageError(f"{self} is symbolic here: it is neither true nor false yet", NO_VALUE_YET)

    def __int__(self) -> int:
        raise UsageError(f"{self} is symbolic here: it is no number yet", NO_VALUE_YET)

    __index__ = __int__

    def __float__(self) -> float:
        raise _no_float(str(self))

    def __iter__(self) -> Iterator[Expr]:
        raise UsageError(f"{self} is one symbolic size and cannot be iterated over", NO_VALUE_YET)


class Const(Expr):
    """A known whole number, within 64 bits; the one expression that has a truth value and an int."""

    value: int

    def __init__(self, value: int) -> None:
        number = operator.index(value)
        if abs(number) > _LARGEST:
            raise UsageError(f"a size of {_shorten(number)} does not fit 64 bits", "give smaller sizes")
        object.__setattr__(self, "value", number)

    def evaluate(self, sizes: Mapping[str, int]) -> int:
        return self.value

    def __bool__(self) -> bool:
        return bool(self.value)

    def __int__(self) -> int:
        return self.value

    __index__ = __int__

    def __float__(self) -> float:
        return float(self.value)


class Symbol(Expr):
    """A size known later: "x.0" is axis 0 of argument x, "u0" a size that depends on data."""

    name: str

    def __init__(self, name: str) -> None:
        if not _SYMBOL.match(name):
            raise UsageError(f"{name[:140]!r} is no name of a size", "use an argument and an axis, such as x.0")
        object.__setattr__(self, "name", name)

    def symbols(self) -> frozenset[str]:
        return frozenset({self.name})

    def evaluate(self, sizes: Mapping[str, int]) -> int:
        try:
            return operator.index(sizes[self.name])
        except KeyError:
            known = ", ".join(sorted(sizes)) or "none"
            raise UsageError(f"the size {self.name} is not known", f"known sizes: {known}") from None


class Operation(Expr):
    """An operation on expressions, made by the operators and functions of this module only."""

    op: str
    args: tuple[Expr, ...]

    def __init__(self, op: str, args: Iterable[Expr]) -> None:
        operands = tuple(args)
        depth, nodes = 1 + max(arg.depth for arg in operands), 1 + sum(arg.nodes for arg in operands)
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            raise UsageError(
                f"a size expression is too large: depth {depth} (limit {MAX_DEPTH}), {nodes} nodes (limit {MAX_NODES})",
                "simplify the rule that makes it",
            )
        for name, value in (("op", op), ("args", operands), ("depth", depth), ("nodes", nodes)):
            object.__setattr__(self, name, value)

    def symbols(self) -> frozenset[str]:
        return frozenset().union(*(arg.symbols() for arg in self.args))

    def evaluate(self, sizes: Mapping[str, int]) -> int:
        values = [arg.evaluate(sizes) for arg in self.args]
        if self.op in ("floordiv", "ceildiv") and values[1] == 0:
            raise UsageError(f"division by zero: {self} with {self.args[1]} = 0", "keep the divisor positive")
        return _EVALUATE[self.op](values)


_EVALUATE: dict[str, Callable[[list[int]], int]] = {
    "add": sum,
    "mul": math.prod,
    "floordiv": lambda v: v[0] // v[1],
    "ceildiv": lambda v: -(-v[0] // v[1]),
    "min": min,
    "max": max,
    "eq": lambda v: int(v[0] == v[1]),
    "lt": lambda v: int(v[0] < v[1]),
    "and": lambda v: int(all(v)),
    "or": lambda v: int(any(v)),
    "not": lambda v: int(not v[0]),
    "where": lambda v: v[1] if v[0] else v[2],
}


def as_expr(value: ExprLike) -> Expr:
    """The expression of an int, or the expression itself; UsageError for anything else."""
    made = _operand(value)
    if made is None:
        raise UsageError(
            f"a size is a whole number or an expression, got {type(value).__name__} {value!r}",
            "compute sizes with //, lp.cdiv, lp.minimum and the like, which keep them whole",
        )
    return made


def _operand(value: object) -> Expr | None:
    if isinstance(value, Expr):
        return value
    try:
        return Const(operator.index(cast("Any", value)))
    except TypeError:
        return None


def _binary(make: Callable[[Expr, Expr], Expr], a: object, b: object) -> Expr:
    left, right = _operand(a), _operand(b)
    if left is None or right is None:
        if isinstance(a, float) or isinstance(b, float):
            raise _no_float(f"a size computed from {a} and {b}")
        return NotImplemented  # type: ignore[no-any-return]
    return make(left, right)


def _no_float(what: str, also: str = "") -> NoNumberYetError:
    return NoNumberYetError(f"{what} would be a float, and its sizes are no numbers yet", also + _NO_FLOAT)


def _shorten(number: int) -> str:
    return str(number) if number.bit_length() < 256 else f"2**{number.bit_length() - 1}"
