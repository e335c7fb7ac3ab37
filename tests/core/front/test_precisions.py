"""An output that is computed in 16 bits and given as float32 is judged as one of 16 bits, and only such a one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import layerport as lp
from layerport.bundle.bundle import Bundle
from layerport.front.precisions import coarsest_types
from layerport.parameters.comparison import compare, tolerance

F32, F16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


def types_of(nodes: list[Any], given: int = F32, gives: int = F32, inner: dict[str, int] | None = None) -> Any:
    """Of a graph from x to y, where h is what the nodes compute between."""
    half = numpy_helper.from_array(np.ones(4, np.float16), "w")
    ports = [helper.make_tensor_value_info("x", given, [4]), helper.make_tensor_value_info("y", gives, [4])]
    infos = [helper.make_tensor_value_info(name, dtype, [4]) for name, dtype in (inner or {}).items()]
    graph = helper.make_graph(nodes, "graph", ports[:1], ports[1:], [half], value_info=infos)
    return coarsest_types(ir.serde.deserialize_model(helper.make_model(graph)))


def node(op: str, inputs: str, output: str, domain: str = "", **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], domain=domain, **attributes)


def test_a_computation_of_16_bits_that_is_widened_in_the_end() -> None:
    nodes = [node("Mul", "x w", "h"), node("Cast", "h", "y", to=F32)]
    assert types_of(nodes, F16, inner={"h": F16}) == {"y": "float16"}


def test_a_value_that_is_narrowed_on_the_way() -> None:
    nodes = [node("Cast", "x", "h", to=BF16), node("Cast", "h", "y", to=F32)]
    assert types_of(nodes, inner={"h": BF16}) == {"y": "bfloat16"}
    nodes = [node("Cast", "x", "h", to=BF16), node("Cast", "h", "y", to=F16)]
    assert types_of(nodes, gives=F16, inner={"h": BF16}) == {"y": "bfloat16"}


def test_a_layer_of_16_bits() -> None:
    nodes = [node("Cast", "x", "a", to=F16), node("gate", "a", "h", "some_pack"), node("Cast", "h", "y", to=F32)]
    assert types_of(nodes, inner={"a": F16, "h": F16}) == {"y": "float16"}


ROUNDS_NOTHING = {
    "an output of its own type": ([node("Mul", "x w", "y")], F16, F16, {}),
    "inputs that are widened": ([node("Cast", "x", "h", to=F32), node("Exp", "h", "y")], F16, F32, {"h": F32}),
    "inputs that are moved, then widened": (
        [node("Neg", "x", "h"), node("Cast", "h", "y", to=F32)],
        F16,
        F32,
        {"h": F16},
    ),
    "weights that are widened": (
        [node("Exp", "w", "e"), node("Cast", "e", "h", to=F32), node("Mul", "x h", "y")],
        F32,
        F32,
        {"e": F16, "h": F32},
    ),
    "whole numbers of values of 16 bits": (
        [node("Exp", "x", "e"), node("Shape", "e", "h"), node("Cast", "h", "y", to=F32)],
        F16,
        F32,
        {"e": F16, "h": TensorProto.INT64},
    ),
}


@pytest.mark.parametrize("case", ROUNDS_NOTHING)
def test_what_rounds_nothing_changes_nothing(case: str) -> None:
    nodes, given, gives, inner = ROUNDS_NOTHING[case]
    assert types_of(nodes, given, gives, inner) == {}


class Half(nn.Module):
    """Weights and arithmetic in 16 bits, logits in 32, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        return y.float(), y


def test_verify_takes_the_tolerance_of_what_computed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = lp.build((Half().eval().half(), (torch.randn(2, 8).half(),)), tmp_path / "a.lp", target="portable")
    assert report.verification is not None and report.verification.passed
    first, second = report.verification.outputs
    assert (first.dtype, first.precision, second.precision) == ("float32", "float16", None)
    assert first.answer == "pass, computed in float16" and second.answer == "pass"
    manifest = json.loads((tmp_path / "a.lp" / "manifest.json").read_text())
    assert manifest["samples"]["precisions"] == {first.name: "float16"}
    assert Bundle.open(tmp_path / "a.lp").precisions == {first.name: "float16"}


def test_the_coarser_type_allows_what_it_does_and_no_more() -> None:
    want = np.linspace(-3, 3, 64, dtype=np.float32)
    for precision, passes in ((None, False), ("float16", True)):
        assert compare("y", want * np.float32(1.005), want, precision=precision).passed is passes
    assert not compare("y", want * np.float32(1.05), want, precision="float16").passed
    absolute, relative = tolerance(want, None, "float16")
    assert absolute == pytest.approx(1e-2 * float(np.abs(want).mean()), rel=1e-4) and relative == 1e-2


def test_a_model_of_32_bits_says_nothing_of_it(tmp_path: Path) -> None:
    lp.build((nn.Linear(4, 4).eval(), (torch.randn(2, 4),)), tmp_path / "a.lp", target="portable")
    assert "precisions" not in json.loads((tmp_path / "a.lp" / "manifest.json").read_text())["samples"]
