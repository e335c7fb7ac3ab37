"""The layer `layerport_builtin::packed_gate_mul`: what it computes, and how its kernels are launched."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

import layerport as lp
from layerport_builtin_layers.refused import refuse_other_than_floats

_THREADS = 256
_PACK_BYTES = 16
_MOST_BLOCKS = 2**31 - 1


@lp.layer("layerport_builtin::packed_gate_mul", version=1)
def packed_gate_mul(
    x: Tensor, activation: Literal["silu", "gelu", "gelu_tanh"] = "silu", gate_last: bool = False
) -> Tensor:
    """activation(gate) * up where gate and up are the halves of x's last axis, without a copy of either.

    The gated activations of Shazeer (2020), "GLU variants improve transformer".  gate_last: the second one is the gate.
    x: (..., 2 C), floating point.  Computed in float32 (float64 for float64) and rounded once, at the end.
    Returns (..., C) of x's dtype.  Raises ValueError for an odd last axis or another dtype.
    """
    refuse_other_than_floats("packed_gate_mul", x=x)
    if x.ndim == 0 or x.shape[-1] % 2 != 0:
        raise ValueError(f"packed_gate_mul: x is {list(x.shape)}; give x: (..., 2 C), a gate and what it multiplies")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    first, second = (one.to(wide) for one in x.chunk(2, -1))
    gate, up = (second, first) if gate_last else (first, second)
    if activation == "silu":
        gate = torch.nn.functional.silu(gate)
    else:
        gate = torch.nn.functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")
    return (gate * up).to(x.dtype)


@packed_gate_mul.spelling
def divided(x: Tensor, activation: str = "silu", gate_last: bool = False) -> Tensor:
    """A quotient by sqrt(2), where Torch's own GELU multiplies by 1 / sqrt(2), which is another number."""
    if activation != "gelu":
        result: Tensor = packed_gate_mul.reference(x, activation, gate_last)
        return result
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    first, second = (one.to(wide) for one in x.chunk(2, -1))
    gate, up = (second, first) if gate_last else (first, second)
    return (0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * up).to(x.dtype)


def _kernel(name: str, entry: str) -> None:
    def is_wanted(activation: str) -> bool:
        return activation == name

    @packed_gate_mul.kernel(
        lp.cuda("kernel.cu", f"packed_gate_mul<{entry}, {{x}}>"),
        dtypes=("float32", "float16", "bfloat16"),
        when=is_wanted,
        name=f"packed_{name}_mul",
    )
    def launch(x: lp.TensorType, gate_last: bool, y: lp.TensorType) -> lp.Launch:
        width = x.shape[-1] // 2
        count = math.prod(x.shape[:-1]) * width
        blocks = lp.cdiv(count, _THREADS * (_PACK_BYTES // x.itemsize))
        return lp.Launch(grid=blocks, block=_THREADS, args=(x, y, count, width, gate_last))


for _name, _entry in (("silu", "Silu"), ("gelu", "ErfGelu"), ("gelu_tanh", "TanhGelu")):
    _kernel(_name, _entry)
