"""The build worker as a plain function of files, in a process of its own, with real TensorRT for RTX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from small_setup import Built, python

pytest.importorskip("tensorrt_rtx")

CODE = """
import json, sys
from layerport.engine.worker import build_plan
from layerport.errors import BuildError
events = []
try:
    result = build_plan(json.loads(sys.argv[1]), events.append)
except BuildError as error:
    print(json.dumps({"fault": error.fault, "faults": error.faults, "repair": error.repair}))
else:
    print(json.dumps({**result, "events": sorted({event["event"] for event in events})}))
"""


def request(bundle: Path, plan: Path, **changes: Any) -> dict[str, Any]:
    manifest = json.loads((bundle / "manifest.json").read_text())
    return {
        "model": str(bundle / "model.onnx"),
        "plugins": str(bundle / "plugins.safetensors"),
        "plan": str(plan),
        "flavour": "rtx",
        "architectures": ["sm_89"],
        "profile": manifest["targets"][0]["profile"],
        **changes,
    }


def work(what: dict[str, Any]) -> dict[str, Any]:
    done = python(CODE, json.dumps(what))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_plan_from_files_is_the_one_in_the_bundle(engine_bundle: Built, tmp_path: Path) -> None:
    plan = tmp_path / "a.plan"
    result = work(request(engine_bundle.path, plan))
    assert result["bytes"] == plan.stat().st_size and result["plugins"] == 3
    assert plan.read_bytes() == (engine_bundle.path / "rtx-sm_89.plan").read_bytes()
    assert {"phase", "finish"} <= set(result["events"])
    assert "torch" not in result["modules"]
    # The plan stands alone: it holds each plugin's spec with its kernel.
    assert plan.read_bytes().count(b"\\u007fELF") + plan.read_bytes().count(b"\x7fELF") >= 3


def test_plugins_that_are_damaged(engine_bundle: Built, tmp_path: Path) -> None:
    damaged = tmp_path / "plugins.safetensors"
    damaged.write_bytes((engine_bundle.path / "plugins.safetensors").read_bytes()[:-5])
    result = work(request(engine_bundle.path, tmp_path / "a.plan", plugins=str(damaged)))
    assert result["fault"].startswith("plugin specs cannot be read")
    assert not (tmp_path / "a.plan").exists()


def test_a_profile_that_tensorrt_does_not_take(engine_bundle: Built, tmp_path: Path) -> None:
    what = request(engine_bundle.path, tmp_path / "a.plan", profile={"x": [[9, 16], [3, 16], [1, 16]]})
    result = work(what)
    assert "fault" in result and result["repair"], result
    assert not (tmp_path / "a.plan").exists()


def test_an_operator_that_tensorrt_does_not_know(engine_bundle: Built, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Strange", ["x"], ["y"], name="odd_one", domain="nowhere")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 16])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    what = request(
        engine_bundle.path, tmp_path / "a.plan", model=str(tmp_path / "model.onnx"), profile={"x": [[2, 16]] * 3}
    )
    result = work(what)
    assert result["fault"] == "TensorRT cannot read the model"
    assert any("odd_one" in fault and "Strange" in fault for fault in result["faults"]), result
    assert "--decompose LAYER" in result["repair"]
