"""Causal convolutions with filters as long as the sequence: a layer whose plugin calls a library, cuFFT through Torch.

A launch of a kernel cannot say that, so the pack brings its own plugin class.  The reference is the plain sum; the
class multiplies spectra, and the hook converts each filter to its spectrum when the engine is built.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

import layerport as lp
from layerport.testing import CaseShape, LayerCase, Tolerance


@lp.layer("convolution_pack::long_convolution", version=1)
def long_convolution(x: Tensor, filters: lp.Param) -> Tensor:
    """y[b, c, t] = sum over s <= t of filters[c, s] * x[b, c, t - s].  x: (B, C, T), T <= K; filters: (C, K)."""
    channels, taps = filters.shape
    torch._check(x.shape[2] <= taps)
    return conv1d(pad(x, (taps - 1, 0)), filters.flip(1).unsqueeze(1), groups=channels)


def spectrum(filters: np.ndarray) -> np.ndarray:
    """What the plugin multiplies with: (C, K) to (C, K + 1, 2), real and imaginary parts of 2 K points."""
    found = np.fft.rfft(filters.astype(np.float64), n=2 * filters.shape[1])
    return np.stack([found.real, found.imag], axis=-1).astype(filters.dtype)


@lp.hookimpl
def layerport_layers() -> tuple[lp.Layer, ...]:
    return (long_convolution,)


@lp.hookimpl
def layerport_export_parameters(module: torch.nn.Module, name: str) -> lp.BoundLayer | None:
    return long_convolution.bind(filters=module.filters) if type(module).__name__ == "LongConvolution" else None


@lp.hookimpl
def layerport_convert_parameters(
    layer: lp.Layer, parameters: lp.Parameters, target: lp.Target | lp.TorchTarget
) -> lp.Parameters:
    return parameters.replace(filters=spectrum(parameters["filters"]))


@lp.hookimpl
def layerport_create_plugin(layer: lp.Layer, bound: lp.BoundLayer, target: lp.Target) -> lp.PluginSpec | None:
    if bound.parameters["filters"].dtype != np.float32:
        return None  # the reference's operators take its place
    return lp.PluginSpec.of(bound, plugin_class="convolution_pack.engine_plugin:make_plugin")


CASE = LayerCase(
    layer=long_convolution,
    shapes=(
        CaseShape("one element", {"x": (1, 1, 1), "filters": (1, 1)}),
        CaseShape("shorter than the filters", {"x": (2, 3, 5), "filters": (3, 8)}),
    ),
    dtypes=("float32",),
    tolerances={"float64": Tolerance(1e-12, 1e-12), "float32": Tolerance(1e-5, 1e-5)},
)
