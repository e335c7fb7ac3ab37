"""ONNX files and bundles as sources: types and sizes through the layers, weights beside the file, conditions kept."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.export import Dim

import layerport as lp
from layerport.bundle.bundle import Bundle
from layerport.errors import BuildError, UsageError
from layerport.front import onnx_files
from layerport.packs.host import Packs
from small_bundles import external, place

BRANCHING = str(Path(__file__).parents[2] / "packs" / "branching.py")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_a_layer_after_a_layer(tmp_path: Path, kind: int) -> None:
    """The file says nothing of what is between them."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [
        helper.make_node("rms_norm", ["x", "w"], ["between"], domain="layerport_builtin"),
        helper.make_node("silu_mul", ["between", "gate"], ["y"], domain="layerport_builtin"),
    ]
    port = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "graph",
        [port("x", kind, ["rows", 16]), port("gate", kind, ["rows", 16])],
        [port("y", kind, ["rows", 16])],
        [numpy_helper.from_array(np.ones(16, dtype), "w")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("layerport_builtin", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "two.onnx")
    report = lp.build(str(tmp_path / "two.onnx"), tmp_path / "two.lp", target="portable", ranges=["rows=1..4..8"])
    assert report.verification is not None and report.verification.passed
    model = onnx.load(str(tmp_path / "two.lp" / "model.onnx"))
    (between,) = [one for one in model.graph.value_info if one.name == "between"]
    assert between.type.tensor_type.elem_type == kind
    assert [one.dim_param or one.dim_value for one in between.type.tensor_type.shape.dim] == ["rows", 16]


class Wide(torch.nn.Module):
    """Weights of 17 MB, which lie beside the model's file."""

    def __init__(self) -> None:
        super().__init__()
        self.product = torch.nn.Linear(2100, 2100)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.ones(2100)
        result: Tensor = torch.ops.layerport_builtin.rms_norm(self.product(x), weight, 1e-6)
        return result


def test_a_bundle_is_a_source(tmp_path: Path) -> None:
    import layerport_builtin_layers.plugin  # noqa: F401 - registers the operator

    half = Dim("half", max=32)
    lp.build(
        Wide().eval(),
        tmp_path / "wide.lp",
        args=(torch.randn(6, 2100),),
        dynamic_shapes=({0: 2 * half},),
        target="portable",
    )
    assert (tmp_path / "wide.lp" / "model.onnx.data").is_file()
    for source in ("wide.lp", "wide.lp/model.onnx"):
        out = tmp_path / "again.lp"
        report = lp.build(str(tmp_path / source), out, target="rtx:sm_89", ranges=["half=1..3..16"], force=True)
        assert report.counts == {"layerport_builtin::rms_norm": {"plugin": 1}}
        assert report.verification is not None and report.verification.passed
        bundle = Bundle.open(out)
        assert str(bundle.inputs[0]) == "x: float32[2*half, 2100]" and bundle.dims["half"].max == 16
        assert bundle.manifest["samples"]["reference"] == "torch"
        np.testing.assert_array_equal(
            bundle.samples()[1]["output"], Bundle.open(tmp_path / "wide.lp").samples()[1]["output"]
        )
    with pytest.raises(UsageError, match="ranges do not fit"):
        lp.build(str(tmp_path / "wide.lp"), tmp_path / "more.lp", target="portable", ranges=["half=1..3..64"])
    (tmp_path / "wide.lp" / "model.onnx.data").write_bytes(b"other")
    with pytest.raises(BuildError, match="copy the whole bundle again"):
        lp.build(str(tmp_path / "wide.lp"), tmp_path / "more.lp", target="portable")


def test_conditions_stay(tmp_path: Path) -> None:
    from layerport.system.python_files import import_file

    function = import_file(BRANCHING).halves

    class Halves(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = function(x)
            return result + 1

    first, second = tmp_path / "first.lp", tmp_path / "second.lp"
    shapes = ({0: Dim.DYNAMIC},)
    lp.build(Halves(), first, args=(torch.ones(4),), dynamic_shapes=shapes, target="portable", packs=[BRANCHING])
    lp.build(str(first), second, target="portable")  # without the pack its body is all that there is
    assert Bundle.open(second).manifest["conditions"] == Bundle.open(first).manifest["conditions"] != []


def test_weights_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [16])],
        [numpy_helper.from_array(np.ones(16, np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "in" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match=r"keeps its data in '../secret', no file beside the model"):
        lp.build(str(tmp_path / "in" / "model.onnx"), tmp_path / "a.lp", target="portable")


def test_an_attribute_of_no_type_is_refused(tmp_path: Path) -> None:
    """It cannot be written again, which came out at the end of the build."""
    model = place("attribute", onnx.TensorProto(name="w", data_type=1, dims=[0]))
    model.graph.node[-1].attribute.add()
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match="is not an ONNX model"):
        onnx_files.read_model(tmp_path / "m.onnx", {}, Packs(()))


@pytest.mark.parametrize("where", ["attribute", "function", "subgraph in a subgraph", "sparse attribute"])
def test_weights_elsewhere_are_refused_wherever_they_stand(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    for number, (location, offset) in enumerate((("../secret", "0"), ("/etc/hostname", "0"), ("w", "60"), ("p", "0"))):
        (folder / "w").write_bytes(bytes(64))
        if number == 3:
            os.mkfifo(folder / "p")
        (folder / "m.onnx").write_bytes(
            place(where, external("w", location=location, offset=offset)).SerializeToString()
        )
        with pytest.raises(
            UsageError, match=r"tensor 'w' (keeps its data in '.*', no file beside|names bytes 60 to 76)"
        ):
            onnx_files.read_model(folder / "m.onnx", {}, Packs(()))


def test_weights_of_attributes_come_into_the_bundle(tmp_path: Path) -> None:
    """Without them the bundle would name a file that is not in it."""
    folder = tmp_path / "m"
    folder.mkdir()
    model = place("attribute", external("w", location="w", offset="4", dims=(3,)))
    model.graph.node[-1].CopyFrom(onnx.helper.make_node("Add", ["x", "c"], ["y"]))
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    np.arange(4, dtype=np.float32).tofile(folder / "w")
    lp.build(folder / "m.onnx", tmp_path / "out.lp", target="portable")
    (folder / "w").unlink()
    with lp.load(tmp_path / "out.lp", device="cpu") as session:
        np.testing.assert_array_equal(session(x=np.zeros(3, np.float32))["y"], [1, 2, 3])


def test_a_tensor_of_no_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(place("function", onnx.TensorProto(name="w", data_type=99)).SerializeToString())
    with pytest.raises(UsageError, match="tensor 'w' has the type 99"):
        onnx_files.read_model(tmp_path / "m.onnx", {}, Packs(()))
