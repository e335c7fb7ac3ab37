"""Which modules scan: those whose forward calls the function of Mamba2, by the name that transformers gives it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from layerport_builtin_layers.module_looks import replace_calls
from layerport_builtin_layers.ssd_scan.reference import ssd_scan

_FUNCTION = "mamba2_chunk_scan"


def claim_ssd_scan(module: torch.nn.Module) -> Any:
    """The forward with the layer in the place of the function, None for a module that does not call it."""
    return replace_calls(module, {_FUNCTION: _scan}, ssd_scan)


def _scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int = 0,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    **_: Any,
) -> Any:
    """With the names of transformers; what else it takes says only how to compute, and its `z` is not read there."""
    d, bias, start = (None if one is None else one.float() for one in (D, dt_bias, initial_states))
    least, most = dt_limit
    result, state = ssd_scan(
        hidden_states, dt, A, B, C, d, None, bias, start, dt_softplus, least, None if most == math.inf else most
    )
    return (result, state) if return_final_states else result
