"""Errors of Triton's front end as ours: the author's file and line, and what stands there.

Used by `triton` only.
"""

from __future__ import annotations

import inspect
from typing import Any

from layerport.errors import BuildError
from layerport.foreign import triton_private

_DEPTH = 8


def explain(error: BaseException, fn: Any, label: str, architecture: str) -> BuildError:
    """The error for a function that the front end refuses."""
    from triton.compiler.errors import CompilationError

    if not isinstance(error, CompilationError):
        return BuildError(
            f"{label}: {_place(fn, 1)[0]} does not compile for {architecture}: {type(error).__name__}: {_first(error)}",
            "correct the function, or the types and constexprs that it gets",
        )
    shown: list[str] = []
    where, reason = _place(fn, 1)[0], ""
    at: BaseException | None = error
    # From the kernel inwards: each error says where the function was called that the next one is about.
    while isinstance(at, CompilationError):
        owner = _owner(at.src, fn)
        line = getattr(at.node, "lineno", None)
        if owner is not None and line is not None:
            where, text = _place(owner, line)
            shown += [f"at {where}: {text}"]
        reason = str(at.error_message or reason)
        at = at.__cause__
    if at is not None and not reason:
        reason = f"{type(at).__name__}: {_first(at)}"
    lines = [line.strip() for line in reason.splitlines() if line.strip()] or [type(error).__name__]
    return BuildError(
        f"{label}: {where} does not compile for {architecture}: {lines[0]}",
        "correct the function, or the types and constexprs that it gets",
        faults=[*lines[1:4], *shown],
    )


def _place(fn: Any, line: int) -> tuple[str, str]:
    """`file:line` of a line of a Triton function, counted from its `def`, and the text there."""
    file, start = triton_private.place(fn)
    lines = fn.src.splitlines()
    return f"{file}:{start + line - 1}", lines[line - 1].strip() if line <= len(lines) else ""


def _owner(text: str | None, fn: Any) -> Any:
    """The function of this source text: the kernel or what it calls, unless it is Triton's own."""
    seen: set[int] = set()
    level = [fn]
    for _ in range(_DEPTH):
        following = []
        for one in level:
            if one.src == text:
                return one
            values = inspect.getclosurevars(one.fn).nonlocals | one.fn.__globals__
            for value in values.values():
                is_function = hasattr(value, "src") and inspect.isfunction(getattr(value, "fn", None))
                if is_function and id(value) not in seen and not value.__module__.startswith("triton."):
                    seen.add(id(value))
                    following.append(value)
        level = following
    return None


def _first(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
