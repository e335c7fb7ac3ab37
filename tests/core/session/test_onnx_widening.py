"""The float32 twin of a bfloat16 model: every bfloat16 becomes float32, wherever it stands, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from layerport.session.onnx_widening import write_widened

BF16, F32, F16 = TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.FLOAT16
VALUES = np.array([1.5, -2.25, 3e38], ml_dtypes.bfloat16)


def saved(graph: onnx.GraphProto, folder: Path, functions: tuple[onnx.FunctionProto, ...] = ()) -> Path:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10), folder / "model.onnx")
    return folder / "model.onnx"


def value(name: str, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [3])


def raw(name: str) -> TensorProto:
    return numpy_helper.from_array(VALUES, name)


def listed(name: str) -> TensorProto:
    """The same in the field of numbers that some writers use."""
    return TensorProto(name=name, dims=[3], data_type=BF16, int32_data=VALUES.view(np.uint16).tolist())


def test_every_place_is_widened(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=listed("c"))], "branch", [], [value("c", BF16)]
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=F16),
        helper.make_node("Cast", ["half"], ["back"], to=BF16),
        helper.make_node("If", ["on"], ["chosen"], then_branch=branch, else_branch=branch),
        helper.make_node("Twice", ["back"], ["y"], domain="own"),
    ]
    body = [helper.make_node("Cast", ["a"], ["b"], to=BF16), helper.make_node("Identity", ["b"], ["c"])]
    function = helper.make_function("own", "Twice", ["a"], ["c"], body, [helper.make_opsetid("", 20)])
    function.value_info.extend([value("b", BF16), value("a", F16)])
    on = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", BF16), on],
        [value("y", BF16), value("chosen", BF16)],
        [raw("w"), listed("v"), numpy_helper.from_array(np.ones(2, np.float16), "kept")],
        value_info=[value("back", BF16), value("half", F16)],
    )
    path = write_widened(saved(graph, tmp_path, (function,)), tmp_path)
    assert path is not None
    twin = onnx.load(path)
    kinds = {
        one.name: one.type.tensor_type.elem_type
        for one in (*twin.graph.input, *twin.graph.output, *twin.graph.value_info)
    }
    assert kinds == {"x": F32, "on": TensorProto.BOOL, "y": F32, "chosen": F32, "back": F32, "half": F16}
    held = {one.name: numpy_helper.to_array(one) for one in twin.graph.initializer}
    for name in ("w", "v"):
        assert held[name].dtype == np.float32 and held[name].tolist() == VALUES.astype(np.float32).tolist()
    assert held["kept"].dtype == np.float16
    casts = [node.attribute[0].i for node in (*twin.graph.node, *twin.functions[0].node) if node.op_type == "Cast"]
    assert casts == [F16, F32, F32]
    inner = twin.graph.node[2].attribute[0].g
    assert numpy_helper.to_array(inner.node[0].attribute[0].t).tolist() == VALUES.astype(np.float32).tolist()
    assert inner.output[0].type.tensor_type.elem_type == F32
    assert [one.type.tensor_type.elem_type for one in twin.functions[0].value_info] == [F32, F16]


def test_one_place_is_enough_to_make_a_twin(tmp_path: Path) -> None:
    identity = helper.make_node("Identity", ["x"], ["y"])
    plain = helper.make_graph([identity], "graph", [value("x", F16)], [value("y", F16)])
    assert write_widened(saved(plain, tmp_path), tmp_path) is None
    for change in ("initializer", "input", "attribute", "function"):
        graph, functions = onnx.GraphProto(), ()
        graph.CopyFrom(plain)
        if change == "initializer":
            graph.initializer.append(raw("w"))
        elif change == "input":
            graph.input.append(value("z", BF16))
        elif change == "attribute":
            graph.node.append(helper.make_node("Cast", ["x"], ["z"], to=BF16))
        else:
            body = [helper.make_node("Cast", ["a"], ["b"], to=BF16)]
            functions = (helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 20)]),)
        assert write_widened(saved(graph, tmp_path, functions), tmp_path) is not None, change


def test_an_attribute_that_only_looks_like_a_type_is_kept(tmp_path: Path) -> None:
    node = helper.make_node("Other", ["x"], ["y"], domain="own", axis=int(BF16))
    graph = helper.make_graph([node], "graph", [value("x", F16)], [value("y", F16)])
    assert write_widened(saved(graph, tmp_path), tmp_path) is None
