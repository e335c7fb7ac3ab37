"""The dynamic dims of a model and their ranges.  Imports no framework; both halves use it."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.sizes.expressions import Expr, Symbol, parse
from layerport.sizes.tensors import TensorType

_LONGEST_NAME = 512
_parsed = lru_cache(maxsize=1024)(parse)
Ranges: TypeAlias = Iterable[str] | Mapping[str, Sequence[int]]
_NAME = re.compile(r"[A-Za-z_]\w*")
_RANGE = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<min>\d+)\.\.(?:(?P<opt>\d+)\.\.)?(?P<max>\d+)")


@dataclass(frozen=True)
class DimRange:
    """A dynamic dim: its least, usual and greatest size; max None where no limit is stated."""

    name: str
    min: int
    opt: int
    max: int | None

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.opt <= self.greatest:
            raise UsageError(
                f"range of dim {self.name} contradicts itself: min {self.min}, usual {self.opt}, max {self.max}",
                f"write it as --range {self.name}=MIN..USUAL..MAX with MIN <= USUAL <= MAX",
            )

    @property
    def greatest(self) -> int:
        """The greatest size that an engine is built for: the usual one where no limit is stated."""
        return self.opt if self.max is None else self.max

    def to_json(self) -> dict[str, Any]:
        """The range as the manifest holds it."""
        return {"name": self.name, "min": self.min, "opt": self.opt, "max": self.max}


def port(name: str, dtype: str, dims: Iterable[int | str | None]) -> TensorType:
    """An input or output of a model.  The name has 1 to 512 characters that can be shown, so no control characters.

    dims: sizes, names of dynamic dims or expressions over them as text, None where nothing is known.
    Raises UsageError.
    """
    if not (0 < len(name) <= _LONGEST_NAME and name.isprintable()):
        raise UsageError(
            f"{name[:80]!r} cannot be the name of an input or output, it has {len(name)} characters",
            f"rename it in the model: 1 to {_LONGEST_NAME} characters, none of them a control character",
        )
    return TensorType(name, DType.of(dtype), tuple(_parsed(dim) if isinstance(dim, str) else dim for dim in dims))


def port_json(port: TensorType) -> dict[str, Any]:
    """An input or output as the manifest holds it."""
    dims = [str(dim) if isinstance(dim, Expr) else dim for dim in port.shape]
    return {"name": port.name, "dtype": port.dtype.value, "dims": dims}


def follows_from(size: str | None, dims: Collection[str]) -> bool:
    """Whether a size is an expression over these dims."""
    if size is None:
        return False
    try:
        return all(name in dims for name in _parsed(size).symbols())
    except UsageError:
        return False


class Sizes:
    """The sizes of a model's dynamic dims as the shapes of its inputs show them, gathered port by port.

    faults: what contradicts the ports or the ranges.
    """

    def __init__(self, dims: Mapping[str, DimRange]) -> None:
        self._dims = dims
        self._found: dict[str, tuple[int, str]] = {}
        self._compound: list[tuple[TensorType, Expr, int]] = []
        self.faults: list[str] = []

    def add(self, port: TensorType, shape: Sequence[int], got: str) -> None:
        """Read one input's shape, of the port's rank.  got: the input in words."""
        for axis, (dim, size) in enumerate(zip(port.shape, shape, strict=True)):
            if isinstance(dim, int) and size != dim:
                self.faults.append(f"{port.name}: axis {axis} must be {dim}, got {got}")
            elif isinstance(dim, Symbol) and dim.name in self._dims:
                self._set(dim.name, size, port)
            elif isinstance(dim, Expr):
                self._compound.append((port, dim, size))

    def values(self) -> dict[str, int]:
        """Each dim that is known by now, sizes such as 2*n solved for n."""
        for port, expression, size in self._compound:
            unknown = expression.symbols() - self._found.keys()
            if len(unknown) == 1:
                (name,) = unknown
                sizes = {known: value for known, (value, _) in self._found.items()}
                start, step = (expression.evaluate({**sizes, name: value}) for value in (0, 1))
                step -= start
                if step > 0 and (size - start) % step == 0:
                    self._set(name, (size - start) // step, port)
                else:
                    self.faults.append(f"{port.name}: dim {expression} cannot be {size}")
            elif not unknown:
                sizes = {known: value for known, (value, _) in self._found.items()}
                if (wanted := expression.evaluate(sizes)) != size:
                    self.faults.append(f"{port.name}: dim {expression} must be {wanted}, got {size}")
        self._compound.clear()
        return {name: value for name, (value, _) in self._found.items()}

    def _set(self, name: str, size: int, port: TensorType) -> None:
        limits = self._dims[name]
        if size < limits.min or (limits.max is not None and size > limits.max):
            self.faults.append(f"{port.name}: dim {name} must be {limits.min}..{limits.max or 'any'}, got {size}")
        known = self._found.setdefault(name, (size, port.name))
        if known[0] != size:
            self.faults.append(f"{port.name}: dim {name} is {size} here and {known[0]} in {known[1]}")


def parse_ranges(ranges: Ranges) -> dict[str, tuple[int, int | None, int]]:
    """The least, usual (None where it is left out) and greatest size of dims, by name.

    ranges: texts "NAME=MIN..USUAL..MAX", or a mapping of NAME to (MIN, USUAL, MAX); USUAL may be left out of both.
    Raises UsageError with all faults.
    """
    found: dict[str, tuple[int, int | None, int]] = {}
    faults = []
    if isinstance(ranges, Mapping):
        for name, sizes in ranges.items():
            if fault := _range_fault(name, sizes):
                faults.append(fault)
            else:
                least, *usual, greatest = map(operator.index, sizes)
                found[name] = (least, usual[0] if usual else None, greatest)
    else:
        for text in (ranges,) if isinstance(ranges, str) else ranges:
            match = _RANGE.fullmatch(text.strip()) if isinstance(text, str) else None
            if match is None:
                faults.append(f"{text!r} is not NAME=MIN..USUAL..MAX or NAME=MIN..MAX")
            elif match["name"] in found:
                faults.append(f"dim {match['name']} is given twice")
            else:
                usual_size = int(match["opt"]) if match["opt"] else None
                found[match["name"]] = (int(match["min"]), usual_size, int(match["max"]))
    for name, (low, opt, high) in found.items():
        try:
            DimRange(name, low, low if opt is None else opt, high)
        except UsageError as error:
            faults.append(error.fault)
    if faults:
        raise UsageError(
            "ranges cannot be read",
            'write them like {"sequence": (1, 64, 512)}'
            if isinstance(ranges, Mapping)
            else "write them like --range sequence=1..64..512",
            faults=faults,
        )
    return found


def _range_fault(name: Any, sizes: Any) -> str | None:
    """What is wrong with one entry of a mapping of ranges."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return f"{name!r} is not the name of a dim"
    if not isinstance(sizes, (tuple, list)) or len(sizes) not in (2, 3):
        return f"dim {name}: {sizes!r:.80} is not (MIN, USUAL, MAX) or (MIN, MAX)"
    if wrong := [size for size in sizes if not is_size(size)]:
        return f"dim {name}: {wrong[0]!r:.80} is not a whole number from 0"
    return None


