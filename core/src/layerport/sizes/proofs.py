"""Whether a condition on sizes holds everywhere in their ranges: proven, refuted with examples, or left open.

Boxes of sizes are decided by interval arithmetic where that suffices, by evaluating every point where they are small,
and cut in two otherwise.  Torch-free; the front half uses it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerport.errors import UsageError
from layerport.sizes.expressions import Const, Expr, Operation, Symbol

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# What "no limit" means: no tensor has a longer axis.
NO_LIMIT = 2**40
_POINTS_IN_A_BOX = 2**16
_POINTS_IN_ALL = 2**22
_BOXES = 1000
_EXACT = 2**62
_KEPT = 64

Interval = tuple[int, int]


@dataclass(frozen=True)
class Finding:
    """What is known of a condition over a range.

    counterexamples: sizes where it does not hold, the smallest first; at most 64.
    complete: whether there are no others.  open: whether there are sizes for which nothing is known.
    """

    counterexamples: tuple[dict[str, int], ...]
    complete: bool
    open: bool

    @property
    def proven(self) -> bool:
        """Whether the condition holds at all sizes in the range."""
        return not self.counterexamples and not self.open


def prove(condition: Expr, ranges: Mapping[str, tuple[int, int | None]]) -> Finding:
    """Whether a condition (0 or 1) holds for all sizes in these ranges (both ends included, None for no limit)."""
    names = sorted(condition.symbols())
    start = tuple(
        (ranges[name][0], NO_LIMIT if ranges[name][1] is None else int(ranges[name][1] or 0)) for name in names
    )
    search = _Search(condition, names)
    search.run(start)
    return search.finding()


class _Search:
    def __init__(self, condition: Expr, names: list[str]) -> None:
        self._condition = condition
        self._names = names
        self._found: list[tuple[int, ...]] = []
        self._count = 0
        self._open = False
        self._points = 0

    def run(self, start: tuple[Interval, ...]) -> None:
        # The smallest sizes come first, so that a counterexample is one that a reader can check.
        order = itertools.count()
        boxes = [(0, next(order), start)]
        for _ in range(_BOXES):
            if not boxes:
                return
            _, _, box = heapq.heappop(boxes)
            bounds = dict(zip(self._names, box, strict=True))
            seen: list[Interval] = []
            least, greatest = _interval(self._condition, bounds, seen)
            if least > 0 or greatest < 0:
                continue
            volume = math.prod(high - low + 1 for low, high in box)
            exact = all(abs(end) < _EXACT for interval in seen for end in interval)
            if volume <= _POINTS_IN_A_BOX and exact and self._points < _POINTS_IN_ALL:
                self._enumerate(box)
            elif volume == 1:
                self._try(tuple(low for low, _ in box))
            elif self._points >= _POINTS_IN_ALL:
                self._sample(box)
            else:
                for half in _halves(box):
                    heapq.heappush(boxes, (sum(low for low, _ in half), next(order), half))
        for _, _, box in boxes:
            self._sample(box)

    def finding(self) -> Finding:
        distinct = sorted(set(self._found), key=lambda point: (sum(point), point))
        chosen = distinct if len(distinct) <= _KEPT else _spread(distinct)
        points = tuple(dict(zip(self._names, point, strict=True)) for point in chosen)
        return Finding(points, not self._open and self._count <= len(chosen), self._open)

    def _enumerate(self, box: tuple[Interval, ...]) -> None:
        import numpy as np

        axes = [np.arange(low, high + 1, dtype=np.int64) for low, high in box]
        grids = np.meshgrid(*axes, indexing="ij", copy=False) if axes else []
        self._points += math.prod(high - low + 1 for low, high in box)
        with np.errstate(divide="ignore"):
            values = _values(self._condition, dict(zip(self._names, grids, strict=True)))
        false = np.argwhere(np.broadcast_to(np.asarray(values) == 0, tuple(len(axis) for axis in axes)))
        self._count += len(false)
        kept = false if len(false) <= 4 * _KEPT else false[np.linspace(0, len(false) - 1, 4 * _KEPT).astype(np.int64)]
        for row in [*false[:_KEPT], *kept]:
            self._found.append(tuple(int(axis[at]) for axis, at in zip(axes, row, strict=True)))

    def _try(self, point: tuple[int, ...]) -> None:
        try:
            holds = self._condition.evaluate(dict(zip(self._names, point, strict=True)))
        except UsageError:  # a division by zero
            holds = 0
        if not holds:
            self._count += 1
            self._found.append(point)

    def _sample(self, box: tuple[Interval, ...]) -> None:
        """Try a few points of a box that stays open."""
        self._open = True
        ends = [sorted({low, min(low + 1, high), (low + high) // 2, high}) for low, high in box]
        for point in itertools.islice(itertools.product(*ends), 256):
            self._try(point)


def rises(expr: Expr) -> bool:
    """Whether the value is seen never to fall where a size grows, sizes being 0 and more."""
    if not isinstance(expr, Operation):
        return True
    if expr.op in ("floordiv", "ceildiv"):
        value, divisor = expr.args
        return rises(value) and isinstance(divisor, Const) and divisor.value > 0
    anything = dict.fromkeys(expr.symbols(), (0, NO_LIMIT))
    if expr.op == "mul" and any(_interval(arg, anything, [])[0] < 0 for arg in expr.args):
        return False
    return expr.op in ("add", "mul", "min", "max") and all(map(rises, expr.args))


def _halves(box: tuple[Interval, ...]) -> tuple[tuple[Interval, ...], tuple[Interval, ...]]:
    widest = max(range(len(box)), key=lambda place: box[place][1] - box[place][0])
    low, high = box[widest]
    # What has no limit is cut near its lower end, where the conditions of references are decided.
    middle = min((low + high) // 2, max(low + 255, 2 * low))
    first, second = ((*box[:widest], part, *box[widest + 1 :]) for part in ((low, middle), (middle + 1, high)))
    return first, second


def _spread(points: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The smallest ones, and others from all over the list, the last included."""
    near, step = _KEPT // 2, (len(points) - 1) / (_KEPT // 2)
    return list(dict.fromkeys([*points[:near], *(points[round(step * (place + 1))] for place in range(_KEPT // 2))]))


def _interval(expr: Expr, bounds: Mapping[str, Interval], seen: list[Interval]) -> Interval:
    """Between which numbers the value lies; every inner interval is appended to `seen`."""
    if isinstance(expr, Const):
        made = (expr.value, expr.value)
    elif isinstance(expr, Symbol):
        made = bounds[expr.name]
    else:
        assert isinstance(expr, Operation)
        made = _INTERVALS[expr.op]([_interval(arg, bounds, seen) for arg in expr.args])
    seen.append(made)
    return made


def _corners(apply: Callable[[int, int], int], a: Interval, b: Interval) -> Interval:
    found = [apply(x, y) for x in a for y in b]
    return min(found), max(found)


def _division(apply: Callable[[int, int], int], a: Interval, b: Interval) -> Interval:
    if b[0] <= 0 <= b[1]:
        return -(2**80), 2**80
    return _corners(apply, a, b)


def _product(values: list[Interval]) -> Interval:
    made = (1, 1)
    for value in values:
        made = _corners(lambda x, y: x * y, made, value)
    return made


def _equal(a: Interval, b: Interval) -> Interval:
    if a[1] < b[0] or b[1] < a[0]:
        return 0, 0
    return (1, 1) if a[0] == a[1] == b[0] == b[1] else (0, 1)


def _chosen(condition: Interval, a: Interval, b: Interval) -> Interval:
    if condition == (0, 0):
        return b
    return a if condition[0] > 0 else (min(a[0], b[0]), max(a[1], b[1]))


_INTERVALS: dict[str, Callable[[list[Interval]], Interval]] = {
    "add": lambda v: (sum(low for low, _ in v), sum(high for _, high in v)),
    "mul": _product,
    "floordiv": lambda v: _division(lambda x, y: x // y, *v),
    "ceildiv": lambda v: _division(lambda x, y: -(-x // y), *v),
    "min": lambda v: (min(low for low, _ in v), min(high for _, high in v)),
    "max": lambda v: (max(low for low, _ in v), max(high for _, high in v)),
    "eq": lambda v: _equal(*v),
    "lt": lambda v: (int(v[0][1] < v[1][0]), int(v[0][0] < v[1][1])),
    "and": lambda v: (int(all(low for low, _ in v)), int(all(high for _, high in v))),
    "or": lambda v: (int(any(low for low, _ in v)), int(any(high for _, high in v))),
    "not": lambda v: (int(not v[0][1]), int(not v[0][0])),
    "where": lambda v: _chosen(*v),
}


def _values(expr: Expr, sizes: Mapping[str, Array]) -> Any:
    """The values at many sizes at once; a division by zero makes any condition 0."""
    if isinstance(expr, Const):
        return expr.value
    if isinstance(expr, Symbol):
        return sizes[expr.name]
    assert isinstance(expr, Operation)
    return _ARRAYS[expr.op]([_values(arg, sizes) for arg in expr.args])


def _fold(name: str) -> Callable[[list[Any]], Any]:
    def apply(values: list[Any]) -> Any:
        import numpy as np

        made = values[0]
        for value in values[1:]:
            made = getattr(np, name)(made, value)
        return made

    return apply


def _where(values: list[Any]) -> Any:
    import numpy as np

    return np.where(np.asarray(values[0]) != 0, values[1], values[2])


def _negated(values: list[Any]) -> Any:
    import numpy as np

    return (np.asarray(values[0]) == 0).astype(np.int64)


def _truth(name: str) -> Callable[[list[Any]], Any]:
    fold = _fold(name)

    def apply(values: list[Any]) -> Any:
        import numpy as np

        return np.asarray(fold(values)).astype(np.int64)

    return apply


def _ceildiv(values: list[Any]) -> Any:
    return -(-values[0] // values[1])


_ARRAYS: dict[str, Callable[[list[Any]], Any]] = {
    "add": sum,
    "mul": math.prod,
    "floordiv": _fold("floor_divide"),
    "ceildiv": _ceildiv,
    "min": _fold("minimum"),
    "max": _fold("maximum"),
    "eq": _truth("equal"),
    "lt": _truth("less"),
    "and": _truth("logical_and"),
    "or": _truth("logical_or"),
    "not": _negated,
    "where": _where,
}
