"""The plugin class, made where the engine is built and where it runs; the pack is installed there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import layerport as lp


def convolve(x: Tensor, spectrum: Tensor) -> Tensor:
    """x (B, C, T) convolved with the filters of these spectra (C, K + 1, 2)."""
    points = 2 * (spectrum.shape[1] - 1)
    product = torch.fft.rfft(x, n=points) * torch.view_as_complex(spectrum)
    return torch.fft.irfft(product, n=points)[..., : x.shape[2]]


def on_gpu(address: int, shape: tuple[int, ...]) -> Tensor:
    """TensorRT's memory as a Torch tensor, nothing copied."""
    memory = {"data": (address, False), "shape": shape, "typestr": "<f4", "version": 3}
    return torch.as_tensor(SimpleNamespace(__cuda_array_interface__=memory), device="cuda")


def make_plugin(trt: Any, spec: lp.PluginSpec) -> Any:
    """Called with TensorRT's module.  What the base class answers from the spec: types, shapes, what a plan keeps."""

    class LongConvolution(lp.plugin_base(trt)):
        def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
            with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
                x, filters = (on_gpu(at, tuple(one.dims)) for at, one in zip(inputs, input_desc, strict=True))
                on_gpu(outputs[0], tuple(output_desc[0].dims)).copy_(convolve(x, filters))

    return LongConvolution(spec)
