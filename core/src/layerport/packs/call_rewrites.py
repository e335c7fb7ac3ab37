"""Forwards with one function that they call put in another's place; no forward is copied.  Imports no framework."""

from __future__ import annotations

import contextlib
import dis
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from layerport.errors import UsageError
from layerport.layers.layer import Layer
from layerport.packs.records import Rewrite, is_layer
from layerport.system.foreign_text import describe

_LOADS = ("LOAD_GLOBAL", "LOAD_NAME")


def rewrite_call(
    module: Any, function: str, call: Layer | Callable[..., Any], *, layers: Sequence[Layer] = (), probe: bool = True
) -> Rewrite:
    """Answer `layerport_export_parameters` where a module's forward calls a function that is a layer.

    The module's own forward runs, and so do its other methods, with `call` where they call `function`: a global name
    of the file that they are written in.  A model that the function keeps from being exported can be, with a layer.

    call: a layer whose arguments are the function's, or a function with the same arguments that calls `layers`.
    probe: as `rewrite` takes it.
    A decorator around a method that calls the function is left away; the claim is proven as any other.
    Raises UsageError with all faults at once: no method of the module's class calls a global of this name, or
    nothing says which layers `call` calls.
    """
    methods = {name: method for name, method in _methods(type(module)) if _calls(method, function)}
    chosen = (call,) if is_layer(call) and not layers else tuple(layers)
    faults = []
    if not methods:
        globals_called = sorted({name for _, method in _methods(type(module)) for name in _functions_of(method)})
        faults.append(
            f"function: no method of {type(module).__name__} calls a global {function!r}; "
            f"they call {', '.join(globals_called) or 'none'}"
        )
    if not callable(call):
        faults.append(f"call: expected a layer or a function, got {describe(call)}")
    elif not chosen:
        faults.append("layers: a function does not tell which layers it calls; write layers=(my_layer,)")
    if faults:
        raise UsageError(
            f"rewrite of {function!r} has {len(faults)} fault{'s' if len(faults) > 1 else ''}",
            "write lp.rewrite_call(module, 'name', my_layer) with the name of a function of the module's own file",
            faults=faults,
        )
    replaced = {name: _with(method, function, call) for name, method in methods.items()}
    # The copy's own attribute of this name is what is being made here.
    own_forward: Callable[..., Any] = replaced.pop("forward", type(module).forward)

    def forward(copy: Any, *args: Any, **kwargs: Any) -> Any:
        with _bound(copy, replaced):
            return own_forward(copy, *args, **kwargs)

    return Rewrite(forward, chosen, probe)


def _methods(kind: type) -> Iterator[tuple[str, types.FunctionType]]:
    """The methods that a module's own classes define, without what decorates them."""
    seen: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in ("torch", "builtins"):
            continue
        for name, value in vars(base).items():
            method = inspect.unwrap(value) if isinstance(value, types.FunctionType) else value
            if isinstance(method, types.FunctionType) and name not in seen:
                yield name, method
            seen.add(name)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield from _codes(one)


def _loaded(method: types.FunctionType) -> set[str]:
    codes = _codes(method.__code__)
    return {str(one.argval) for code in codes for one in dis.get_instructions(code) if one.opname in _LOADS}


def _functions_of(method: types.FunctionType) -> set[str]:
    """The names of Python functions that a method reads as globals."""
    return {name for name in _loaded(method) if isinstance(method.__globals__.get(name), types.FunctionType)}


def _calls(method: types.FunctionType, function: str) -> bool:
    return function in _loaded(method) and callable(method.__globals__.get(function))


def _with(method: types.FunctionType, function: str, call: Any) -> types.FunctionType:
    """The same code, with another value of one global."""
    made = types.FunctionType(
        method.__code__,
        {**method.__globals__, function: call},
        method.__name__,
        method.__defaults__,
        method.__closure__,
    )
    made.__kwdefaults__ = method.__kwdefaults__
    return made


@contextlib.contextmanager
def _bound(copy: Any, methods: dict[str, types.FunctionType]) -> Iterator[None]:
    """The copy with these methods, which its own attributes of the same names hide meanwhile."""
    own = vars(copy)
    before = {name: own[name] for name in methods if name in own}
    own |= {name: types.MethodType(method, copy) for name, method in methods.items()}
    try:
        yield
    finally:
        for name in methods:
            del own[name]
        own |= before
