"""Rows scaled to length one, as sentence encoders end: a layer with a Triton kernel, and the module that is one.

Torch's own function raises the norm to `eps`; so does the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

import layerport as lp
from layerport.testing import CaseShape, LayerCase, Tolerance


@lp.layer("normalize_pack::normalize", version=1)
def normalize(x: Tensor, eps: float = 1e-12) -> Tensor:
    """x / max(|x|, eps) over the last axis, in float32.  x: (..., C)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide / wide.square().sum(-1, keepdim=True).sqrt().clamp_min(eps)).to(x.dtype)


# A text instead of the function, so that the pack can be imported where Triton is not installed.
@normalize.kernel(
    lp.triton("kernel.py:normalize", num_warps=4, constexprs={"BLOCK": 512}), dtypes=("float32", "float16", "bfloat16")
)
def launch(x: lp.TensorType, y: lp.TensorType, eps: float) -> lp.Launch:
    columns = x.shape[-1]
    return lp.Launch(grid=x.numel() // columns, args=(x, y, columns, eps))


@lp.hookimpl
def layerport_layers() -> tuple[lp.Layer, ...]:
    return (normalize,)


@lp.hookimpl
def layerport_export_parameters(module: torch.nn.Module, name: str) -> lp.BoundLayer | None:
    # By the name of the class, without importing its library: the claim is compared with the module's own outputs.
    return normalize.bind() if type(module).__name__ == "Normalize" else None


CASE = LayerCase(
    layer=normalize,
    shapes=(
        CaseShape("one row", {"x": (1, 8)}),
        CaseShape("prime sizes", {"x": (2, 3, 523)}, {"eps": 30.0}),
    ),
    dtypes=("float32", "float16", "bfloat16"),
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(1e-6, 1e-5),
        "float16": Tolerance(1e-3, 5e-3),
        "bfloat16": Tolerance(1e-2, 2e-2),
    },
)
