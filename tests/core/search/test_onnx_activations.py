"""Functions of single elements in `.onnx` files: by their formulas in what torch.onnx writes, and one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import layerport as lp
from core.search.test_formulas import ONE, Beside, X, layer_of
from layerport.front.exporter import quiet
from layerport.front.found_in_onnx import find_in_onnx
from layerport.front.found_layers import FindWishes
from layerport.front.onnx_files import read_model
from layerport.packs.host import load
from layerport.search.onnx_graphs import read_graph

ROWS = {name: row for name, row in ONE.items() if name not in ("LayerNorm", "RMSNorm", "normalize")}


def test_each_is_found_by_its_formula(tmp_path: Path) -> None:
    layers = [layer_of(spellings[0]) for _, spellings, _ in ROWS.values()]
    path = tmp_path / "model.onnx"
    model = Beside([one for one, _, _ in ROWS.values()]).eval()
    with quiet():
        program = torch.onnx.export(model, (X,), dynamo=True, verbose=False, opset_version=20)
    assert program is not None
    program.save(path)

    class Pack:
        @lp.hookimpl
        def layerport_layers(self) -> Any:
            return tuple(layers)

    packs = load(Pack())
    found = find_in_onnx(read_model(path, {}, packs), {}, packs, FindWishes(tuple(layers))).findings
    wanted = {layer.name: attributes for layer, (*_, attributes) in zip(layers, ROWS.values(), strict=True)}
    assert {place.layer: place.attributes for place in found.places} == wanted, found


OPERATORS: dict[str, tuple[str, dict[str, float], Any]] = {
    "Mish": ("Mish", {}, nn.Mish()),
    "HardSwish": ("HardSwish", {}, nn.Hardswish()),
    "Softplus": ("Softplus", {}, nn.Softplus()),
    "Softsign": ("Softsign", {}, nn.Softsign()),
    "Gelu": ("Gelu", {}, nn.GELU()),
    "Swish": ("Swish", {"alpha": 1.702}, lambda x: x * torch.sigmoid(1.702 * x)),
    "LeakyRelu": ("LeakyRelu", {"alpha": 0.3}, nn.LeakyReLU(0.3)),
    "Elu": ("Elu", {"alpha": 0.7}, nn.ELU(0.7)),
    "Selu": ("Selu", {}, nn.SELU()),
    "Selu with numbers": ("Selu", {"alpha": 0.5, "gamma": 2.0}, lambda x: 2 * torch.where(x > 0, x, x.expm1() * 0.5)),
    "Celu": ("Celu", {"alpha": 1.5}, nn.CELU(1.5)),
    "HardSigmoid": ("HardSigmoid", {}, lambda x: (0.2 * x + 0.5).clamp(0, 1)),
    "HardSigmoid of Torch": ("HardSigmoid", {"alpha": 1 / 6}, nn.Hardsigmoid()),
    "ThresholdedRelu": ("ThresholdedRelu", {"alpha": 0.4}, nn.Threshold(0.4, 0)),
    "Hardshrink": ("Shrink", {"lambd": 0.6}, nn.Hardshrink(0.6)),
    "Softshrink": ("Shrink", {"lambd": 0.6, "bias": 0.6}, nn.Softshrink(0.6)),
}


def graph_of(op: str, attributes: dict[str, float]) -> Any:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], **attributes)], "graph", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    return read_graph(ir.serde.deserialize_model(model), {}).model.graph


@pytest.mark.parametrize("case", OPERATORS)
def test_a_rule_computes_what_the_operator_does(case: str) -> None:
    op, attributes, function = OPERATORS[case]
    x = torch.linspace(-6, 6, 64)
    graph = graph_of(op, attributes)
    (got,) = torch.fx.GraphModule({}, graph)(x)
    torch.testing.assert_close(got, function(x))


def test_a_shrink_with_another_bias_is_no_function_of_torch() -> None:
    graph = graph_of("Shrink", {"lambd": 0.6, "bias": 0.1})
    assert not any("shrink" in str(node.target) for node in graph.nodes)
