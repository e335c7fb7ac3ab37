"""Weights of four bits in bytes, all the way into a real plan: TensorRT for RTX has no uint8, so int8 carries them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.export import Dim

import layerport as lp
from layerport.bundle.plugin_spec import PluginSet, PluginSpec, from_bytes
from layerport.dtypes import DType
from layerport.engine.bound_model import bind_model
from layerport.sizes.expressions import Symbol
from layerport.sizes.tensors import TensorType
from layerport.system.python_files import import_file
from layerport.testing import run_kernel
from layerport.transforms import dequantize_groups, pack_int4, quantize_groups
from small_setup import ENGINE, TESTS, Built

PACK = str(TESTS / "packs" / "packed_weights.py")
ROWS = ({0: Dim("rows", min=1, max=8)},)
N, K, GROUP = 6, 16, 8


class Weighted(nn.Module):
    """A linear whose weight is 4-bit codes with scales."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        values = np.random.default_rng(seed).normal(size=(N, K)).astype(np.float32)
        self.codes: Tensor
        self.quantized, self.array = quantize_groups(values, GROUP, DType.INT4)
        self.register_buffer("scales", torch.from_numpy(self.array))
        self.register_buffer("codes", torch.from_numpy(self.stored()))

    def stored(self) -> np.ndarray[Any, Any]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.from_numpy(dequantize_groups(self.quantized, self.array)).T


class PackedLinear(Weighted):
    def stored(self) -> np.ndarray[Any, Any]:
        return pack_int4(self.quantized)


class CodedLinear(Weighted):
    def stored(self) -> np.ndarray[Any, Any]:
        return self.quantized.astype(np.int8)


