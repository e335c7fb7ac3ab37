"""Which modules scan: those whose forward calls the function of Mamba, by the name that transformers gives it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layerport_builtin_layers.module_looks import replace_calls
from layerport_builtin_layers.selective_scan.reference import selective_scan

_FUNCTION = "mamba_selective_scan"


def claim_selective_scan(module: torch.nn.Module) -> Any:
    """The forward with the layer in the place of the function, None for a module that does not call it."""
    return replace_calls(module, {_FUNCTION: _scan}, selective_scan)


def _scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> Any:
    """With the names of transformers; what else it takes says only how to compute."""
    result, state = selective_scan(hidden_states, dt, A, B, C, D, z, delta_bias, delta_softplus)
    return (result, state) if return_last_state else result
