"""A pack of weight-only layers in four bits: weights that are packed already, and weights that its hook packs.

It claims the modules of `test_packed_weights` by the name of their class.
"""

import torch
from torch import Tensor

import layerport as lp
from layerport.transforms import pack_int4

KERNEL = """
__global__ void linear(const float* x, const unsigned char* w, const float* scales, float* y,
                       int rows, int n, int k, int groups) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= rows * n) return;
  int row = i / n, column = i % n, size = k / groups;
  float sum = 0;
  for (int j = 0; j < k; ++j) {
    int code = w[(column * k + j) / 2] >> (j % 2 ? 4 : 0) & 15;
    sum += x[row * k + j] * (code < 8 ? code : code - 16) * scales[column * groups + j / size];
  }
  y[i] = sum;
}
"""


def grouped(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """x times the dequantised weight.  codes: (N, K), -8..7.  scales: (N, groups)."""
    weight = codes.float().unflatten(-1, (scales.shape[-1], -1)) * scales.unsqueeze(-1)
    return x @ weight.flatten(1).T


def launch(x, weight, scales, y):
    n, groups = scales.shape
    args = (x, weight, scales, y, x.shape[0], n, x.shape[1], groups)
    return lp.Launch(grid=lp.cdiv(x.shape[0] * n, 128), block=128, args=args)


@lp.layer("lp_packed::linear")
def linear(x: Tensor, weight: lp.Param, scales: lp.Param) -> Tensor:
    """The standard form is packed already: uint8 (N, K / 2), the first element in the low half."""
    wide = weight.to(torch.int32)
    halves = torch.stack([wide % 16, wide // 16], dim=-1).flatten(-2)
    return grouped(x, (halves + 8) % 16 - 8, scales)


linear.kernel(lp.cuda(KERNEL, "linear"), dtypes=({"weight": "uint8", "*": "float32"},), name="packed")(launch)


@lp.layer("lp_packed::linear_of_codes")
def linear_of_codes(x: Tensor, weight: lp.Param, scales: lp.Param) -> Tensor:
    """The standard form has one code in a byte: int8 (N, K), which the hook packs."""
    return grouped(x, weight, scales)


linear_of_codes.kernel(lp.cuda(KERNEL, "linear"), dtypes=({"weight": "uint8", "*": "float32"},), name="codes")(launch)


@lp.layer("lp_packed::brighten")
def brighten(x: Tensor, shift: lp.Param) -> Tensor:
    """A picture of bytes in, floats out: a run-time input that no plugin can have."""
    return x.float() + shift


BRIGHTEN = """
__global__ void brighten(const unsigned char* x, const float* shift, float* y, int n, int c) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i] + shift[i % c];
}
"""


@brighten.kernel(lp.cuda(BRIGHTEN, "brighten"), dtypes=({"x": "uint8", "*": "float32"},))
def launch_brighten(x, shift, y):
    return lp.Launch(grid=lp.cdiv(x.numel(), 128), block=128, args=(x, shift, y, x.numel(), x.shape[-1]))


@lp.hookimpl
def layerport_layers():
    return (linear, linear_of_codes, brighten)


@lp.hookimpl
def layerport_export_parameters(module):
    found = {"PackedLinear": linear, "CodedLinear": linear_of_codes}.get(type(module).__name__)
    if found is not None:
        return found.bind(weight=module.codes, scales=module.scales)
    return brighten.bind(shift=module.shift) if type(module).__name__ == "Brighten" else None


@lp.hookimpl
def layerport_convert_parameters(layer, parameters):
    if layer is not linear_of_codes:
        return None
    return parameters.replace(weight=pack_int4(parameters["weight"]))
