"""A pack in one file that passes every check; `zoo_conformance` plants one fault at a time in its text."""

import torch
from torch import Tensor

import layerport as lp
from layerport.testing import CaseShape, LayerCase, Tolerance

SOURCE = """
template <typename T>
__global__ void scaled(const T* x, const float* scale, T* y, long long rows, int channels, float beta) {
    __shared__ float sum[64];
    long long row = blockIdx.x;
    float part = 0;
    for (int i = threadIdx.x; i < channels; i += 64) part += (float)x[row * channels + i];
    sum[threadIdx.x] = part;
    __syncthreads();
    for (int step = 32; step > 0; step /= 2) {
        if (threadIdx.x < step) sum[threadIdx.x] += sum[threadIdx.x + step];
        __syncthreads();
    }
    for (int i = threadIdx.x; i < channels; i += 64)
        y[row * channels + i] = (T)(((float)x[row * channels + i] + beta * sum[0]) * scale[i]);
}
"""


@lp.layer("NAMESPACE::scaled")
def scaled(x: Tensor, scale: lp.Param, beta: float = 0.5) -> Tensor:
    """(x + beta * sum(x)) * scale over the last axis.  x: (..., C); scale: (C,)."""
    if x.ndim == 0 or scale.shape != x.shape[-1:]:
        raise ValueError("shapes do not fit")
    return (x + beta * x.sum(-1, keepdim=True)) * scale


@scaled.backward
def backward(x: Tensor, scale: Tensor, grad_output: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    inner = grad_output * scale
    by_scale = grad_output * (x + beta * torch.sum(x, -1, keepdim=True))
    return inner + beta * inner.sum(-1, keepdim=True), by_scale.reshape(-1, x.shape[-1]).sum(0)


@scaled.kernel(lp.cuda(SOURCE, "scaled<{x}>"), dtypes=("float32",))
def launch(x, scale, y, beta):
    channels = x.shape[-1]
    return lp.Launch(grid=x.numel() // channels, block=64, args=(x, scale, y, x.numel() // channels, channels, beta))


@scaled.spelling
def spread(x: Tensor, scale: Tensor, beta: float) -> Tensor:
    return x * scale + torch.sum(x, -1, keepdim=True) * scale * beta


CASE = LayerCase(
    layer=scaled,
    shapes=(
        CaseShape("small", {"x": (3, 5), "scale": (5,)}),
        CaseShape("two blocks of channels", {"x": (2, 1, 70), "scale": (70,)}, {"beta": 2.0}),
        CaseShape("nothing", {"x": (0, 5), "scale": (5,)}),
    ),
    dtypes=("float32",),
    tolerances={"float32": Tolerance(1e-5, 1e-5)},
)


@lp.hookimpl
def layerport_layers():
    return (scaled,)


@lp.hookimpl
def layerport_convert_parameters(layer, parameters):
    return parameters.replace(scale=parameters["scale"] * 1)


@lp.hookimpl
def layerport_create_plugin(layer, bound):
    return None
