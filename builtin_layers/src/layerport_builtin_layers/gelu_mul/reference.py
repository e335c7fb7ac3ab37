"""The layer `layerport_builtin::gelu_mul`: what it computes, and how its kernels are launched."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

import layerport as lp
from layerport_builtin_layers.gated_launches import launch_gated
from layerport_builtin_layers.refused import refuse_other_than_floats

_DTYPES = ("float32", "float16", "bfloat16")


@lp.layer("layerport_builtin::gelu_mul", version=1)
def gelu_mul(gate: Tensor, up: Tensor, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """gelu(gate) * up, the gated activation of Shazeer (2020), "GLU variants improve transformer".

    GELU is that of Hendrycks and Gimpel (2016): gate * 0.5 * (1 + erf(gate / sqrt(2))), or, with approximate="tanh",
    gate * 0.5 * (1 + tanh(sqrt(2 / pi) * (gate + 0.044715 * gate^3))).
    gate, up: floating point, of one shape and dtype.
    Computed in float32 (float64 for float64) and rounded once, at the end.  Returns a tensor like gate.
    Raises ValueError for two shapes or dtypes, and dtypes of whole numbers.
    """
    refuse_other_than_floats("gelu_mul", gate=gate, up=up)
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"gelu_mul: gate is {gate.dtype} {list(gate.shape)}, up is {up.dtype} {list(up.shape)}; "
            "give both the same shape and dtype"
        )
    wide = torch.float64 if gate.dtype == torch.float64 else torch.float32
    return (torch.nn.functional.gelu(gate.to(wide), approximate=approximate) * up.to(wide)).to(gate.dtype)


@gelu_mul.spelling
def divided(gate: Tensor, up: Tensor, approximate: str = "none") -> Tensor:
    """A quotient by sqrt(2), where Torch's own GELU multiplies by 1 / sqrt(2), which is another number."""
    if approximate == "tanh":
        result: Tensor = gelu_mul.reference(gate, up, approximate)
        return result
    wide = torch.float64 if gate.dtype == torch.float64 else torch.float32
    values = gate.to(wide)
    return (0.5 * values * (1 + torch.erf(values / math.sqrt(2))) * up.to(wide)).to(gate.dtype)


@gelu_mul.kernel(
    lp.cuda("kernel.cu", "gelu_mul_tanh<{gate}>"),
    dtypes=_DTYPES,
    when=lambda approximate: approximate == "tanh",
    name="gelu_mul_tanh",
)
def launch_tanh(gate: lp.TensorType, up: lp.TensorType, y: lp.TensorType) -> lp.Launch:
    return launch_gated(gate, up, y)


@gelu_mul.kernel(
    lp.cuda("kernel.cu", "gelu_mul_erf<{gate}>"),
    dtypes=_DTYPES,
    when=lambda approximate: approximate == "none",
    name="gelu_mul_erf",
)
def launch_erf(gate: lp.TensorType, up: lp.TensorType, y: lp.TensorType) -> lp.Launch:
    return launch_gated(gate, up, y)
