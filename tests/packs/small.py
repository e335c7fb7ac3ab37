"""A pack in one file for the tests of a whole build: a layer for each thing that a layer can be.

It claims the modules of `small_models` by the name of their class, so that no other pack's claim meets it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import layerport as lp

HEAD = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"
ALL = ("float32", "float16", "bfloat16")


class Split(NamedTuple):
    scaled: Tensor
    positive: Tensor


@lp.layer("lp_small::scale")
def scale(x: Tensor, weight: lp.Param) -> Tensor:
    return x * weight


SCALE = """
template <class T> __global__ void scale(const T* x, const T* w, T* y, long long n, int c) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < n) y[i] = (T)((float)x[i] * (float)w[i % c]);
}
"""


@scale.kernel(lp.cuda(HEAD + SCALE, "scale<{x}>"), dtypes=ALL)
def launch_scale(x, weight, y):
    return lp.Launch(grid=lp.cdiv(x.numel(), 256), block=256, args=(x, weight, y, x.numel(), x.shape[-1]))


@lp.layer("lp_small::norm")
def norm(x: Tensor, weight: lp.Param, eps: float = 1e-6) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


NORM = """
template <class T> __global__ void norm(const T* x, const T* w, T* y, int c, float eps) {
  long long row = blockIdx.x; float sum = 0;
  for (int i = 0; i < c; ++i) sum += (float)x[row * c + i] * (float)x[row * c + i];
  float k = rsqrtf(sum / c + eps);
  for (int i = threadIdx.x; i < c; i += blockDim.x) y[row * c + i] = (T)((float)x[row * c + i] * k * (float)w[i]);
}
"""


@norm.kernel(lp.cuda(HEAD + NORM, "norm<{x}>"), dtypes=ALL)
def launch_norm(x, weight, y, eps):
    channels = x.shape[-1]
    return lp.Launch(grid=x.numel() // channels, block=128, args=(x, weight, y, channels, eps))


@lp.layer("lp_small::gate")
def gate(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.silu(a) * b


def gated(module, x):
    return module.down(gate(module.left(x), module.right(x)))


@lp.layer("lp_small::many", version=2)
def many(
    x: Tensor,
    weight: lp.Param,
    bias: lp.Param | None = None,
    shift: Tensor | None = None,
    factor: float = 2.0,
    times: int = 1,
    mode: str = "add",
    flip: bool = False,
    steps: list[int] = [1, 2],  # noqa: B006 - a default of a list attribute
    weights: list[float] = [0.5],  # noqa: B006
    flags: list[bool] = [True],  # noqa: B006
    names: list[str] | None = None,
    limit: int | None = None,
) -> Split:
    """Every kind of argument; two outputs of different type."""
    y = x * weight * factor
    for _ in range(times):
        y = y + 1.0 if mode == "add" else y * 0.5
    if flip:
        y = -y
    if bias is not None:
        y = y + bias
    if shift is not None:
        y = y + shift
    y = y * (sum(steps) + sum(weights)) + (1.0 if flags[0] else 0.0) + len(names or ())
    if limit is not None:
        y = y.clamp(max=float(limit))
    return Split(y, y > 0)


MANY = """
__global__ void many(const float* x, const float* w, const float* bias, const float* shift, float* y, bool* p,
                     int n, int c, float factor, int times, bool adds, bool flip, float total, float more,
                     bool limited, int limit) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float v = x[i] * w[i % c] * factor;
  for (int k = 0; k < times; ++k) v = adds ? v + 1.f : v * 0.5f;
  if (flip) v = -v;
  v = (v + (bias ? bias[i % c] : 0.f) + (shift ? shift[i] : 0.f)) * total + more;
  if (limited && v > limit) v = (float)limit;
  y[i] = v;
  p[i] = v > 0;
}
"""


@many.kernel(lp.cuda(MANY, "many"), dtypes=({"positive": "bool", "*": "float32"},))
def launch_many(x, weight, bias, shift, y, positive, factor, times, mode, flip, steps, weights, flags, names, limit):
    n = x.numel()
    total, more = float(sum(steps) + sum(weights)), (1.0 if flags[0] else 0.0) + len(names or ())
    settings = (factor, times, mode == "add", flip, total, more, limit is not None, limit or 0)
    args = (x, weight, bias, shift, y, positive, n, x.shape[-1], *settings)
    return lp.Launch(grid=lp.cdiv(n, 256), block=256, args=args)


@lp.layer("lp_small::keep_positive")
def keep_positive(x: Tensor) -> Tensor:
    """The places of the positive elements: as many rows as there are, known only from the data."""
    return torch.nonzero(x > 0)


KEEP = """
__global__ void keep(const float* x, long long* y, long long* count, int rows, int columns) {
  long long found = 0;
  for (int i = 0; i < rows * columns; ++i)
    if (x[i] > 0) { y[2 * found] = i / columns; y[2 * found + 1] = i % columns; ++found; }
  *count = found;
}
"""


@keep_positive.kernel(lp.cuda(KEEP, "keep"), dtypes=({"x": "float32", "output": "int64"},))
def launch_keep(x, y, count):
    return lp.Launch(grid=1, block=1, args=(x, y, count, x.shape[0], x.shape[1]))


@lp.layer("lp_small::untranslatable")
def untranslatable(x: Tensor) -> Tensor:
    """A reference without an ONNX form."""
    return torch.special.bessel_j0(x)


@lp.hookimpl
def layerport_layers():
    return (scale, norm, gate, many, keep_positive, untranslatable)


@lp.hookimpl
def layerport_export_parameters(module):
    kind = type(module).__name__
    if kind == "SmallScale":
        return scale.bind(weight=module.weight)
    if kind == "SmallNorm":
        return (
            norm.bind(weight=module.weight, eps=module.eps),
            norm.bind(weight=module.weight + 1, eps=module.eps),
        )
    if kind == "SmallGate":
        return lp.rewrite(gated, layers=(gate,))
    return None
