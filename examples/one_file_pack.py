"""A layer, its kernel, the hook and a model that uses it, in one file and without packaging.

As a script this file builds the model and asserts what became of it.  The same from the shell:
`layerport build examples/one_file_pack.py:model --pack examples/one_file_pack.py -o one_file_pack.lp`
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

import layerport as lp


# 1. The layer: what it computes, as a plain Torch function.
@lp.layer("one_file_pack::scaled_swish", version=1)
def scaled_swish(x: Tensor, scale: lp.Param, beta: float = 1.0) -> Tensor:
    """x * sigmoid(beta * x) * scale over the last axis.  x: (..., C); scale: (C,)."""
    if scale.shape != x.shape[-1:]:
        raise ValueError(f"scaled_swish: scale is {list(scale.shape)}, x {list(x.shape)}")  # Torch would broadcast
    return x * torch.sigmoid(beta * x) * scale


# 2. Its kernel, and how it is launched.  Code with a newline is the source itself; else it is a file's name.
SOURCE = r"""
#include <cuda_fp16.h>

template <typename T>
__global__ void scaled_swish(const T* x, const T* scale, T* y, long long count, int channels, float beta) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= count) return;
    const float value = static_cast<float>(x[i]);
    const float gate = 1.0f / (1.0f + expf(-beta * value));
    y[i] = static_cast<T>(value * gate * static_cast<float>(scale[i % channels]));
}
"""


@scaled_swish.kernel(lp.cuda(SOURCE, "scaled_swish<{x}>"), dtypes=("float32", "float16"))
def launch(x: Any, scale: Any, y: Any, beta: float) -> lp.Launch:
    count = x.numel()
    return lp.Launch(grid=lp.cdiv(count, 256), block=256, args=(x, scale, y, count, x.shape[-1], beta))


# 3. A model as somebody wrote it, before there was such a layer.
class ScaledSwish(torch.nn.Module):
    def __init__(self, channels: int, beta: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.rand(channels) + 0.5)
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x / (1 + torch.exp(-self.beta * x))


def model() -> tuple[torch.nn.Module, tuple[Any, ...], Any]:
    """The model, its example inputs and its dynamic shapes: what `layerport build` wants from a source."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(24, 64), ScaledSwish(64, 1.5), torch.nn.Linear(64, 64), ScaledSwish(64, 0.5)]
    shapes = ({0: Dim("rows", min=1, max=512)},)
    return torch.nn.Sequential(*layers, torch.nn.Linear(64, 8)).eval(), (torch.randn(5, 24),), shapes


# 4. The hook: which layers there are.  Where a model computes one, the graph says itself, and with which parameters.
@lp.hookimpl
def layerport_layers() -> tuple[lp.Layer, ...]:
    return (scaled_swish,)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = lp.build(model(), Path(folder) / "one_file_pack.lp", packs=[sys.modules[__name__]])
        realised = "function" if report.target.flavour == "portable" else "plugin"
        assert report.counts == {"one_file_pack::scaled_swish": {realised: 2}}, report.counts
        assert sorted(one.attributes["beta"] for one in report.found) == [0.5, 1.5]
        assert report.verification is not None and report.verification.passed

        # The user's own model is as it was; the bundle computes the same, also for other sizes.
        module, _, _ = model()
        x = torch.randn(300, 24)
        with lp.load(report.path) as session, torch.inference_mode():
            got = torch.from_numpy(session(input=x)["output"])
            torch.testing.assert_close(got, module(x), rtol=1e-4, atol=1e-5)
    print(f"target {report.target}: both scaled_swish became a {realised}, and 300 rows agree with Torch")


if __name__ == "__main__":
    main()
