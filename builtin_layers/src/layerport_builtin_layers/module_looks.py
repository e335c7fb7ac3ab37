"""How claims look at a module's class without importing the library that it comes from."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
