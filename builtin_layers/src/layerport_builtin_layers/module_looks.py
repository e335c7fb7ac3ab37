"""How claims look at a module's class without importing the library that it comes from."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

import layerport as lp


def held(module: torch.nn.Module, name: str) -> Any:
    """What a module or its class holds by this name, None where nothing does.

    Properties and a `__getattr__` of its own are not run: libraries warn there of names that they give up.
    """
    if name in vars(module):
        return vars(module)[name]
    try:
        return torch.nn.Module.__getattr__(module, name)  # its parameters, buffers and modules
    except AttributeError:
        pass
    value = inspect.getattr_static(type(module), name, None)
    if isinstance(value, staticmethod):
        return value.__func__
    return None if hasattr(type(value), "__get__") else value


def takes_one_tensor(module: torch.nn.Module) -> bool:
    """Whether the module's forward has exactly one parameter, so that there is nothing else to get wrong."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return False
    return len(parameters) == 1 and parameters[0].kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )


def replace_calls(
    module: torch.nn.Module, functions: Mapping[str, Callable[..., Any]], layer: lp.Layer, *, probe: bool = True
) -> Any:
    """A forward with a function of the layer where the module's own calls one of these globals; None where it does not.

    A layer that has such a name is not replaced.  probe: as `lp.rewrite` takes it.
    """
    names = getattr(inspect.unwrap(type(module).forward), "__globals__", {})
    for name, call in functions.items():
        if callable(found := names.get(name)) and not isinstance(found, lp.Layer):
            with contextlib.suppress(lp.UsageError):  # the file has the function, and this class does not call it
                return lp.rewrite_call(module, name, call, layers=(layer,), probe=probe)
    return None
