"""The build worker as a plain function of files, in a process of its own, with real TensorRT for RTX."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from layerport.bundle.plugin_spec import PluginSet, from_bytes, to_bytes
from layerport.engine import worker
from plan_reading import fields_in
from small_setup import ENGINE, SMALL, Built, python

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
    print(json.dumps({**result, "events": sorted({event.kind for event in events})}))
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
    assert result["sha256"] == hashlib.sha256(plan.read_bytes()).hexdigest()
    # The plan stands alone: it holds each plugin's spec, and each kernel.
    fields = [spec for spec, _ in fields_in(plan.read_bytes())]
    stored = from_bytes((engine_bundle.path / "plugins.safetensors").read_bytes()).specs
    assert {one.key for one in fields} == set(stored)
    assert {digest for one in fields for digest in one.images} == {
        digest for one in stored.values() for digest in one.digests
    }
    assert os.listdir(tmp_path) == ["a.plan"]


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


def with_twin(bundle: Path, folder: Path, *, used: bool) -> dict[str, Any]:
    """The net with its first norm twice, the twin first: used by nobody, or added to what the net computes."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(bundle / "model.onnx")
    plugins = from_bytes((bundle / "plugins.safetensors").read_bytes())
    place, node = next((place, one) for place, one in enumerate(model.graph.node) if one.op_type == "norm")
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.name, twin.output[0] = "twin", "twin_output"
    model.graph.node.insert(place, twin)
    if used:
        (last,) = model.graph.output
        model.graph.node.append(helper.make_node("Add", [last.name, "twin_output"], ["sum"], name="sum"))
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["rows", 16]))
    onnx.save(model, folder / "model.onnx")
    nodes = {"twin": plugins.nodes[node.name], **plugins.nodes}
    (folder / "plugins.safetensors").write_bytes(to_bytes(PluginSet(plugins.specs, nodes, plugins.parameters)))
    return request(
        bundle, folder / "a.plan", model=str(folder / "model.onnx"), plugins=str(folder / "plugins.safetensors")
    )


@pytest.mark.parametrize("used", [True, False], ids=["equal", "dead"])
def test_a_plan_is_whole_where_tensorrt_leaves_a_node_away(engine_bundle: Built, tmp_path: Path, used: bool) -> None:
    """The node that would keep the norms' image for all others may not be in the plan at all."""
    what = with_twin(engine_bundle.path, tmp_path, used=used)
    result = work(what)
    assert "fault" not in result, result
    fields = [spec for spec, _ in fields_in((tmp_path / "a.plan").read_bytes())]
    kept = {digest for one in fields for digest in one.images}
    assert fields and {digest for one in fields for digest in one.digests} == kept
    # A plugin that nobody needs ends TensorRT's process, so it does not come that far.
    assert len({one.key for one in fields}) == 3


LOSES = """
from layerport.engine import bound_model, plan_fields
real_bind, real_write, keeps = bound_model.bind_model, plan_fields.write_field, []
def bind_model(model, plugins, *, all_keep):
    keeps.append(all_keep)
    return real_bind(model, plugins, all_keep=all_keep)
def write_field(spec, digests):
    return real_write(spec, digests if keeps[-1] and FINALLY else ())
bound_model.bind_model, plan_fields.write_field = bind_model, write_field
"""


def test_a_plan_that_lost_images_is_built_again_with_each_plugin_s_own(engine_bundle: Built, tmp_path: Path) -> None:
    """As if TensorRT had left away the nodes that keep them."""
    what = request(engine_bundle.path, tmp_path / "a.plan")
    done = python(LOSES.replace("FINALLY", "True") + CODE + "\nprint(keeps)", json.dumps(what))
    assert done.stdout.splitlines()[-1] == "[False, True]", done.stderr
    fields = [spec for spec, _ in fields_in((tmp_path / "a.plan").read_bytes())]
    assert fields and all(one.images.keys() == one.digests for one in fields)


def test_a_plan_that_cannot_be_made_whole_is_an_error(engine_bundle: Built, tmp_path: Path) -> None:
    what = request(engine_bundle.path, tmp_path / "a.plan")
    done = python(LOSES.replace("FINALLY", "False") + CODE, json.dumps(what))
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["fault"] == "the plan lacks kernel images that its plugins need"
    assert sorted(fault[: fault.index(" image")] for fault in result["faults"]) == [
        "layer lp_small::norm:",
        "layer lp_small::scale:",
    ]
    assert os.listdir(tmp_path) == []


STREAMED = "from layerport.engine import worker; worker._STREAMED_BYTES = LIMIT\n"


def test_a_plan_that_is_streamed_has_the_same_bytes(engine_bundle: Built, tmp_path: Path) -> None:
    what = request(engine_bundle.path, tmp_path / "a.plan")
    done = python(STREAMED.replace("LIMIT", "0") + CODE, json.dumps(what))
    result = json.loads(done.stdout.splitlines()[-1])
    data = (tmp_path / "a.plan").read_bytes()
    assert data == (engine_bundle.path / "rtx-sm_89.plan").read_bytes()
    assert (result["bytes"], result["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("limit", ["0", "1 << 40"], ids=["streamed", "whole"])
def test_a_disk_that_is_full(limit: str, engine_bundle: Built, tmp_path: Path) -> None:
    full = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    full += "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
    code = STREAMED.replace("LIMIT", limit) + CODE
    done = python(full + code, json.dumps(request(engine_bundle.path, tmp_path / "a.plan")))
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["fault"] == f"writing {tmp_path / 'a.plan'} failed: File too large"
    assert os.listdir(tmp_path) == []


def plan_of_norms(folder: Path, count: int) -> int:
    """The size of a plan of so many norms, one after the other."""
    import torch

    import layerport as lp
    from small_models import ROWS, SmallNorm, sample

    norms = torch.nn.Sequential(*(SmallNorm(eps=1e-5 * (1 + place % 3)) for place in range(count))).eval()
    path = folder / f"{count}.lp"
    report = lp.build(norms, path, args=(sample(),), dynamic_shapes=ROWS, target=ENGINE, packs=[SMALL], verify=False)
    assert report.counts == {"lp_small::norm": {"plugin": count}} and report.plan_bytes is not None
    return report.plan_bytes


def test_a_further_node_of_a_layer_adds_little_to_a_plan(tmp_path: Path) -> None:
    few, many = plan_of_norms(tmp_path, 8), plan_of_norms(tmp_path, 48)
    assert (many - few) / 40 <= 4096


def test_only_an_input_of_an_open_size_has_a_range() -> None:
    class Profile:
        def __init__(self) -> None:
            self.set: dict[str, Any] = {}

        def set_shape(self, name: str, *shapes: Any) -> None:
            self.set[name] = shapes

    inputs = [
        SimpleNamespace(name="open", shape=(-1, 3)),
        SimpleNamespace(name="fixed", shape=(2, 3)),
        SimpleNamespace(name="empty", shape=(0, 3)),
        SimpleNamespace(name="number", shape=()),
    ]
    network = SimpleNamespace(num_inputs=4, get_input=inputs.__getitem__)
    shapes = {one.name: ([1, 3], [2, 3], [4, 3]) for one in inputs}
    made = worker._profile(SimpleNamespace(create_optimization_profile=Profile), network, shapes)
    assert made.set == {"open": ([1, 3], [2, 3], [4, 3])}
