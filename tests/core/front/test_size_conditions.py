"""A branch on a size: proven over the whole range, shown to be Torch's caution, refused, or checked by the session."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from torch.export import Dim

import layerport as lp
from layerport.bundle import bundle as bundles
from layerport.bundle.bundle import Bundle
from layerport.errors import BuildError, UsageError
from layerport.system.python_files import import_file

BRANCHING = str(Path(__file__).parents[2] / "packs" / "branching.py")


@pytest.fixture(autouse=True)
def no_installed_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERPORT_DISABLE_PACKS", "builtin_layers")


@pytest.fixture(scope="module")
def pack() -> ModuleType:
    return import_file(BRANCHING)


class Calls(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(x)
        return result + 1


def build(function: Any, out: Path, dim: Any, *, rows: int = 4, **options: Any) -> Bundle:
    model = Calls(function).eval()
    shapes = ({0: dim},)
    lp.build(
        model, out, args=(torch.ones(rows, 6),), dynamic_shapes=shapes, target="portable", packs=[BRANCHING], **options
    )
    return Bundle.open(out)


@pytest.mark.parametrize("dim", [Dim.AUTO, Dim.DYNAMIC, "rows"], ids=str)
def test_a_reference_that_branches_on_a_size(tmp_path: Path, pack: ModuleType, dim: Any) -> None:
    with pytest.raises(BuildError, match="a part of the range of sizes only") as caught:
        build(pack.even, tmp_path / "even.lp", dim)
    name = "rows" if dim == "rows" else "x_dim0"
    (fault,) = caught.value.faults
    assert fault.startswith(f"layer branching::even (node_even) is exported for sizes where {name} % 2 == 0 only:")
    assert f"{name}=1 is within its range, and the exported form gives other numbers there" in fault
    assert "--range" in str(caught.value.repair) and "torch.where" in str(caught.value.repair)
    assert not (tmp_path / "even.lp").exists()


def test_a_reference_in_a_file(tmp_path: Path, pack: ModuleType) -> None:
    made = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("even", ["x"], ["y"], domain="branching")],
        "graph",
        [made("x", onnx.TensorProto.FLOAT, ["rows", 6])],
        [made("y", onnx.TensorProto.FLOAT, ["rows", 6])],
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("branching", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "even.onnx")
    out, source = tmp_path / "even.lp", str(tmp_path / "even.onnx")
    with pytest.raises(BuildError) as caught:
        lp.build(source, out, target="portable", packs=[BRANCHING], ranges=["rows=2..4..8"])
    assert "rows % 2 == 0 only: rows=3 is within" in caught.value.faults[0]
    lp.build(source, out, target="portable", packs=[BRANCHING], ranges=["rows=4..4..4"])


def test_one_size_in_the_middle_of_the_range(tmp_path: Path, pack: ModuleType) -> None:
    """The ends of the range and the example all lie on the same branch."""
    with pytest.raises(BuildError) as caught:
        build(pack.prime, tmp_path / "prime.lp", Dim.DYNAMIC, ranges=["x_dim0=1..4..64"])
    assert "x_dim0 != 37 only: x_dim0=37 is within its range" in caught.value.faults[0]
    build(pack.prime, tmp_path / "prime.lp", Dim.DYNAMIC, ranges=["x_dim0=1..4..36"])


def test_a_written_shape_rule_is_no_proof_of_the_body(tmp_path: Path, pack: ModuleType) -> None:
    with pytest.raises(BuildError) as caught:
        build(pack.ruled, tmp_path / "ruled.lp", Dim.DYNAMIC)
    assert "layer branching::ruled" in caught.value.faults[0] and "x_dim0 % 2 == 0 only" in caught.value.faults[0]


def test_size_one(tmp_path: Path, pack: ModuleType) -> None:
    """Torch traces with sizes from 2 on, and writes down no condition for a model that asks for 1."""
    with pytest.raises(BuildError) as caught:
        build(pack.single, tmp_path / "single.lp", Dim.DYNAMIC, ranges=["x_dim0=1..4..9"])
    assert "layer branching::single (node_single)" in caught.value.faults[0]
    assert "x_dim0 != 1 only: x_dim0=1 is within its range" in caught.value.faults[0]

    def own(x: Tensor) -> Tensor:
        return x * 3 if x.shape[0] == 1 else x * 2

    model = Calls(own).eval()
    report = lp.build(model, tmp_path / "own.lp", args=(torch.ones(4),), dynamic_shapes=({0: "n"},), target="portable")
    assert Bundle.open(tmp_path / "own.lp").dims["n"].min == 2
    assert any("dim n starts at 2: at 1 the model takes another way" in warning for warning in report.warnings)


def test_the_models_own_branch(tmp_path: Path) -> None:
    def own(x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] % 2 == 0 else x * 3

    with pytest.raises(BuildError) as caught:
        build(own, tmp_path / "own.lp", Dim("rows", max=64))
    assert "the model is exported for sizes where rows % 2 == 0 only: rows=" in caught.value.faults[0]
    for place, dim in enumerate((Dim.AUTO, "rows")):  # nobody asked for odd sizes
        bundle = build(own, tmp_path / f"own{place}.lp", dim)
        with lp.load(bundle.folder) as session:
            np.testing.assert_array_equal(session(x=torch.ones(8, 6))["output"], np.full((8, 6), 3.0))
            with pytest.raises(UsageError) as refused:
                session(x=torch.ones(3, 6))
        assert "the model is right only where" in refused.value.faults[0] and refused.value.faults[0].endswith("=3")
    half = Dim("half", max=8)
    bundle = build(own, tmp_path / "own.lp", 2 * half)
    assert str(bundle.inputs[0]) == "x: float32[2*half, 6]"


@pytest.mark.parametrize("most", [None, 10**9])
def test_sizes_too_large_to_be_tried_are_left_to_the_session(tmp_path: Path, most: int | None) -> None:
    def own(x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] * x.shape[1] < 10**9 else x * 3

    shapes = ({0: Dim("rows", min=2, max=most), 1: Dim("columns", min=2, max=most)},)
    lp.build(Calls(own).eval(), tmp_path / "own.lp", args=(torch.ones(4, 3),), dynamic_shapes=shapes, target="portable")
    (condition,) = Bundle.open(tmp_path / "own.lp").conditions
    assert condition.fault({"rows": 1000, "columns": 1000}) is None
    assert condition.fault({"rows": 10**5, "columns": 10**5}) is not None
    with lp.load(tmp_path / "own.lp") as session:
        np.testing.assert_array_equal(session(x=torch.ones(5, 6))["output"], np.full((5, 6), 3.0))


def test_an_exported_program_has_its_conditions(tmp_path: Path) -> None:
    def own(x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] % 2 == 0 else x * 3

    program = torch.export.export(Calls(own), (torch.ones(4),), dynamic_shapes=({0: Dim.DYNAMIC},))
    with pytest.raises(BuildError) as caught:
        lp.build(program, tmp_path / "own.lp", target="portable", ranges=["x_dim0=2..4..8"])
    assert "the model is exported for sizes where x_dim0 % 2 == 0 only: x_dim0=3" in caught.value.faults[0]
    lp.build(program, tmp_path / "own.lp", target="portable")
    with lp.load(tmp_path / "own.lp") as session:
        np.testing.assert_array_equal(session(x=torch.ones(6))["output"], np.full(6, 3.0))
        with pytest.raises(UsageError) as refused:
            session(x=torch.ones(3))
    assert refused.value.faults == ("the model is right only where x_dim0 % 2 == 0, got x_dim0=3",)


def test_torchs_caution_is_tried_and_dropped(tmp_path: Path, pack: ModuleType) -> None:
    bundle = build(pack.turned, tmp_path / "turned.lp", Dim.DYNAMIC, ranges=["x_dim0=1..4..64"])
    assert bundle.manifest["conditions"] == []
    notes = bundle.manifest["conditions_dropped"]
    assert "x_dim0 != 1 was dropped: at all 1 sizes without it, such as x_dim0=1, the numbers are the same" in notes[0]
    with lp.load(bundle.folder) as session:
        for rows in (1, 2, 3, 64):
            x = torch.randn(rows, 6)
            np.testing.assert_allclose(session(x=x)["output"], x.T.reshape(-1) + 1, rtol=1e-6)


def test_a_condition_that_no_size_in_the_range_breaks(tmp_path: Path, pack: ModuleType) -> None:
    bundle = build(pack.long, tmp_path / "long.lp", Dim.DYNAMIC)
    assert (bundle.dims["x_dim0"].max, bundle.manifest["conditions"]) == (999_999, [])


def test_an_output_that_is_smaller_for_small_inputs(tmp_path: Path, pack: ModuleType) -> None:
    bundle = build(pack.head, tmp_path / "head.lp", Dim.DYNAMIC, rows=8)
    assert str(bundle.outputs[0]) == "output: float32[min(4, x_dim0), 6]"
    with lp.load(bundle.folder) as session:
        for rows in (1, 3, 4, 9):
            assert session(x=torch.ones(rows, 6))["output"].shape == (min(4, rows), 6)


def test_sizes_that_the_reference_itself_refuses(tmp_path: Path, pack: ModuleType) -> None:
    with pytest.raises(BuildError) as caught:
        build(pack.halves, tmp_path / "halves.lp", Dim.DYNAMIC, ranges=["x_dim0=2..4..8"])
    assert "x_dim0=3 is within its range, and it fails there itself: ValueError: an even number" in str(caught.value)
    bundle = build(pack.halves, tmp_path / "halves.lp", Dim.DYNAMIC)
    assert bundle.manifest["conditions"] == [
        {"condition": "x_dim0 % 2 == 0", "layer": "branching::halves", "module": "node_halves"}
    ]
    with lp.load(bundle.folder) as session:
        np.testing.assert_array_equal(session(x=torch.ones(6, 6))["output"], np.full((6, 6), 3.0))
        with pytest.raises(UsageError) as refused:
            session(x=torch.ones(5, 6))
    assert refused.value.faults == (
        "layer branching::halves (node_halves) is right only where x_dim0 % 2 == 0, got x_dim0=5",
    )


FORGED = {
    "no list": {"condition": "x_dim0 == 1"},
    "no text": [{"condition": 3, "layer": "", "module": ""}],
    "no layer": [{"condition": "x_dim0 == 1"}],
    "not readable": [{"condition": "__import__('os')", "layer": "", "module": ""}],
    "of another size": [{"condition": "elsewhere == 1", "layer": "", "module": ""}],
    "too many": [{"condition": "x_dim0 == 1", "layer": "", "module": ""}] * 10_001,
    "too long": [{"condition": "x_dim0 + " * 5000 + "1", "layer": "", "module": ""}],
    "nested": [{"condition": "(" * 500 + "x_dim0" + ")" * 500, "layer": "", "module": ""}],
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_condition(tmp_path: Path, pack: ModuleType, forgery: str) -> None:
    bundle = build(pack.long, tmp_path / "long.lp", Dim.DYNAMIC)
    manifest = json.loads((bundle.folder / bundles.MANIFEST).read_text())
    manifest["conditions"] = FORGED[forgery]
    (bundle.folder / bundles.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BuildError, match="cannot be read"):
        Bundle.open(bundle.folder)


def test_what_torch_says_of_a_dim_that_it_fixes(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(2, 1)

    for dim in (Dim("rows"), Dim.DYNAMIC, "rows"):
        with pytest.raises(BuildError) as caught:
            lp.build(
                Fixed(), tmp_path / "a.lp", args=(torch.ones(2, 6),), dynamic_shapes=({0: dim},), target="portable"
            )
        assert "your code specialized it to be a constant (2)" in caught.value.faults[0]
        assert "leave such a dim static" in str(caught.value.repair)
