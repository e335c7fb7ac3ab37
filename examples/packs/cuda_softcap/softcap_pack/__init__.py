"""Soft-capped values, as Gemma 2 has them in its attention and before its output: a layer with a CUDA kernel.

Nothing says where a model has it: the reference is found in the model's graph, and the cap with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

import layerport as lp
from layerport.testing import CaseShape, LayerCase, Tolerance


@lp.layer("softcap_pack::softcap", version=1)
def softcap(x: Tensor, cap: float = 30.0) -> Tensor:
    """cap * tanh(x / cap): nearly x where that is small, never beyond cap.  x: any shape."""
    return cap * torch.tanh(x / cap)


@softcap.kernel(lp.cuda("kernel.cu", "softcap<{x}>"), dtypes=("float32", "float16", "bfloat16"))
def launch(x: lp.TensorType, y: lp.TensorType, cap: float) -> lp.Launch:
    count = x.numel()
    return lp.Launch(grid=lp.cdiv(count, 256), block=256, args=(x, y, count, cap))


@lp.hookimpl
def layerport_layers() -> tuple[lp.Layer, ...]:
    return (softcap,)


CASE = LayerCase(
    layer=softcap,
    shapes=(
        CaseShape("one element", {"x": (1,)}),
        CaseShape("prime sizes", {"x": (3, 101)}, {"cap": 0.5}),
    ),
    dtypes=("float32", "float16", "bfloat16"),
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(1e-6, 1e-5),
        "float16": Tolerance(1e-3, 5e-3),
        "bfloat16": Tolerance(1e-2, 2e-2),
    },
)
