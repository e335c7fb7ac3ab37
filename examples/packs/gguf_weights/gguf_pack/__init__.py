"""Weights from GGUF files: a conversion rule for their tensors, and a product with their blocks of 8-bit numbers.

With the rule every layer of every pack takes a tensor of `gguf.GGUFReader`; the layer here keeps it quantised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import layerport as lp
from layerport.conversion import register
from layerport.testing import CaseShape, LayerCase, Tolerance

BLOCK = 32  # numbers that share a scale in Q8_0


def dequantised(tensor: Any) -> np.ndarray:
    """The conversion rule: a tensor of any type that GGUF has, as float32."""
    import gguf  # when a tensor of that library shows up, and not before

    return np.ascontiguousarray(gguf.dequantize(tensor.data, tensor.tensor_type))


# By name, so that importing the pack does not import the library.
register("gguf.gguf_reader.ReaderTensor", dequantised, by="gguf_pack")


def blocks(tensor: Any) -> dict[str, np.ndarray]:
    """The parameters of `q8_0_linear` from a tensor in Q8_0, as its 34 bytes a block have them."""
    if tensor.tensor_type.name != "Q8_0":
        raise ValueError(f"{tensor.name} is {tensor.tensor_type.name}: quantise it, or give it to another layer")
    found = tensor.data.reshape(tensor.data.shape[0], -1, 2 + BLOCK)
    scales = np.ascontiguousarray(found[..., :2]).view(np.float16)[..., 0]
    return {"levels": found[..., 2:].view(np.int8).reshape(len(found), -1), "scales": scales}


@lp.layer("gguf_pack::q8_0_linear", version=1)
def q8_0_linear(x: Tensor, levels: lp.Param, scales: lp.Param) -> Tensor:
    """x @ weight.T with weight = levels * their scale.  x: (M, K); levels: int8 (N, K); scales: float16 (N, K / 32)."""
    if scales.shape != (levels.shape[0], levels.shape[1] // BLOCK) or levels.shape[1] % BLOCK:
        raise ValueError(f"levels are {list(levels.shape)}, scales {list(scales.shape)}; give one for each 32 levels")
    weight = levels.unflatten(-1, (-1, BLOCK)).to(x.dtype) * scales.unsqueeze(-1).to(x.dtype)
    return x @ weight.flatten(1).T


@q8_0_linear.kernel(
    lp.cuda("kernel.cu", "q8_0_linear"), dtypes=({"levels": "int8", "scales": "float16", "*": "float32"},)
)
def launch(x: lp.TensorType, levels: lp.TensorType, scales: lp.TensorType, y: lp.TensorType) -> lp.Launch:
    rows, columns = x.shape[0], levels.shape[0]
    return lp.Launch(grid=(lp.cdiv(columns, 64), rows), block=64, args=(x, levels, scales, y, columns, x.shape[1]))


@lp.hookimpl
def layerport_layers() -> tuple[lp.Layer, ...]:
    return (q8_0_linear,)


def draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Whole levels, and scales near 1 / 100."""
    if name == "levels":
        return torch.randint(-127, 128, shape, generator=generator).double()
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values if name == "x" else 0.01 + 0.001 * values


CASE = LayerCase(
    layer=q8_0_linear,
    shapes=(
        CaseShape("one of everything", {"x": (1, 32), "levels": (1, 32), "scales": (1, 1)}),
        CaseShape("prime sizes", {"x": (3, 96), "levels": (67, 96), "scales": (67, 3)}),
    ),
    dtypes=({"levels": "int8", "scales": "float16", "*": "float32"},),
    tolerances={"float64": Tolerance(1e-9, 1e-9), "float32": Tolerance(1e-4, 1e-4)},
    draw=draw,
)
