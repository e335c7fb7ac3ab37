"""What a pack's tests need: one record of cases per layer, and a way to run a kernel where there is no GPU.

Never imported by the rest of the core, and no fallback for a missing GPU: the kernels run as plain C++, slowly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerport.testing.cases import Case, CaseShape, LayerCase, Tolerance
    from layerport.testing.gradients import check_backward
    from layerport.testing.kernel_runs import kernel_for, run_kernel
    from layerport.testing.spellings import check_spellings

_HOMES = {"Case": "cases", "CaseShape": "cases", "LayerCase": "cases", "Tolerance": "cases"}
_HOMES |= {"check_backward": "gradients", "kernel_for": "kernel_runs", "run_kernel": "kernel_runs"}
_HOMES |= {"check_spellings": "spellings"}
__all__ = [
    "Case",
    "CaseShape",
    "LayerCase",
    "Tolerance",
    "check_backward",
    "check_spellings",
    "kernel_for",
    "run_kernel",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