def is_size(value: Any) -> bool:
    """Whether a value from Python can be a size: a whole number of any kind, from 0."""
    return hasattr(type(value), "__index__") and not isinstance(value, bool) and operator.index(value) >= 0


def apply_ranges(
    dims: Mapping[str, DimRange], ranges: Mapping[str, tuple[int, int | None, int]]
) -> dict[str, DimRange]:
    """The model's dims with the user's ranges.  Raises UsageError for unknown dims and ranges that do not fit."""
    result = dict(dims)
    faults = [
        f"the model has no dynamic dim {name}; it has: {', '.join(dims) or 'none'}"
        for name in ranges
        if name not in dims
    ]
    for name, (least, usual, greatest) in ranges.items():
        if name not in dims:
            continue
        stated = dims[name]
        if least < stated.min or (stated.max is not None and greatest > stated.max):
            faults.append(
                f"dim {name}: {least}..{greatest} goes beyond {stated.min}..{stated.max or 'any'}, "
                "which the model was exported for"
            )
            continue
        try:
            usual = min(max(stated.opt, least), greatest) if usual is None else usual
            result[name] = DimRange(name, least, usual, greatest)
        except UsageError as error:
            faults.append(error.fault)
    if faults:
        raise UsageError("ranges do not fit the model", "write --range NAME=MIN..USUAL..MAX within them", faults=faults)
    return result


def require_limits(dims: Mapping[str, DimRange], target: str) -> None:
    """Raise UsageError where a dim has no greatest size, which an engine must know."""
    open_ended = [dim for dim in dims.values() if dim.max is None]
    if open_ended:
        options = " ".join(f"--range {dim.name}={dim.min}..{dim.opt}..{max(512, 4 * dim.opt)}" for dim in open_ended)
        raise UsageError(
            f"target {target} needs a greatest size for every dynamic dim; none is known for "
            + ", ".join(dim.name for dim in open_ended),
            f"add for example {options}, or state max in torch.export.Dim where the source is a Torch model",
        )
