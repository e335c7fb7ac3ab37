"""What a pack's author writes for a Triton kernel: the function and what it is compiled with, checked when made.

Imports no Triton: a pack with Triton kernels loads where Triton is not installed.  Reached through
`layerport.triton`; `kernels`, `tracing` and the Triton toolchain use the records.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias

from layerport.dtypes import DType
from layerport.errors import UsageError

Constexpr: TypeAlias = "int | float | bool | str | DType | None"
Rule: TypeAlias = "Callable[..., Any]"
WARPS = (1, 2, 4, 8, 16, 32)
MOST_STAGES = 32
_REFERENCE = re.compile(r"(?P<home>\.?[A-Za-z_][\w.]*|[^:\n\0]+\.py):(?P<name>[A-Za-z_]\w*)")
_REFERENCES = '"kernel.py:function" (a file beside the launch rule), "package.module:function" or ".module:function"'


@dataclass(frozen=True)
class Specialisation:
    """What one compiled kernel is made with.  constexprs: values by the names of the function's parameters."""

    num_warps: int
    num_stages: int
    constexprs: Mapping[str, Constexpr]


@dataclass(frozen=True, eq=False)
class TritonSource:
    """A Triton function and what to compile it with.  Made by `layerport.triton`.

    folder, package: where a file or a relative module name starts; set when a kernel is made of it.
    """

    fn: Any
    num_warps: int | Rule = 4
    num_stages: int | Rule = 3
    constexprs: Mapping[str, Constexpr | Rule] = field(default_factory=dict)
    alignment: int = 16
    time_limit: float = 120.0
    folder: str | None = None
    package: str | None = None

    def __post_init__(self) -> None:
        _check_function(self.fn)
        for name in ("num_warps", "num_stages"):
            value = getattr(self, name)
            if not callable(value) and (fault := option_fault(name, value)):
                raise UsageError(f"lp.triton: {fault}", _option_repair(name))
        if not isinstance(self.constexprs, Mapping):
            raise UsageError(
                f"lp.triton: constexprs is {type(self.constexprs).__name__}",
                "give a value or a function of the layer's arguments for each name: "
                'constexprs={"BLOCK": lambda x: lp.next_power_of_2(x.shape[-1])}',
            )
        for key, value in self.constexprs.items():
            if not isinstance(key, str) or not key.isidentifier():
                raise UsageError(f"lp.triton: constexprs has the name {key!r}", "name parameters of the function")
            if not callable(value) and not is_constexpr(value):
                raise UsageError(
                    f"lp.triton: constexpr {key} is {type(value).__name__} {value!r:.60}",
                    "give an int, float, bool, text, dtype or None, or a function of the layer's arguments",
                )
        object.__setattr__(self, "constexprs", MappingProxyType(dict(self.constexprs)))
        if self.alignment not in (1, 2, 4, 8, 16) or isinstance(self.alignment, bool):
            raise UsageError(f"lp.triton: alignment is {self.alignment!r}", "give 16, or 1, 2, 4 or 8 bytes")
        if not isinstance(self.time_limit, (int, float)) or not 0 < self.time_limit <= 86400:
            raise UsageError(
                f"lp.triton: time_limit is {self.time_limit!r}", "give seconds, more than 0, at most a day (86400)"
            )

    @property
    def name(self) -> str:
        """The name of the function."""
        return str(self.fn).rpartition(":")[2] if isinstance(self.fn, str) else str(self.fn.__name__)

    @property
    def home(self) -> str | None:
        """The file or module of a function given as text, None for a function object."""
        return self.fn.rpartition(":")[0] if isinstance(self.fn, str) else None

    def anchored(self, folder: str, package: str | None) -> TritonSource:
        """The same with this folder and package for relative names, unless it has them already."""
        return self if self.folder is not None else replace(self, folder=folder, package=package)


def triton(
    fn: Any,
    *,
    num_warps: int | Rule = 4,
    num_stages: int | Rule = 3,
    constexprs: Mapping[str, Constexpr | Rule] = MappingProxyType({}),
    alignment: int = 16,
    time_limit: float = 120.0,
) -> TritonSource:
    """A kernel in Triton, compiled ahead of time for each architecture that is asked for.

    fn: a `@triton.jit` function, or as text where it is, so that the pack loads without Triton: "kernel.py:scale" (a
    file beside the launch rule), "my_pack.kernels:scale" or ".kernels:scale".  num_warps, num_stages and each
    constexpr: a value, or a function that gives it.  Such a function takes, by name, what a launch rule takes (the
    layer's arguments and outputs), and the constexprs before it; the launch rule may take all constexprs.  A compiled
    kernel has one value of each, so a function must not depend on a size that is dynamic where the layer stands.
    alignment: bytes that the address of each tensor is a multiple of, which wide loads need; the launcher refuses
    others.  1 takes any address, and is slow for small dtypes.  time_limit: seconds that one compilation may take.

    The launch rule gives no block.  Its args go to the parameters that are no constexprs, in order; an int is an i32
    unless the parameter is annotated (`n: tl.int64`) or its known value needs 64 bits, a float an fp32, None a
    constexpr.  Raises UsageError.
    """
    return TritonSource(fn, num_warps, num_stages, constexprs, alignment, time_limit)


def is_constexpr(value: object) -> bool:
    """Whether a value may stand for a constexpr of a kernel."""
    return value is None or isinstance(value, (int, float, str))


def option_fault(name: str, value: object) -> str | None:
    """What is wrong with a value of `num_warps` or `num_stages`."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value in WARPS if name == "num_warps" else 1 <= value <= MOST_STAGES:
            return None
        return f"{name} is {value}"
    return f"{name} is {type(value).__name__} {value!r:.60}"


def _option_repair(name: str) -> str:
    if name == "num_warps":
        return f"give one of {', '.join(map(str, WARPS))}, or a function of the layer's arguments"
    return f"give 1 to {MOST_STAGES}, or a function of the layer's arguments"


def _check_function(fn: object) -> None:
    if isinstance(fn, str):
        if not _REFERENCE.fullmatch(fn):
            raise UsageError(f"lp.triton: {fn!r} names no function", f"write {_REFERENCES}")
        return
    if not _of_triton(fn):
        repair = (
            "decorate it with @triton.jit"
            if inspect.isfunction(fn)
            else f"give a @triton.jit function, or {_REFERENCES}"
        )
        raise UsageError(f"lp.triton: {type(fn).__name__} {fn!r:.60} is no Triton function", repair)
    if not inspect.isfunction(getattr(fn, "fn", None)):
        raise UsageError(
            f"lp.triton: {fn!r:.60} is a {type(fn).__name__}, which chooses when it runs, on a GPU",
            "give the @triton.jit function itself, and the choice as functions in num_warps, num_stages and constexprs",
        )


def _of_triton(fn: object) -> bool:
    # By the name of the classes, because Triton must not be imported to look.
    return any(base.__module__.partition(".")[0] == "triton" for base in type(fn).__mro__)
