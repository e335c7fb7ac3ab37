"""The TensorRT-bound copy of a model: plugin nodes carry a key, every other layer is its body."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from layerport.bundle.kernel_code import KernelCode, KernelStep
from layerport.bundle.plugin_spec import PluginSet, PluginSpec
from layerport.dtypes import DType
from layerport.engine.bound_model import bind_model
from layerport.engine.plan_fields import read_field, write_field
from layerport.kernels.launch_rules import LaunchRule
from layerport.sizes.expressions import Const, Symbol
from layerport.sizes.output_rules import SizeSymbol
from layerport.sizes.tensors import TensorType


def spec(*, inputs: int = 2, sizes: int = 0) -> PluginSpec:
    slots = tuple(TensorType.symbolic(name, DType.FLOAT32, 1) for name in "xw")[:inputs]
    return PluginSpec(
        "pack::layer",
        1,
        slots,
        (TensorType("y", DType.FLOAT32, (Symbol("x.0"),)),),
        tuple(SizeSymbol(f"u{place}", Symbol("x.0")) for place in range(sizes)),
    )


def model(nodes: list[Any], *, overloads: tuple[str, ...] = ("",)) -> onnx.ModelProto:
    functions = [
        helper.make_function(
            "pack",
            "layer",
            ["x", "w"],
            ["y"],
            [helper.make_node("Mul" if number == 0 else "Add", ["x", "w"], ["y"])],
            [helper.make_opsetid("", 20)],
            overload=overload,
        )
        for number, overload in enumerate(overloads)
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n"])],
        [onnx.numpy_helper.from_array(np.ones(1, np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("pack", 1)]
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)


def node(name: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return helper.make_node("layer", inputs, [output], name=name, domain="pack", **attributes)


def texts(one: Any) -> dict[str, bytes]:
    return {attribute.name: attribute.s for attribute in one.attribute}


def told(one: Any) -> str:
    """The key of a node's spec, and the images that the node keeps."""
    read = read_field(texts(one)["layerport_spec"])
    return " ".join([read.key, *sorted(read.images)])


def test_plugin_nodes_carry_their_spec_and_lose_their_function() -> None:
    one = spec()
    bound = bind_model(model([node("a", ["x", "w"], "out", eps=0.5)]), PluginSet({one.key: one}, {"a": one.key}))
    (only,) = bound.graph.node
    assert (only.domain, only.op_type) == ("layerport", "Kernel")
    field = write_field(one, one.digests)
    assert texts(only) == {"plugin_namespace": b"layerport", "plugin_version": b"1", "layerport_spec": field}
    assert list(only.input) == ["x", "w"]
    assert not bound.functions
    assert {one.domain: one.version for one in bound.opset_import}["layerport"] == 1


def test_a_layer_with_its_own_class_keeps_its_name() -> None:
    one = dataclasses.replace(spec(), kernels=(), images={}, plugin_class="pack.plugins:Own")
    bound = bind_model(model([node("a", ["x", "w"], "out", eps=0.5)]), PluginSet({one.key: one}, {"a": one.key}))
    (only,) = bound.graph.node
    assert (only.domain, only.op_type) == ("pack", "layer")
    assert texts(only) == {"plugin_namespace": b"pack", "plugin_version": b"1", "layerport_spec": one.key.encode()}
    assert list(only.input) == ["x", "w"]
    assert not bound.functions


def test_without_a_spec_the_body_takes_the_nodes_place() -> None:
    bound = bind_model(model([node("a", ["x", "w"], "out")]), PluginSet({}, {}))
    assert [one.op_type for one in bound.graph.node] == ["Mul"]
    assert not bound.functions
    onnx.checker.check_model(bound, full_check=True)


def test_a_plugin_and_a_body_of_one_layer_side_by_side() -> None:
    one = spec()
    nodes = [
        node("a", ["x", "w"], "m", overload="first"),
        node("b", ["m", "w"], "n", overload="second"),
        node("c", ["n", "w"], "out", overload="second"),
    ]
    source = model(nodes, overloads=("first", "second"))
    bound = bind_model(source, PluginSet({one.key: one}, {"b": one.key}))
    assert [found.op_type for found in bound.graph.node] == ["Mul", "Kernel", "Add"]
    assert [found.name for found in bound.graph.node][1] == "b"
    assert bound.graph.node[1].overload == ""
    assert not bound.functions


def test_converted_parameters_come_in_as_constants() -> None:
    one = spec()
    array = np.arange(3, dtype=np.float16)
    bound = bind_model(
        model([node("a", ["x", "w"], "m"), node("b", ["m", "w"], "out")]),
        PluginSet({one.key: one}, {"a": one.key, "b": one.key}, {"b": {"w": array}}),
    )
    first, second = bound.graph.node
    assert list(first.input) == ["x", "w"] and list(second.input) == ["m", "b.w"]
    added = next(tensor for tensor in bound.graph.initializer if tensor.name == "b.w")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(added), array)