class Two(nn.Module):
    """One of each, and the packed one twice over the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.packed, self.coded = PackedLinear(0), CodedLinear(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.packed(x) + self.coded(x) + self.packed(x * 2)


def example() -> Tensor:
    return torch.randn(3, K, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def packed_bundle(once: Any) -> Built:
    pytest.importorskip("tensorrt_rtx")

    def make(path: Path) -> lp.BuildReport:
        return lp.build(Two(), path, args=(example(),), dynamic_shapes=ROWS, target=ENGINE, packs=[PACK])

    return once("packed", make)


def test_packed_weights_build_as_they_come(packed_bundle: Built) -> None:
    assert packed_bundle.report["counts"] == {
        "lp_packed::linear": {"plugin": 2},
        "lp_packed::linear_of_codes": {"plugin": 1},
    }
    assert packed_bundle.report["verification"]["passed"]


def test_the_bound_model_carries_the_same_bytes_as_int8(packed_bundle: Built) -> None:
    plugins = from_bytes((packed_bundle.path / "plugins.safetensors").read_bytes())
    portable = onnx.load(packed_bundle.path / "model.onnx")
    bound = bind_model(onnx.load(packed_bundle.path / "model.onnx"), plugins)
    constants = {tensor.name: tensor for tensor in bound.graph.initializer}
    assert TensorProto.UINT8 not in {tensor.data_type for tensor in constants.values()}
    expected = {"linear": pack_int4(PackedLinear(0).quantized), "linear_of_codes": pack_int4(CodedLinear(1).quantized)}
    taken = set()
    for node in bound.graph.node:
        if node.name in plugins.nodes:
            spec = plugins.specs[plugins.nodes[node.name]]
            assert (spec.inputs[1].dtype, spec.carrier(spec.inputs[1])) == (DType.UINT8, DType.INT8)
            weight = numpy_helper.to_array(constants[node.input[1]])
            assert weight.dtype == np.int8
            np.testing.assert_array_equal(weight.view(np.uint8), expected[spec.short_name])
            taken.add(node.input[1])
    assert len(taken) == 2  # two nodes share one weight
    # The portable model keeps the type that the layer's reference is written for.
    assert TensorProto.UINT8 in {tensor.data_type for tensor in portable.graph.initializer}


def test_the_plan_holds_the_packed_bytes(packed_bundle: Built) -> None:
    """And no widened copy of them."""
    plan = (packed_bundle.path / "rtx-sm_89.plan").read_bytes()
    for codes in (PackedLinear(0).quantized, CodedLinear(1).quantized):
        packed = pack_int4(codes)
        assert packed.tobytes() in plan
        assert packed.astype(np.int32).tobytes() not in plan


def test_the_kernel_reads_packed_weights() -> None:
    layer = next(one for one in import_file(PACK).layerport_layers() if one.short_name == "linear")
    module, x = PackedLinear(0), example()
    np.testing.assert_allclose(run_kernel(layer, x, module.codes, module.scales), module(x), rtol=1e-5, atol=1e-6)


def spec(*, parameter: bool = True) -> PluginSpec:
    inputs = (TensorType.symbolic("x", DType.FLOAT32, 1), TensorType.symbolic("w", DType.UINT8, 1))
    parameters = frozenset({"w"} if parameter else ())
    return PluginSpec(
        "pack::layer", 1, inputs, (TensorType("y", DType.FLOAT32, (Symbol("x.0"),)),), parameters=parameters
    )


def model(weight: onnx.TensorProto | None, before: list[Any] | None = None, *, also: bool = False) -> onnx.ModelProto:
    nodes = [*(before or []), helper.make_node("layer", ["x", "w"], ["y"], name="a", domain="pack")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])]
    if also:
        nodes.append(helper.make_node("Cast", ["w"], ["z"], to=TensorProto.FLOAT))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [3]))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        outputs,
        [weight] if weight else [],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("pack", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def bound(source: onnx.ModelProto) -> onnx.GraphProto:
    one = spec()
    return bind_model(source, PluginSet({one.key: one}, {"a": one.key})).graph


VALUES = np.array([0, 127, 255], np.uint8)


def test_however_the_constant_is_stored() -> None:
    raw = numpy_helper.from_array(VALUES, "w")
    listed = onnx.TensorProto(name="w", data_type=TensorProto.UINT8, dims=[3], int32_data=[0, 127, 255])
    constant = helper.make_node("Constant", [], ["w"], value=listed)
    for graph in (bound(model(raw)), bound(model(listed)), bound(model(None, [constant]))):
        (tensor,) = graph.initializer
        assert (tensor.name, tensor.data_type) == ("w.int8", TensorProto.INT8)
        np.testing.assert_array_equal(numpy_helper.to_array(tensor).view(np.uint8), VALUES)
        assert list(graph.node[-1].input) == ["x", "w.int8"]


def test_weights_in_another_file_stay_there() -> None:
    far = onnx.TensorProto(name="w", data_type=TensorProto.UINT8, dims=[3], data_location=TensorProto.EXTERNAL)
    far.external_data.add(key="location", value="model.onnx.data")
    far.external_data.add(key="offset", value="4096")
    (tensor,) = bound(model(far)).initializer
    assert tensor.data_type == TensorProto.INT8
    assert {one.key: one.value for one in tensor.external_data} == {"location": "model.onnx.data", "offset": "4096"}


def test_a_constant_that_others_read_stays_too() -> None:
    graph = bound(model(numpy_helper.from_array(VALUES, "w"), also=True))
    assert [tensor.name for tensor in graph.initializer] == ["w", "w.int8"]
    assert list(graph.node[1].input) == ["w"]


def test_a_computed_parameter_is_an_error() -> None:
    computed = helper.make_node("Cast", ["x"], ["w"], to=TensorProto.UINT8)
    with pytest.raises(lp.BuildError) as caught:
        bound(model(None, [computed]))
    assert caught.value.fault == (
        "layer pack::layer: parameter w is uint8, which TensorRT takes as a constant only, and w is computed"
    )
    assert caught.value.repair == "give the layer its weight as it is, or build with --decompose pack::layer"


class Brighten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return x.float() + self.shift


def test_bytes_at_run_time_are_no_plugin_and_the_report_says_why(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    picture = torch.randint(0, 256, (2, 4), dtype=torch.uint8)
    report = lp.build(Brighten(), tmp_path / "bytes.lp", args=(picture,), target=ENGINE, packs=[PACK])
    (layer,) = report.layers
    assert (layer.realised, layer.reason) == (
        "decomposed",
        "TensorRT has no such tensors for a plugin: input x is uint8",
    )
