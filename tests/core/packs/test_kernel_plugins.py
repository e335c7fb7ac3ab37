"""The core's plugin of a layer: which kernels it holds for a target and place, and why it leaves each other one out."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

import layerport as lp
from layerport.dtypes import DType
from layerport.layers.derivation import derive
from layerport.layers.layer import BoundLayer, Place
from layerport.packs.kernel_plugins import (
    choose_kernels,
    plugin_from_kernels,
    tensor_arguments,
    why_no_kernel,
    why_not_chosen,
)
from layerport.sizes.expressions import Symbol
from layerport.sizes.tensors import TensorType
from layerport.targets import Target

SOURCE = """
template <int N> __global__ void scaled(const float* x, const float* w, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i] * w[0];
}
"""
ROWS = Symbol("rows")
RTX, MEASURED = Target.parse("rtx:sm_89,sm_120"), Target.parse("tensorrt:sm_89")


def made(*kinds: str) -> lp.Layer:
    """A layer with kernels `scaled_0`, `scaled_1`...: "half" takes float16 only, "even" even rows, "any" all."""

    @lp.layer("kernel_plugins::scaled")
    def scaled(x: Tensor, w: lp.Param, bias: Tensor | None = None) -> Tensor:
        return x * w

    for number, each in enumerate(kinds):

        def launch(x: Any, w: Any, y: Any) -> lp.Launch:
            return lp.Launch(grid=lp.cdiv(x.numel(), 128), block=128, args=(x, w, y, x.numel()))

        dtypes = ("float16",) if each == "half" else ("float32",)
        when = (lambda x: x.shape[0] % 2 == 0) if each == "even" else None
        scaled.kernel(lp.cuda(SOURCE, f"scaled<{number}>"), dtypes=dtypes, when=when)(launch)
    return scaled


def bound(layer: lp.Layer, rows: Any = ROWS) -> BoundLayer:
    one = layer.bind(w=torch.ones(1))
    tensors = {
        "x": TensorType("x", DType.FLOAT32, (rows, 4)),
        "w": TensorType("w", DType.FLOAT32, (1,)),
        "bias": None,
    }
    derivation = derive(layer.reference, tensors, one.parameters.attributes, layer=layer.name)
    return dataclasses.replace(one, place=Place(tensors, derivation, "model.scaled"))


def held(layer: lp.Layer, target: Target, rows: Any = ROWS) -> list[str]:
    return [one.kernel.name for one in choose_kernels(bound(layer, rows), target).kernels]


def test_what_a_launch_rule_sees() -> None:
    seen = tensor_arguments(bound(made("any")))
    assert [str(one) for one in seen.values()] == [
        "x: float32[x.0, 4]",
        "w: float32[1]",
        "None",
        "output: float32[x.0, 4]",
    ]


def test_kernels_with_guards_stand_before_the_one_for_every_shape() -> None:
    layer = made("half", "even", "any", "any")
    assert held(layer, RTX) == ["scaled_1", "scaled_2"]
    # a build that measures takes the later ones too
    assert held(layer, MEASURED) == ["scaled_1", "scaled_2", "scaled_3"]
    # rows are known: scaled_1 takes every shape that there is, or none
    assert held(layer, RTX, 4) == ["scaled_1"] and held(layer, RTX, 3) == ["scaled_2"]
    reasons = choose_kernels(bound(layer), RTX).reasons
    assert reasons == (
        "scaled_0 takes float16, here are float32",
        "scaled_3: scaled_2 takes every shape before it, and no GPU compares them",
    )


def test_no_kernel_for_some_shapes_is_no_plugin() -> None:
    layer = made("half", "even")
    assert held(layer, RTX) == [] and plugin_from_kernels(layer, bound(layer), RTX) is None
    assert why_no_kernel(bound(layer), RTX) == (
        "scaled_0 takes float16, here are float32; "
        "no kernel takes every shape: scaled_1 only where x.0 - 2*(x.0//2) == 0"
    )
    assert why_no_kernel(bound(made()), RTX) == "the layer has no kernel"
    assert why_no_kernel(bound(made("any")), RTX) == f"its pack gives no plugin for {RTX}"


def test_the_spec_holds_each_kernel_for_each_architecture() -> None:
    layer = made("half", "even", "any", "any")
    one = bound(layer)
    spec = plugin_from_kernels(layer, one, RTX)
    assert spec is not None
    assert [(kernel.name, sorted(kernel.architectures), str(kernel.guard)) for kernel in spec.kernels] == [
        ("scaled_1", ["sm_120", "sm_89"], "x.0 - 2*(x.0//2) == 0"),
        ("scaled_2", ["sm_120", "sm_89"], "None"),
    ]
    assert set(spec.images) == spec.digests
    assert why_not_chosen(one, spec, RTX) == choose_kernels(one, RTX).reasons
    alone = made("any")
    spec = plugin_from_kernels(alone, bound(alone), RTX)
    assert spec is not None and why_not_chosen(bound(alone), spec, RTX) == ()
    own = dataclasses.replace(spec, plugin_class="pack.plugin:Own", kernels=())
    assert why_not_chosen(bound(layer), own, RTX) == ()
