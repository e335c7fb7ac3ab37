"""Plans built with the native plugin, really by TensorRT for RTX: the same bytes as with the Python one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plan_reading import fields_in
from small_setup import python

pytest.importorskip("tensorrt_rtx")
torch = pytest.importorskip("torch")

CODE = """
import json, sys
from layerport.engine import flavours, native
from layerport.engine.worker import build_plan
from layerport.errors import BuildError
try:
    build_plan(json.loads(sys.argv[1]))
except BuildError as error:
    sys.exit(f"{error.fault} {error.faults}")
trt = flavours.load("rtx")
creator = trt.get_plugin_registry().get_creator("Kernel", "1", "layerport")
print(native.library() is not None, creator.api_language == trt.APILanguage.CPP)
"""


def test_every_layer_of_the_built_in_pack_is_among_them(bundles: list[Path]) -> None:
    from layerport_builtin_layers.plugin import layerport_layers

    entries = [one for bundle in bundles for one in json.loads((bundle / "manifest.json").read_text())["layers"]]
    assert {one.name for one in layerport_layers()} <= {one["layer"] for one in entries if one["realised"] == "plugin"}


def requests(bundles: list[Path], folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    return [
        {
            "model": str(bundle / "model.onnx"),
            "plugins": str(bundle / "plugins.safetensors"),
            "plan": str(folder / f"{bundle.stem}.plan"),
            "flavour": "rtx",
            "architectures": ["sm_89"],
            "profile": json.loads((bundle / "manifest.json").read_text())["targets"][0]["profile"],
        }
        for bundle in bundles
    ]


def test_both_build_the_same_plans(bundles: list[Path], package: dict[str, str], tmp_path: Path) -> None:
    for name, environment in (("native", package), ("plain", {})):
        for request in requests(bundles, tmp_path / name):
            done = python(CODE, json.dumps(request), environment=environment, timeout=280)
            assert done.returncode == 0, done.stderr
            assert done.stdout.split() == [str(name == "native")] * 2
    for bundle in bundles:
        plans = [(tmp_path / name / f"{bundle.stem}.plan").read_bytes() for name in ("native", "plain")]
        assert plans[0] == plans[1], bundle.stem
        assert fields_in(plans[0])
        assert plans[0] == next(bundle.glob("*.plan")).read_bytes()


BOUND = """
import json, sys
import onnx
from pathlib import Path
from layerport.bundle.plugin_spec import from_bytes
from layerport.engine.bound_model import bind_model
bundle, out = map(Path, sys.argv[1:])
model = onnx.load(bundle / "model.onnx")
onnx.save(bind_model(model, from_bytes((bundle / "plugins.safetensors").read_bytes())), out)
"""
ALONE = """
import json, sys
from layerport.engine import configuring, flavours
from layerport.engine.options import EngineOptions
trt = flavours.load("rtx")
model, library, plan, profile = sys.argv[1:]
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
trt.get_plugin_registry().load_library(library)
network = builder.create_network()
parser = trt.OnnxParser(network, logger)
assert parser.parse_from_file(model), [parser.get_error(place).desc() for place in range(parser.num_errors)]
config = builder.create_builder_config()
configuring.set_architectures(trt, config, ["sm_89"], logger)
configuring.configure(trt, config, EngineOptions(), logger)
shapes = builder.create_optimization_profile()
for name, sizes in json.loads(profile).items():
    shapes.set_shape(name, *sizes)
config.add_optimization_profile(shapes)
open(plan, "wb").write(builder.build_serialized_network(network, config))
assert not [name for name in sys.modules if name == "layerport.engine.plugin"]
runtime = trt.Runtime(logger)
assert runtime.deserialize_cuda_engine(open(plan, "rb").read()) is None
"""


def test_a_bound_model_needs_the_library_and_nothing_of_ours(
    bundles: list[Path], compiled: Path, tmp_path: Path
) -> None:
    """From a file, as `trtexec --onnx` does it; the same plan, which opens as far as the missing driver."""
    for bundle in bundles:
        bound, plan = tmp_path / f"{bundle.stem}.onnx", tmp_path / f"{bundle.stem}.plan"
        made = python(BOUND, str(bundle), str(bound))
        assert made.returncode == 0, made.stderr
        (target,) = json.loads((bundle / "manifest.json").read_text())["targets"]
        library = str(compiled / "liblayerport_plugins.so")
        done = python(ALONE, str(bound), library, str(plan), json.dumps(target["profile"]))
        assert done.returncode == 0, done.stderr
        assert plan.read_bytes() == next(bundle.glob("*.plan")).read_bytes()
        assert "CUDA driver version is insufficient" in done.stderr + done.stdout
        assert "layerport" not in done.stderr + done.stdout


REFUSED = """
import json, sys
from layerport.engine import flavours
trt = flavours.load("rtx")
class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []
    def log(self, severity, message):
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            self.lines.append(message)
logger = Logger()
builder = trt.Builder(logger)
trt.get_plugin_registry().load_library(sys.argv[1])
for model in sys.argv[2:]:
    logger.lines.clear()
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    built = parser.parse_from_file(model)
    if built:
        built = builder.build_serialized_network(network, builder.create_builder_config()) is not None
    print(json.dumps([built, logger.lines]))
"""


def test_what_tensorrt_is_told_of_a_model_that_is_damaged(bundles: list[Path], compiled: Path, tmp_path: Path) -> None:
    """By the library, in TensorRT's own log, with the node's name; no build, and no crash."""
    import onnx

    made = python(BOUND, str(bundles[0]), str(tmp_path / "bound.onnx"))
    assert made.returncode == 0, made.stderr

    def damaged(name: str, change: Any) -> str:
        model = onnx.load(tmp_path / "bound.onnx")
        node = next(one for one in model.graph.node if one.domain == "layerport")
        change(node, next(one for one in node.attribute if one.name == "layerport_spec"))
        onnx.save(model, path := tmp_path / f"{name}.onnx")
        return str(path)

    def set_text(change: Any) -> Any:
        return lambda node, field: setattr(field, "s", change(field.s))

    cases = {
        "short": (set_text(lambda text: text[:-20]), "its head says"),
        "head": (set_text(lambda text: text[:20]), "a plugin's field is cut short"),
        "format": (set_text(lambda text: text[:17] + b"\4" + text[18:]), "has format 4, this library reads 3"),
        "other": (set_text(lambda text: b"what"), "the node's field is no plugin spec of layerport"),
        "changed": (set_text(lambda text: text[:60] + bytes([text[60] ^ 1]) + text[61:]), "does not have the content"),
        "none": (lambda node, field: node.attribute.remove(field), "it names no plugin spec"),
        "inputs": (lambda node, field: node.input.append(node.input[0]), "the node has"),
    }
    models = [damaged(name, change) for name, (change, _) in cases.items()]
    done = python(REFUSED, str(compiled / "liblayerport_plugins.so"), *models)
    assert done.returncode == 0, done.stderr
    for line, (name, (_, said)) in zip(done.stdout.splitlines(), cases.items(), strict=True):
        built, told = json.loads(line)
        assert not built, name
        assert [one for one in told if said in one and "node " in one], (name, told)
