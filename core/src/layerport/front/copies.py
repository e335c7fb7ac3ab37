"""A structural copy of a model: new modules, shared weights.  The user's model is never changed."""

from __future__ import annotations

import copy
from typing import Any

import torch

from layerport.errors import UsageError


def structural_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of the module tree that holds the very same parameters and buffers, in eval mode."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        memo[id(tensor)] = tensor
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise UsageError(
            f"model {type(model).__name__} cannot be copied: {type(error).__name__}: {error}",
            "make the attribute that cannot be copied lazily, or define __deepcopy__ for it",
        ) from error
    return copied.eval()


def replace_everywhere(model: torch.nn.Module, old: torch.nn.Module, new: torch.nn.Module) -> None:
    """Put `new` at every path of the model where `old` stands, so that a module used twice stays one module."""
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
