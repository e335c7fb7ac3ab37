"""Whether two definitions of one layer come from one place, and whether they say the same.

A file is run again, a notebook cell is edited, a script is imported a second time as a pack: `operator`
asks this file what that means for the layer that was there before.  Imports nothing foreign.
"""

from __future__ import annotations

import inspect
import os
import types
from collections.abc import Callable, Iterator
from typing import Any

_PLAIN = (int, float, str, bytes, bool, types.NoneType)


def same_place(first: Callable[..., Any], second: Callable[..., Any]) -> bool:
    """Whether two functions stand in one file, or in one session that has no file: a notebook, a prompt, `exec`."""
    one, other = (os.path.realpath(inspect.unwrap(function).__code__.co_filename) for function in (first, second))
    if one == other and os.path.isfile(one):
        return True
    module = first.__module__
    return module == second.__module__ and (module == "__main__" or not (os.path.isfile(one) or os.path.isfile(other)))


def same_definition(first: object, second: object) -> bool | None:
    """Whether two functions, with all that they refer to, were made by the same lines; None if undecided.

    Values that cannot be compared count as different.  None: one of them names what its module has not defined so far.
    """
    return _Comparison().same(first, second)


class _Comparison:
    def __init__(self) -> None:
        self.seen: set[tuple[int, int]] = set()

    def same(self, one: object, other: object) -> bool | None:
        if one is other or (id(one), id(other)) in self.seen:
            return True
        if type(one) is not type(other):
            return False
        self.seen.add((id(one), id(other)))
        if isinstance(one, _PLAIN):
            return one == other
        return _all(self.same(*pair) if isinstance(pair, tuple) else pair for pair in _parts(one, other))


def _all(verdicts: Iterator[bool | None]) -> bool | None:
    found = list(verdicts)
    return False if False in found else None if None in found else True


def _parts(one: Any, other: Any) -> Iterator[tuple[object, object] | bool | None]:
    """What has to be the same in two objects of one type: pairs to compare, and verdicts."""
    if isinstance(one, types.FunctionType):
        yield one.__code__ == other.__code__  # with its line numbers
        yield one.__defaults__, other.__defaults__
        yield one.__kwdefaults__, other.__kwdefaults__
        yield _cells(one), _cells(other)
        if one.__globals__ is not other.__globals__:
            for name in _names(one.__code__):
                bound = [name in function.__globals__ for function in (one, other)]
                if all(bound):
                    yield one.__globals__[name], other.__globals__[name]
                elif any(bound):
                    yield None
    elif isinstance(one, (tuple, list)):
        yield len(one) == len(other)
        yield from zip(one, other, strict=False)
    elif isinstance(one, dict):
        yield list(one) == list(other)
        yield from ((value, other.get(key)) for key, value in one.items())
    elif isinstance(one, type):
        yield one.__qualname__, other.__qualname__
        yield sorted(vars(one)) == sorted(vars(other))
        for name, value in vars(one).items():
            if name != "__module__" and isinstance(value, (*_PLAIN, types.FunctionType, tuple, dict)):
                yield value, vars(other).get(name)
    elif (reference := getattr(one, "reference", None)) is not None:  # a layer
        yield reference, other.reference
    else:
        yield False


def _cells(function: types.FunctionType) -> list[object]:
    cells = function.__closure__ or ()
    try:
        return [cell.cell_contents for cell in cells]
    except ValueError:  # a name of the enclosing function that is bound later
        return [object()]


def _names(code: types.CodeType) -> set[str]:
    """The names that a function and those inside it look up: globals, builtins and attributes."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