def test_absent_inputs_are_closed_up_and_sizes_added() -> None:
    one = spec(inputs=1, sizes=2)
    bound = bind_model(model([node("a", ["x", ""], "out")]), PluginSet({one.key: one}, {"a": one.key}))
    (only,) = bound.graph.node
    assert list(only.input) == ["x"]
    assert list(only.output) == ["out", "a.u0", "a.u1"]


def test_nodes_inside_a_branch() -> None:
    one = spec()
    branches = {
        name: helper.make_graph(
            [node(f"in_{name}", ["x", "w"], f"{name}_y")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["n"])],
        )
        for name in ("then_branch", "else_branch")
    }
    condition = onnx.numpy_helper.from_array(np.array(True), "condition")
    source = model([helper.make_node("If", ["condition"], ["out"], name="if", **branches)])
    source.graph.initializer.append(condition)
    bound = bind_model(source, PluginSet({one.key: one}, {"in_then_branch": one.key}))
    (choice,) = bound.graph.node
    inside = {attribute.name: attribute.g.node for attribute in choice.attribute}
    assert told(inside["then_branch"][0]) == " ".join([one.key, *sorted(one.images)])
    assert [found.op_type for found in inside["else_branch"]] == ["Mul"]


def test_nodes_that_nobody_needs_are_left_out() -> None:
    """Also what only they needed, but not what a branch reads."""
    one = spec()
    branch = helper.make_graph(
        [helper.make_node("Identity", ["kept"], ["chosen"])],
        "branch",
        [],
        [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, ["n"])],
    )
    nodes = [
        node("kept", ["x", "w"], "kept"),
        node("needed_by_dead", ["x", "w"], "m"),
        helper.make_node("Dropout", ["m", "", ""], ["dead", ""], name="dead"),
        helper.make_node("If", ["condition"], ["out"], name="if", then_branch=branch, else_branch=branch),
    ]
    source = model(nodes)
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "condition"))
    bound = bind_model(source, PluginSet({one.key: one}, {"kept": one.key, "needed_by_dead": one.key}))
    assert [found.name for found in bound.graph.node] == ["kept", "if"]


def test_the_first_node_that_needs_an_image_keeps_it_for_all() -> None:
    rule = LaunchRule((Const(1),) * 3, (Const(1),) * 3, Const(0), ())
    images = {hashlib.sha256(text).hexdigest(): text for text in (b"one", b"two", b"three")}
    a, b, c = sorted(images)
    one = KernelCode("k", (KernelStep("k", rule, {"sm_80": b, "sm_89": a}),))
    first = dataclasses.replace(spec(), kernels=(one,), images=images)
    second = dataclasses.replace(
        spec(), kernels=(KernelCode("k", (KernelStep("k", rule, {"sm_89": b, "sm_120": c}),)),), images=images
    )
    plugins = PluginSet(
        {one.key: one for one in (first, second)},
        {"1": first.key, "2": first.key, "3": second.key, "4": second.key},
    )
    names = ("x", "m1", "m2", "m3", "out")
    nodes = [node(str(place), [names[place - 1], "w"], names[place]) for place in range(1, 5)]

    def named(**options: bool) -> list[str]:
        return [told(one) for one in bind_model(model(nodes), plugins, **options).graph.node]

    one, other = first.key, second.key
    assert named() == [f"{one} {a} {b}", one, f"{other} {c}", other]
    assert named(all_keep=True) == [f"{one} {a} {b}"] * 2 + [f"{other} {b} {c}"] * 2


PACKED = np.arange(6, dtype=np.uint8)


def packed_constants() -> dict[str, onnx.TensorProto]:
    """The same constant in each way that a file may hold it."""
    raw = onnx.numpy_helper.from_array(PACKED, "w")
    typed = onnx.TensorProto(name="w", data_type=TensorProto.UINT8, dims=[6], int32_data=PACKED.tolist())
    outside = onnx.TensorProto(name="w", data_type=TensorProto.UINT8, dims=[6])
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="model.onnx.data")
    return {"raw": raw, "typed": typed, "outside": outside}


@pytest.mark.parametrize("kind", ["raw", "typed", "outside"])
def test_a_type_that_tensorrt_lacks_comes_in_as_the_same_bytes(kind: str) -> None:
    inputs = (TensorType("x", DType.FLOAT32, (Symbol("x.0"),)), TensorType("w", DType.UINT8, (6,)))
    one = dataclasses.replace(spec(), inputs=inputs, parameters=frozenset({"w"}))
    made = model([node("a", ["x", "w"], "m"), node("b", ["m", "w"], "out")])
    constant = packed_constants()[kind]
    del made.graph.initializer[:]
    made.graph.initializer.append(constant)
    bound = bind_model(made, PluginSet({one.key: one}, {"a": one.key, "b": one.key}))
    assert [list(found.input) for found in bound.graph.node] == [["x", "w.int8"], ["m", "w.int8"]]
    (carried,) = bound.graph.initializer
    assert carried.data_type == TensorProto.INT8 and list(carried.dims) == [6]
    if kind == "outside":
        assert carried.external_data == constant.external_data and not carried.HasField("raw_data")
    else:
        assert onnx.numpy_helper.to_array(carried).tobytes() == PACKED.tobytes()
