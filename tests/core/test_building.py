"""Whole builds of small models: what a bundle holds, that it is the same each time, and what a build leaves alone."""

from __future__ import annotations

import filecmp
import gc
import json
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from layerport import building
from layerport.bundle.plugin_spec import from_bytes
from layerport.engine.progress import ProgressEvent
from layerport.errors import UsageError
from small_models import ROWS, WIDTH, SmallNorm, SmallScale, net, sample
from small_setup import ENGINE, SMALL, Built, python


def build(source: Any, out: Path, **options: Any) -> building.BuildReport:
    return building.build(source, out, **{"target": "portable", "packs": [SMALL], **options})


def onnx_outputs(path: Path, **inputs: Any) -> list[np.ndarray]:
    """ONNX Runtime alone."""
    session = onnxruntime.InferenceSession(str(path / "model.onnx"), providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


# What a build says and writes


def test_the_report(engine_bundle: Built) -> None:
    report = engine_bundle.report
    assert report["target"] == ENGINE and report["target_reason"] == "asked for"
    assert report["counts"] == {
        "lp_small::norm": {"plugin": 2},
        "lp_small::gate": {"decomposed": 1},
        "lp_small::scale": {"plugin": 1},
    }
    by_module = {one["module"]: one for one in report["layers"]}
    assert by_module["first"]["reason"] == "its kernel is built for sm_89"
    assert by_module["gate"]["reason"] == "the layer has no kernel"
    assert by_module["gate"]["plugin"] is None
    assert len({by_module[name]["plugin"] for name in ("first", "second", "scale")}) == 3
    assert report["plan_bytes"] == (engine_bundle.path / "rtx-sm_89.plan").stat().st_size
    assert report["verification"]["passed"] and report["verification"]["outputs"][0]["max_abs"] <= 1e-4
    assert set(report["seconds"]) == {"load", "claim", "export", "compile", "write", "engine", "verify"}


def test_the_plan_s_process_has_neither_torch_nor_a_pack(engine_bundle: Built) -> None:
    modules = set(engine_bundle.build_modules)
    assert {"tensorrt_rtx", "onnx", "layerport"} <= modules
    assert not modules & {
        "torch",
        "onnx_ir",
        "onnxscript",
        "packs",
        "small",
        "layerport_builtin_layers",
        "transformers",
    }
    assert not [name for name in modules if name.startswith("layerport_file")]


def test_the_plugins_of_a_bundle(engine_bundle: Built) -> None:
    plugins = from_bytes((engine_bundle.path / "plugins.safetensors").read_bytes())
    assert sorted(one.layer for one in plugins.specs.values()) == [
        "lp_small::norm",
        "lp_small::norm",
        "lp_small::scale",
    ]
    assert {one.attributes.get("eps") for one in plugins.specs.values()} == {None, 1e-5, 1e-3}
    assert len(plugins.nodes) == 3 and not plugins.parameters


def test_the_model_is_standard_onnx(engine_bundle: Built) -> None:
    model = onnx.load(engine_bundle.path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {(one.domain, one.name) for one in model.functions} == {
        ("lp_small", "norm"),
        ("lp_small", "gate"),
        ("lp_small", "scale"),
    }
    # Two epsilons are two bodies of one layer.
    assert len({one.overload for one in model.functions if one.name == "norm"}) == 2


def test_onnxruntime_alone_agrees_at_other_sizes(engine_bundle: Built) -> None:
    model, _, _ = net()
    for rows in (1, 5, 40):
        x = sample(rows, seed=rows)
        with torch.no_grad():
            (got,) = onnx_outputs(engine_bundle.path, x=x.numpy())
            np.testing.assert_allclose(got, model(x).numpy(), rtol=1e-4, atol=1e-5)


def test_the_same_build_gives_the_same_bytes(engine_bundle: Built, tmp_path: Path) -> None:
    code = (
        "import sys; from layerport import building; from small_models import net\n"
        f"building.build(net(), sys.argv[1], target={ENGINE!r}, packs=[{SMALL!r}])\n"
    )
    elsewhere = tmp_path / "another place"
    elsewhere.mkdir()
    done = python(code, str(elsewhere / "other name.lp"), environment={"PYTHONHASHSEED": "7", "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    compared = filecmp.dircmp(engine_bundle.path, elsewhere / "other name.lp")
    assert compared.left_only == compared.right_only == []
    assert len(compared.common_files) == 5
    _, different, errors = filecmp.cmpfiles(compared.left, compared.right, compared.common_files, shallow=False)
    assert (different, errors) == ([], [])


def test_the_same_build_in_a_process_that_has_built_before(engine_bundle: Built, tmp_path: Path) -> None:
    kept = []
    for name in ("a", "b"):
        kept.append([object() for _ in range(10_007)])  # other addresses, and so other orders of sets
        build(net(), tmp_path / f"{name}.lp")
        for file in ("model.onnx", "samples.safetensors"):
            assert filecmp.cmp(tmp_path / f"{name}.lp" / file, engine_bundle.path / file, shallow=False), (name, file)


def test_no_path_time_or_host_in_a_bundle(engine_bundle: Built) -> None:
    host = socket.gethostname()
    texts = [str(Path.home()), "/work/", "/tmp/", SMALL, "site-packages", *([host] if len(host) > 5 else [])]
    for file in engine_bundle.path.iterdir():
        data = file.read_bytes()
        for text in texts:
            assert text.encode() not in data, (file.name, text)
    manifest = json.loads((engine_bundle.path / "manifest.json").read_text())
    assert "seconds" not in manifest


# What the user asks for


def test_decompose_and_no_claim(tmp_path: Path) -> None:
    report = build(net(), tmp_path / "a.lp", target=ENGINE, decompose=["lp_small::norm"], no_claim=["lp_small::gate"])
    # What one pack's layer is not taken for, another pack's is found in.
    assert report.counts == {
        "lp_small::norm": {"decomposed": 2},
        "lp_small::scale": {"plugin": 1},
        "layerport_builtin::silu_mul": {"plugin": 1},
    }
    assert {one.reason for one in report.layers if one.layer == "lp_small::norm"} == {"--decompose lp_small::norm"}
    plugins = from_bytes((tmp_path / "a.lp" / "plugins.safetensors").read_bytes())
    assert {one.layer for one in plugins.specs.values()} == {"lp_small::scale", "layerport_builtin::silu_mul"}
    assert b"lp_small::norm" not in (tmp_path / "a.lp" / "rtx-sm_89.plan").read_bytes()
    assert report.verification is not None and report.verification.passed


def test_a_range_narrows_a_dim(tmp_path: Path) -> None:
    model, args, _ = net()
    shapes = ({0: Dim("rows")},)
    report = build((model, args, shapes), tmp_path / "a.lp", target=ENGINE, ranges=["rows=2..4..8"])
    manifest = json.loads((tmp_path / "a.lp" / "manifest.json").read_text())
    assert manifest["dims"] == [{"name": "rows", "min": 2, "opt": 4, "max": 8}]
    assert manifest["targets"][0]["profile"] == {"x": [[2, WIDTH], [4, WIDTH], [8, WIDTH]]}
    assert report.verification is not None and report.verification.passed


def test_an_exported_program(tmp_path: Path) -> None:
    model, args, shapes = net()
    program = torch.export.export(model, args, dynamic_shapes=shapes)
    report = build(program, tmp_path / "a.lp")
    assert {one.via for one in report.layers} == {"found"}
    # The built-in layers take the same places, and the pack that was named goes before one that is only installed.
    assert sorted(one.layer for one in report.layers) == ["lp_small::gate", "lp_small::norm", "lp_small::norm"]
    assert report.verification is not None and report.verification.passed


def test_a_portable_build_without_any_tensorrt(tmp_path: Path) -> None:
    """TensorRT is taken out of sight: its metadata and its modules."""
    code = (
        "import sys\nfrom importlib import machinery, metadata\n"
        "find, version = machinery.PathFinder.find_spec, metadata.version\n"
        "def seen(name, *rest):\n    return None if name.startswith('tensorrt') else find(name, *rest)\n"
        "machinery.PathFinder.find_spec = seen\n"
        "def hidden(name):\n"
        "    if name.startswith('tensorrt'):\n        raise metadata.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "metadata.version = hidden\n"
        "from layerport import building\nfrom small_models import net\n"
        f"report = building.build(net(), sys.argv[1], packs=[{SMALL!r}])\n"
        "print(report.target, '|', report.target_reason, '|', report.verification.passed)\n"
        "from layerport.errors import BuildError\n"
        "try:\n    building.build(net(), sys.argv[1] + '2', target='rtx:sm_89')\n"
        "except BuildError as error:\n    print(error.fault)\n"
    )
    done = python(code, str(tmp_path / "a.lp"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        'portable | no TensorRT is installed; pip install "layerport[rtx]" adds one | True',
        "target rtx:sm_89 needs tensorrt_rtx, which is not installed here",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.lp"]


# What becomes of a model's structure


def test_a_shared_weight_stays_one(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = SmallScale(), SmallScale()
            self.b.weight = self.a.weight
            self.linear = nn.Linear(WIDTH, WIDTH, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.b(self.linear(self.a(x))), self.linear.weight)

    report = build((Tied().eval(), (sample(),), ROWS), tmp_path / "a.lp")
    assert report.counts == {"lp_small::scale": {"function": 2}}
    model = onnx.load(tmp_path / "a.lp" / "model.onnx")
    assert [list(one.dims) for one in model.graph.initializer if len(one.dims) == 2] == [[WIDTH, WIDTH]]
    vectors = [one.name for one in model.graph.initializer if list(one.dims) == [WIDTH]]
    assert len(vectors) == 1
    assert [one.input[1] for one in model.graph.node if one.op_type == "scale"] == vectors * 2


def test_a_module_used_twice_is_two_nodes_with_one_weight(tmp_path: Path) -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = SmallNorm()
            self.alias = self.norm

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.alias(x) + x)

    report = build((Again().eval(), (sample(),), ROWS), tmp_path / "a.lp", target=ENGINE)
    assert report.counts == {"lp_small::norm": {"plugin": 2}}
    assert [(one.status, one.reason) for one in report.claims] == [
        ("claimed", "agrees within 0 (relative) over 2 calls")
    ]
    assert len({one.node for one in report.layers}) == 2
    plugins = from_bytes((tmp_path / "a.lp" / "plugins.safetensors").read_bytes())
    assert len(plugins.specs) == 1 and len(plugins.nodes) == 2
    assert report.verification is not None and report.verification.outputs[0].max_abs <= 1e-4


def test_inputs_and_outputs_of_every_form(tmp_path: Path) -> None:
    class Forms(nn.Module):
        def forward(self, pair: dict[str, Tensor], *, scale: Tensor) -> dict[str, Any]:
            total = pair["a"] + pair["b"] * scale
            return {"sum": total, "rest": (total.sum(), pair["a"] > 0)}

    args = {"pair": {"a": sample(), "b": sample(seed=2)}, "scale": torch.tensor(2.0)}
    report = build((Forms().eval(), args), tmp_path / "a.lp")
    manifest = json.loads((tmp_path / "a.lp" / "manifest.json").read_text())
    assert [port["name"] for port in manifest["outputs"]] == ["sum", "rest_0", "rest_1"]
    assert [port["dtype"] for port in manifest["outputs"]] == ["float32", "float32", "bool"]
    assert report.verification is not None and report.verification.passed


@pytest.mark.parametrize("training", [True, False])
def test_the_users_model_after_a_build(tmp_path: Path, training: bool) -> None:
    model, args, shapes = net()
    model.train(training)
    hook = model.first.register_forward_pre_hook(lambda *given: None)
    before = {name: (id(one), one.data_ptr(), one.clone()) for name, one in model.state_dict(keep_vars=True).items()}
    modules = {name: (id(one), type(one), one.training, sorted(vars(one))) for name, one in model.named_modules()}
    build((model, args, shapes), tmp_path / "a.lp")
    after = {name: (id(one), one.data_ptr()) for name, one in model.state_dict(keep_vars=True).items()}
    assert after == {name: one[:2] for name, one in before.items()}
    assert all(torch.equal(one, before[name][2]) for name, one in model.state_dict().items())
    assert modules == {
        name: (id(one), type(one), one.training, sorted(vars(one))) for name, one in model.named_modules()
    }
    assert list(model.first._forward_pre_hooks) == [hook.id]


def test_half_precision_and_bfloat16_with_plugins(tmp_path: Path, small: ModuleType) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        report = build(net(dtype), tmp_path / f"{dtype}.lp", target=ENGINE)
        assert report.counts["lp_small::norm"] == {"plugin": 2}
        assert report.verification is not None and report.verification.passed, report.verification
        assert report.verification.outputs[0].dtype == str(dtype).removeprefix("torch.")


def test_static_shapes_and_no_dynamic_dims(tmp_path: Path) -> None:
    model, args, _ = net()
    report = build((model, args), tmp_path / "a.lp", target=ENGINE)
    assert report.plan_bytes and report.verification is not None and report.verification.passed
    with pytest.raises(UsageError, match="the model has no dynamic dim rows; it has: none"):
        build((model, args), tmp_path / "b.lp", ranges=["rows=1..2..3"])


def test_a_build_sets_imports_aside_for_its_own_time_only(tmp_path: Path) -> None:
    seen: list[int] = []

    def tell(event: ProgressEvent) -> None:
        seen.append(gc.get_freeze_count())

    before = gc.get_freeze_count()
    with pytest.raises(UsageError):
        building.build("no_such_file.py:model", tmp_path / "a.lp", target="portable", progress=tell)
    building.build(net(), tmp_path / "a.lp", target="portable", packs=[SMALL], progress=tell, verify=False)
    assert max(seen) > 100_000 and gc.get_freeze_count() == before == 0


def test_what_a_build_tells_while_it_runs(tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    report = build(net(), tmp_path / "a.lp", target=ENGINE, decompose=["lp_small::norm"], progress=events.append)
    stages = [one.stage for one in events if one.kind == "stage"]
    assert stages == list(report.seconds) == ["load", "claim", "export", "compile", "write", "engine", "verify"]
    notes = [(one.stage, one.text) for one in events if one.kind == "note"]
    assert ("compile", "lp_small::norm: 2 nodes without a plugin: --decompose lp_small::norm") in notes
    begun = {one.phase: one for one in events if one.kind == "phase"}
    assert begun and all(one.stage == "engine" and isinstance(one.steps, int) for one in begun.values())
    assert {one.phase for one in events if one.kind in ("finish", "step")} <= begun.keys()
    for one in events:
        assert ProgressEvent(**json.loads(json.dumps(one.to_json()))) == one


def test_what_a_program_has_set_aside_stays(tmp_path: Path) -> None:
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        building.build(net(), tmp_path / "a.lp", target="portable", packs=[SMALL], verify=False)
        assert gc.get_freeze_count() > before // 2 > 0  # some of it was freed meanwhile
    finally:
        gc.unfreeze()
