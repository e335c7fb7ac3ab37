"""The layer `layerport_builtin::gated_rms_norm`: what it computes, and how its kernels are launched."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import layerport as lp
from layerport_builtin_layers.refused import refuse_eps, refuse_other_than_floats
from layerport_builtin_layers.row_launches import RMS_DTYPES

_DTYPES = (
    *RMS_DTYPES,
    {"gate": "float16", "weight": "float16", "*": "float32"},
    {"gate": "bfloat16", "weight": "bfloat16", "*": "float32"},
)
_PACK_BYTES = 16
_ITEMS = 2  # that a thread keeps
_LANES_THREADS = 256
_BLOCK_THREADS = 512
_MOST_BLOCKS = 2**31 - 1


@lp.layer("layerport_builtin::gated_rms_norm", version=1, find=False)
def gated_rms_norm(
    x: Tensor,
    gate: Tensor,
    weight: lp.Param | None = None,
    eps: float = 1e-6,
    groups: int = 1,
    gate_first: bool = True,
) -> Tensor:
    """RMS normalisation (Zhang and Sennrich, 2019) of x gated by silu(gate), as in Dao and Gu (2024), "Mamba-2".

    gate_first: normal(x * silu(gate)) * weight; without it normal(x) * weight * silu(gate).  normal(v) is
    v * rsqrt(mean(v * v) + eps), over each of `groups` equal parts of the last axis.
    x: (..., C), floating point.  gate: of x's shape and dtype, or of 16 bits beside a float32 x, as in a Mamba2 of 16
    bits.  weight: (C,), of the dtype of one of them or float32; ones if absent.
    Computed in float32 (float64 for float64) and rounded once, at the end.  Returns a tensor like x.
    Raises ValueError for shapes, dtypes or groups that do not fit.
    """
    refuse_other_than_floats("gated_rms_norm", x=x, gate=gate, weight=weight)
    refuse_eps("gated_rms_norm", eps)
    if x.shape != gate.shape or gate.dtype not in _gates_beside(x.dtype):
        raise ValueError(
            f"gated_rms_norm: x is {x.dtype} {list(x.shape)}, gate is {gate.dtype} {list(gate.shape)}; "
            "give both the same shape and dtype, or a gate of 16 bits beside float32"
        )
    if x.ndim == 0 or (weight is not None and weight.shape != x.shape[-1:]):
        wrong = f"x {list(x.shape)}" + ("" if weight is None else f" and weight {list(weight.shape)}")
        raise ValueError(f"gated_rms_norm: shapes do not fit: {wrong}; give x: (..., C) and weight: (C,)")
    if groups < 1 or x.shape[-1] % groups != 0:
        raise ValueError(f"gated_rms_norm: {groups} groups of {x.shape[-1]} channels; give a divisor of the channels")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    factor = torch.nn.functional.silu(gate.to(wide))
    values: Tensor = x.to(wide)
    if gate_first:
        values = values * factor
    parts = values.unflatten(-1, (groups, -1))
    result: Tensor = (parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)).flatten(-2)
    if weight is not None:
        result = result * weight.to(wide)
    if not gate_first:
        result = result * factor
    return result.to(x.dtype)


def _gates_beside(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    return (dtype, torch.float16, torch.bfloat16) if dtype == torch.float32 else (dtype,)


def _item(x: lp.TensorType, gate: lp.TensorType, weight: lp.TensorType | None) -> int:
    """How many elements an item has: a pack of the narrowest type."""
    return _PACK_BYTES // min(one.itemsize for one in (x, gate, weight) if one is not None)


def _is_narrow(x: lp.TensorType, gate: lp.TensorType, weight: lp.TensorType | None, groups: int) -> bool | lp.Expr:
    """Whether a group fits into the registers of one warp."""
    return x.shape[-1] // groups <= 32 * _ITEMS * _item(x, gate, weight)


def _kernel(name: str, when: Callable[..., Any] | None) -> None:
    @gated_rms_norm.kernel(
        lp.cuda("kernel.cu", f"gated_rms_norm_{name}<{{x}}, {{gate}}, {{weight}}, {{gate_first}}>"),
        dtypes=_DTYPES,
        when=when,
        name=f"gated_rms_norm_{name}",
    )
    def launch(
        x: lp.TensorType,
        gate: lp.TensorType,
        weight: lp.TensorType | None,
        eps: float,
        groups: int,
        y: lp.TensorType,
    ) -> lp.Launch:
        rows, cols = math.prod(x.shape[:-1]) * groups, x.shape[-1] // groups
        items = lp.cdiv(cols, _item(x, gate, weight))
        if name == "lanes":
            threads = _lanes(items)
            of_block = _LANES_THREADS // threads
        else:
            threads = lp.minimum(lp.cdiv(items, 32 * _ITEMS) * 32, _BLOCK_THREADS)
            of_block = 1
        return lp.Launch(
            grid=lp.minimum(lp.cdiv(rows, of_block), _MOST_BLOCKS),
            block=(threads, of_block),
            args=(x, gate, weight, y, rows, groups, cols, eps),
        )


def _lanes(items: Any) -> Any:
    """As many as there are items, up to 8, which read lines of 128 bytes; more where each had more than it keeps."""
    wide = lp.where(items <= 8 * _ITEMS, 8, lp.where(items <= 16 * _ITEMS, 16, 32))
    return lp.where(items <= 1, 1, lp.where(items <= 2, 2, lp.where(items <= 4, 4, wide)))


_kernel("lanes", _is_narrow)
_kernel("block", None)
