"""The layer `layerport_builtin::gated_rms_norm`: what it computes, and how its kernels are launched."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import layerport as lp
from layerport_builtin_layers.row_launches import RMS_DTYPES

_WIDE = 1024  # elements: from here on a block shares a row
_THREADS = 256
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
    x, gate: (..., C), floating point, of one shape and dtype.  weight: (C,), of their dtype or float32; ones if absent.
    Computed in float32 (float64 for float64) and rounded once, at the end.  Returns a tensor like x.
    Raises ValueError for shapes, dtypes or groups that do not fit.
    """
    if x.shape != gate.shape or x.dtype != gate.dtype:
        raise ValueError(
            f"gated_rms_norm: x is {x.dtype} {list(x.shape)}, gate is {gate.dtype} {list(gate.shape)}; "
            "give both the same shape and dtype"
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


def _kernel(name: str, most: int | None) -> None:
    @gated_rms_norm.kernel(
        lp.cuda("kernel.cu", f"gated_rms_norm_{name}<{{x}}, {{weight}}, {{gate_first}}>"),
        dtypes=RMS_DTYPES,
        when=None if most is None else (lambda x, groups: x.shape[-1] // groups < most),
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
        rows = math.prod(x.shape[:-1]) * groups
        of_block = _THREADS // 32 if name == "narrow" else 1
        return lp.Launch(
            grid=lp.minimum(lp.cdiv(rows, of_block), _MOST_BLOCKS),
            block=(_THREADS // of_block, of_block),
            args=(x, gate, weight, y, rows, groups, x.shape[-1] // groups, eps),
        )


_kernel("narrow", _WIDE)
_kernel("wide", None)
