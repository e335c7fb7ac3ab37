"""The layer `layerport_builtin::silu_mul`: what it computes, and how its kernel is launched."""

from __future__ import annotations

import torch
from torch import Tensor

import layerport as lp
from layerport_builtin_layers.gated_launches import launch_gated
from layerport_builtin_layers.refused import refuse_other_than_floats


@lp.layer("layerport_builtin::silu_mul", version=1)
def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, the gated activation of Shazeer (2020), "GLU variants improve transformer".

    gate, up: floating point, of one shape and dtype.
    Computed in float32 (float64 for float64) and rounded once, at the end.  Returns a tensor like gate.
    Raises ValueError for two shapes or dtypes, and dtypes of whole numbers.
    """
    refuse_other_than_floats("silu_mul", gate=gate, up=up)
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"silu_mul: gate is {gate.dtype} {list(gate.shape)}, up is {up.dtype} {list(up.shape)}; "
            "give both the same shape and dtype"
        )
    wide = torch.float64 if gate.dtype == torch.float64 else torch.float32
    return (torch.nn.functional.silu(gate.to(wide)) * up.to(wide)).to(gate.dtype)


@silu_mul.backward
def backward(gate: Tensor, up: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if gate.dtype == torch.float64 else torch.float32
    values, gradient = gate.to(wide), grad_output.to(wide)
    if torch.is_grad_enabled():  # a second derivative is wanted, which the faster operator below does not have
        sigmoid = torch.sigmoid(values)
        by_gate = gradient * up.to(wide) * sigmoid * (1 + values * (1 - sigmoid))
    else:
        by_gate = torch.ops.aten.silu_backward(gradient * up.to(wide), values)
    return by_gate.to(gate.dtype), (gradient * torch.nn.functional.silu(values)).to(up.dtype)


@silu_mul.kernel(lp.cuda("kernel.cu", "silu_mul<{gate}>"), dtypes=("float32", "float16", "bfloat16"), name="silu_mul")
def launch(gate: lp.TensorType, up: lp.TensorType, y: lp.TensorType) -> lp.Launch:
    return launch_gated(gate, up, y)
