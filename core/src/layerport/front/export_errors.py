"""Where in a model an export stopped, and why, read off the exporter's own exceptions.  For `export` and `bodies`."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import torch


def first_line(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def innermost(error: BaseException) -> BaseException:
    """The exception that the others were raised from: torch.onnx wraps what matters in advice."""
    return list(_chain(error))[-1]


def module_on_stack(error: BaseException, model: torch.nn.Module) -> str:
    """ " in module PATH (Class)" of the innermost module on the error's stack, empty where there is none."""
    paths = {id(module): path for path, module in model.named_modules()}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, torch.nn.Module) and id(module) in paths:
            found = f" in module {paths[id(module)] or '(root)'} ({type(module).__name__})"
    return found


def module_of_node(error: BaseException) -> str:
    """The same, of the graph node that torch.onnx was at."""
    found = ""
    for one in _chain(error):
        for frame, _ in traceback.walk_tb(one.__traceback__):
            node = frame.f_locals.get("node")
            stack = node.meta.get("nn_module_stack") if isinstance(node, torch.fx.Node) else None
            if stack:
                path, kind = list(stack.values())[-1]
                name = kind if isinstance(kind, str) else kind.__name__
                found = f" in module {path or '(root)'} ({name.rpartition('.')[2]})"
    return found


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
