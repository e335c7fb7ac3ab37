"""What TensorRT makes of each layer without its plugin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from torch.export import Dim

import layerport as lp
from layerport.cli import main
from layerport.engine import alone_build
from layerport.engine.alone import Alone
from layerport.engine.child import BuildProcess
from layerport.errors import BuildError
from layerport.system.python_files import import_file
from small_setup import ENGINE, TESTS, Built

PACK = TESTS / "packs" / "alone.py"
pytest.importorskip("tensorrt_rtx")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module", name="bundle")
def _bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = import_file(str(PACK)).Model().eval()
    rows = Dim("rows", min=1, max=9)
    out = tmp_path_factory.mktemp("alone") / "a.lp"
    lp.build((model, (torch.randn(3, 8, 16),), ({0: rows},)), out, target=ENGINE, packs=[str(PACK)], verify=False)
    return out


def test_one_kernel_several_and_none(bundle: Path) -> None:
    done = run("inspect", "--alone", "--json", bundle)
    assert done.exit_code == 0, done.stderr
    found = {one["layer"]: one for one in json.loads(done.stdout)["alone"]}
    assert len(found["lp_alone::gate"]["kernels"]) == 1 and len(found["lp_alone::gate"]["nodes"]) == 2
    assert len(found["lp_alone::attention"]["kernels"]) > 1
    refused = found["lp_alone::added"]
    assert refused["kernels"] is None and refused["fault"].startswith("refused: ")
    shown = run("inspect", "--alone", bundle).stdout
    assert "TensorRT alone, for 2 nodes of lp_alone::gate: 1 kernel\n" in shown
    assert "TensorRT alone, for 1 node of lp_alone::added: refused: " in shown
    assert "TensorRT alone" not in run("inspect", bundle).stdout


def test_every_layer_of_a_model(engine_bundle: Built) -> None:
    shown = json.loads(run("inspect", "--alone", "--json", engine_bundle.path).stdout)
    plugins = {one["node"] for one in shown["layers"] if one["realised"] == "plugin"}
    assert plugins and {node for one in shown["alone"] for node in one["nodes"]} == plugins
    assert all(one["kernels"] for one in shown["alone"] if one["layer"] in ("lp_small::norm", "lp_small::scale"))


def test_a_bundle_without_an_engine(engine_bundle: Built, tmp_path: Path) -> None:
    copy = engine_bundle.copy(tmp_path / "a.lp")
    manifest = json.loads((copy / "manifest.json").read_text())
    (engine,) = manifest["targets"]
    manifest["targets"] = []
    del manifest["files"][engine["file"]]
    (copy / engine["file"]).unlink()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    done = run("inspect", "--alone", copy)
    assert done.exit_code == 2 and "the bundle has no engine" in done.stderr


def input_of(*dims: Any) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, dims)


def test_ranges_of_inputs() -> None:
    dims = {"n": (1, 4, 9), "m": (2, 2, 3)}
    assert alone_build._ranges("x", input_of("n", 3, "2*m"), dims) == [[1, 3, 4], [4, 3, 4], [9, 3, 6]]
    # TensorRT wants the smallest first.
    assert alone_build._ranges("x", input_of("10 - n"), dims) == [[1], [6], [9]]
    for unknown in (None, "u0"):
        with pytest.raises(BuildError, match=r"not tried, since the size of x\.1 depends on data"):
            alone_build._ranges("x", input_of(3, unknown), dims)


def test_what_is_said() -> None:
    assert [str(Alone("a::b", ("n",), kernels)) for kernels in ((), ("k",), ("k", "l"))] == [
        "0 kernels",
        "1 kernel",
        "2 kernels",
    ]
    assert str(Alone("a::b", ("n",), None, "refused: no")) == "refused: no"
    for one in (Alone("a::b", ("n", "m"), ("k",)), Alone("a::b", ("n",), None, "refused")):
        assert Alone.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_a_worker_that_cannot_read_the_model(tmp_path: Path) -> None:
    with BuildProcess("rtx") as process, pytest.raises(BuildError):
        process.build_alone({"flavour": "rtx", "model": str(tmp_path / "none"), "plugins": "", "dims": {}})
