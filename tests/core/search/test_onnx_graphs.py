"""Layers found in .onnx files: graphs written by hand, and one that torch.onnx wrote."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from packaging.version import Version
from torch import Tensor

import layerport as lp
from core.search.test_families import ASKED, CASES, EVERY, LAYERS, counted, model_of
from layerport.bundle.bundle import MANIFEST
from layerport.commands.explaining import explain
from layerport.errors import UsageError
from layerport.front.exporter import quiet
from layerport.front.found_in_onnx import find_in_onnx
from layerport.front.found_layers import FindWishes
from layerport.front.onnx_files import read_model, reference_outputs
from layerport.packs.host import load
from layerport.search.onnx_graphs import written


@lp.layer("onnx_tests::norm")
def norm(x: Tensor, weight: lp.Param, eps: float = 1e-6) -> Tensor:
    if weight.shape != x.shape[-1:]:
        raise ValueError("weight is not (C,)")
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


@lp.layer("onnx_tests::gate")
def gate(g: Tensor, u: Tensor) -> Tensor:
    if g.shape != u.shape:
        raise ValueError("of two shapes")
    return torch.nn.functional.silu(g) * u


@lp.layer("onnx_tests::rows")
def rows(x: Tensor, factor: float = 2.0) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, -1)
    both = torch.cat((second, first), -1)
    return torch.tanh(both * factor), both


class Pack:
    @lp.hookimpl
    def layerport_layers(self) -> Any:
        return (norm, gate, rows)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerport.packs.host.discover", lambda environ=None: ())


F = TensorProto.FLOAT
W = np.linspace(0.5, 1.5, 8, dtype=np.float32)


def saved(path: Path, nodes: list[Any], *, opset: int = 18, outputs: int = 1, **constants: Any) -> Path:
    port = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "graph",
        [port("x", F, ["rows", 8]), port("u", F, ["rows", 8])],
        [port(f"y{place}" if place else "y", F, ["rows", None]) for place in range(outputs)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), output.split(), name=f"{op}_{output.split()[0]}", **attributes)


def rms(weight: str = "w", axis: int = -1, **reduce: Any) -> list[Any]:
    reduce = reduce or {"axes": [axis]}
    return [
        node("Pow", "x two", "square"),
        node("ReduceMean", "square", "mean", keepdims=1, **reduce),
        node("Add", "mean eps", "more"),
        node("Sqrt", "more", "root"),
        node("Div", "x root", "normal"),
        node("Mul", f"normal {weight}", "y"),
    ]


NUMBERS = {"two": np.float32(2), "eps": np.float32(1e-5), "w": W}
PLUS = [node("Add", "w one", "w1"), *rms("w1")]
AXES = [node("ReduceMean", "square axes", "mean"), node("Mul", "x x", "square")]
GATE = [node("Sigmoid", "x", "s"), node("Mul", "x s", "silu"), node("Mul", "u silu", "y")]
UNEQUAL = node("Split", "x", "a b", axis=1, num_outputs=2)
SAME: dict[str, tuple[list[Any], dict[str, Any], int, str, dict[str, float]]] = {
    "a norm": (rms(), NUMBERS, 13, "norm", {"eps": 1e-5}),
    "its axes are an input": (
        [AXES[1], AXES[0], *rms()[2:]], {**NUMBERS, "axes": np.array([1])}, 18, "norm", {"eps": 1e-5},
    ),
    "one plus a weight": (PLUS, {**NUMBERS, "one": np.float32(1)}, 13, "norm", {"eps": 1e-5}),
    "one operator": (
        [node("RMSNormalization", "x w", "y", epsilon=1e-3)], NUMBERS, 23, "norm", {"eps": 1e-3},
    ),
    "a gate": (GATE, {}, 18, "gate", {}),
    "two outputs, one taken": (
        [
            node("Slice", "x zero four axis", "a"),
            node("Slice", "x four end axis", "b"),
            node("Concat", "b a", "both", axis=-1),
            node("Mul", "both f", "more"),
            node("Tanh", "more", "y"),
        ],
        {"zero": np.array([0]), "four": np.array([4]), "end": np.array([2**62]), "axis": np.array([1]),
         "f": np.float32(0.3)},
        18, "rows", {"factor": 0.3},
    ),
    "two outputs, both taken": (
        [
            UNEQUAL,
            node("Concat", "b a", "y1", axis=1),
            node("Mul", "f y1", "more"),
            node("Tanh", "more", "y"),
        ],
        {"f": np.array([0.3], np.float32)},
        18, "rows", {"factor": 0.3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_a_file_is_built_with_what_is_found(case: str, tmp_path: Path) -> None:
    nodes, constants, opset, name, attributes = SAME[case]
    several = 2 if "both" in case else 1
    path = saved(tmp_path / "model.onnx", nodes, opset=opset, outputs=several, **constants)
    out = tmp_path / "out.lp"
    report = lp.build(str(path), out, packs=[Pack()], target="portable", ranges=["rows=1..3..9"])
    (place,) = report.found
    assert (place.layer, place.module, place.line) == (f"onnx_tests::{name}", "", f"node {nodes[-1].name}")
    assert place.attributes == pytest.approx(attributes, rel=1e-9)
    assert report.verification is not None and report.verification.passed
    (layer,) = json.loads((out / MANIFEST).read_text())["layers"]
    assert (layer["via"], layer["grade"], layer["node"]) == ("found", place.grade, place.node)
    made = onnx.load(str(out / "model.onnx"))
    left = {one.op_type for one in made.graph.node}
    assert left <= {name, "Add"} and [one.name for one in made.graph.output] == ["y", "y1"][:several]
    # The same numbers as the file, at a size of its own.
    x, u = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    wanted = onnx.reference.ReferenceEvaluator(str(path)).run(None, {"x": x, "u": u})
    with lp.load(out) as session:
        got = session(x=x, u=u)
    for output, value in zip(made.graph.output, wanted, strict=True):
        np.testing.assert_allclose(got[output.name], value, rtol=2e-6, atol=2e-6)


BRANCH = helper.make_graph(
    [helper.make_node("Neg", ["silu"], ["negative"])], "then", [], [helper.make_tensor_value_info("negative", F, None)]
)
OTHER: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "over another axis": (rms(axis=0), NUMBERS, ""),
    "eps behind the root": (
        [*rms()[:2], node("Sqrt", "mean", "less"), node("Add", "less eps", "root"), *rms()[4:]], NUMBERS, "",
    ),
    "a weight that is an input": (rms("u"), NUMBERS, ""),
    "the cube": (rms(), {**NUMBERS, "two": np.float32(3)}, ""),
    "an inner value is an output": ([*GATE, node("Neg", "silu", "y1")], {}, "is needed elsewhere"),
    "a branch takes an inner value": (
        [*GATE, helper.make_node("If", ["yes"], ["y1"], name="If_y1", then_branch=BRANCH, else_branch=BRANCH)],
        {"yes": np.array(True)}, "is needed elsewhere",
    ),
    "an operand that broadcasts": (
        [node("ReduceMax", "u", "most", axes=[1]), *GATE[:2], node("Mul", "most silu", "y")], {}, "of two shapes",
    ),
    "an operator that is not known": (
        [node("Sigmoid", "x", "s"), node("CumSum", "s axis", "c"), node("Mul", "x c", "silu"), GATE[2]],
        {"axis": np.array(1)}, "",
    ),
    "halves of another size": (
        [node("Split", "x sizes", "a b", axis=1), node("Concat", "b a", "both", axis=1),
         node("Mul", "both f", "m"), node("Tanh", "m", "y")],
        {"sizes": np.array([3, 5]), "f": np.float32(0.3)}, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER)
def test_what_is_something_else_is_not_found(case: str, tmp_path: Path) -> None:
    nodes, constants, reason = OTHER[case]
    several = 2 if any("y1" in one.output for one in nodes) else 1
    path = saved(tmp_path / "model.onnx", nodes, opset=13 if "axes" in str(nodes) else 18, outputs=several, **constants)
    result = explain(str(path), packs=[Pack()])
    assert result.found == () and result.claims == ()
    assert not reason or any(reason in one.reason for one in result.missed), result.missed


def test_what_must_be_found_and_what_is_left_out(tmp_path: Path) -> None:
    path = str(saved(tmp_path / "model.onnx", GATE))
    built: dict[str, Any] = {"packs": [Pack()], "target": "portable", "force": True, "ranges": ["rows=1..3..9"]}
    assert lp.build(path, tmp_path / "out.lp", no_find=["onnx_tests::gate"], **built).counts == {}
    with pytest.raises(UsageError, match="not found in the model: onnx_tests::norm"):
        lp.build(path, tmp_path / "out.lp", find=["onnx_tests::norm"], **built)
    assert [one.layer for one in explain(path, packs=[Pack()]).found] == ["onnx_tests::gate"]


def test_numbers_are_read_as_they_were_written() -> None:
    for number in (1e-5, 0.044715, 0.7, 2**-0.5, (2 / torch.pi) ** 0.5, 0.125, 1 / 48**0.5, -1.702, 1e-12, 3.0):
        assert written(torch.tensor(number)) == pytest.approx(number, rel=1e-15)
    assert written(torch.tensor(1e-6, dtype=torch.bfloat16)) == 1e-6


def test_a_model_may_take_the_logarithm_of_zero_and_choose_another_value() -> None:
    port = helper.make_tensor_value_info("x", F, [2])
    graph = helper.make_graph([node("Log", "x", "y")], "graph", [port], [helper.make_tensor_value_info("y", F, [2])])
    model = ir.serde.deserialize_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    assert reference_outputs(model, {"x": np.array([0, 1], np.float32)})["y"].tolist() == [-np.inf, 0]


@pytest.mark.parametrize(("name", "dtype"), CASES if EVERY else [("Llama", torch.bfloat16)])
def test_as_many_as_in_the_torch_model(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    if dtype is torch.bfloat16 and Version(onnx.__version__) < Version("1.23"):
        pytest.skip("the evaluator of older onnx refuses products of bfloat16, so that nothing is found")
    model, args, shapes = model_of(name, dtype)
    with counted(model) as wanted, torch.no_grad():
        model(*args)
    path = tmp_path / "m.onnx"
    if name == "T5":  # torch.onnx.export fails on it: "Cannot view a tensor with ... strides"
        made = lp.build((model, args, shapes), tmp_path / "m.lp", target="portable", verify=False)
        assert made.counts == {}
        path = tmp_path / "m.lp" / "model.onnx"
    else:
        with quiet():
            torch.onnx.export(model.eval(), args, path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    packs = load(Pack())
    file = read_model(path, {}, packs)
    findings = find_in_onnx(file, {}, packs, FindWishes(LAYERS, ASKED)).findings
    if (name, dtype) == ("T5", torch.bfloat16):  # its GELU is written out, and 0.044715 is 0.0447 in bfloat16
        del wanted["layerport_builtin::gelu_mul"]
    assert Counter(one.layer for one in findings.places) == wanted, findings.misses
