"""A plan needs no pack: its plugins come to life from its own bytes, with torch, packs and compilers out of reach.

TensorRT's Python module, registry and plugin classes are real; the driver is a double that records launches.  That
TensorRT calls them in this way on a GPU only a GPU can show.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
import tracemalloc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch_doubles import LaunchDriver, SilentDriver
from layerport.bundle.kernel_code import KernelCode
from layerport.bundle.plugin_spec import PluginSet, PluginSpec, from_bytes, to_bytes
from layerport.engine import flavours, plugin, runner
from layerport.errors import BuildError, UsageError
from layerport.sizes.expressions import Symbol
from small_setup import TESTS, Built, python

ALONE = """
import importlib.abc, json, struct, sys

BLOCKED = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "layerport_builtin_layers", "packs", "triton",
           "cuda.bindings.nvrtc", "cuda.core", "layerport.packs.host", "layerport.layers.layer",
           "layerport.kernels.toolchains.nvrtc")

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == one or name.startswith(one + ".") for one in BLOCKED):
            raise ImportError(f"{name} is out of reach in this test")

sys.meta_path.insert(0, Block())
from launch_doubles import LaunchDriver
from layerport.bundle.bundle import Bundle
from layerport.engine import creators, engine_session, flavours, plugin
import layerport.kernels.launcher, layerport.engine.runner

driver = LaunchDriver("sm_89")
layerport.kernels.launcher.require_driver = lambda: driver
plugin.native_architecture = lambda: "sm_89"

bundle = Bundle.open(sys.argv[1])
plan = engine_session.plan_for(bundle, "sm_89")
data = bundle.file(plan.file).read_bytes()
trt = flavours.load(plan.flavour)
creators.acquire(trt, plan.layers, plan.classes)
registry = trt.get_plugin_registry()

# The fields as the plan itself holds them, first those that keep no image: a run may meet them in any order.
from plan_reading import fields_in
specs = [field for spec, field in sorted(fields_in(data), key=lambda one: len(one[0].images))]

from layerport.engine.plan_fields import read_field
told, kept, engine = [], [], []
for field in dict.fromkeys(specs):
    spec = read_field(field)
    creator = registry.get_creator(spec.short_name, "1", spec.namespace)
    fields = trt.PluginFieldCollection([trt.PluginField(plugin.KEY_FIELD, field, trt.PluginFieldType.INT8)])
    engine.append((spec, creator.create_plugin("node", fields, trt.TensorRTPhase.RUNTIME)))
for spec, at_rest in engine:
    made = at_rest.attach_to_context(None)
    kept.append(made)
    made.set_tactic(0)
    driver.sizes = [8, 8, 8, 8, 4] if spec.short_name == "scale" else [8, 8, 8, 4, 4]
    for rows in (3, 600):
        inputs, outputs = [], []
        for dims, into in (((rows, 16), inputs), ((16,), inputs), ((rows, 16), outputs)):
            one = trt.PluginTensorDesc()
            one.dims, one.type, one.format = dims, trt.float32, trt.TensorFormat.LINEAR
            into.append(one)
        made.on_shape_change(inputs, outputs)
        made.enqueue(inputs, outputs, [0x1000, 0x2000], [0x3000], 0, 77)
    told.append([spec.layer, spec.attributes, driver.launches[-2:]])
loaded = sorted(name for name in sys.modules if any(name == one or name.startswith(one + ".") for one in BLOCKED))
without = sum(not spec.images for spec, _ in engine)
print(json.dumps({"without": without, "told": told, "loaded": loaded, "libraries": len(driver.libraries)}))
"""


def test_a_plan_s_plugins_run_without_torch_packs_and_compilers(engine_bundle: Built) -> None:
    done = python(ALONE, str(engine_bundle.path))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["loaded"] == []
    assert sorted(one[0] for one in answer["told"]) == ["lp_small::norm", "lp_small::norm", "lp_small::scale"]
    assert answer["without"] == 1  # the norms share an image
    assert answer["libraries"] == 2  # the norms share one, though their launches pass another epsilon
    for layer, attributes, launches in answer["told"]:
        for rows, (grid, block, shared, stream, arguments) in zip((3, 600), launches, strict=True):
            assert (shared, stream, arguments[:3]) == (0, 77, [0x1000, 0x2000, 0x3000])
            if layer == "lp_small::scale":
                assert (grid, block) == ([-(-rows * 16 // 256), 1, 1], [256, 1, 1])
                assert arguments[3:] == [rows * 16, 16]
            else:
                (epsilon,) = struct.unpack("<I", struct.pack("<f", attributes["eps"]))
                assert (grid, block) == ([rows, 1, 1], [128, 1, 1]) and arguments[3:] == [16, epsilon]


def test_a_session_needs_no_torch_and_no_pack_up_to_the_driver(engine_bundle: Built) -> None:
    """Everything but the GPU's own answer: with a double for the driver, real TensorRT is asked to open the plan."""
    code = (
        ALONE.split("driver = LaunchDriver")[0]
        + """
import layerport as lp, layerport.engine.gpu
layerport.engine.gpu.require_driver = lambda: LaunchDriver("sm_89")
try:
    lp.load(sys.argv[1], device="cuda")
except lp.BuildError as error:
    print(error)
"""
    )
    done = python(code, str(engine_bundle.path))
    assert done.returncode == 0, done.stderr
    assert "runs here: TensorRT cannot open rtx-sm_89.plan" in done.stdout and "CUDA" in done.stdout


def spec_of(bundle: Built, layer: str) -> PluginSpec:
    specs = from_bytes((bundle.path / "plugins.safetensors").read_bytes()).specs
    return next(one for one in specs.values() if one.layer == layer)


def with_choice(one: PluginSpec) -> PluginSpec:
    """The same layer with a second kernel that takes many rows only, in front."""
    (kernel,) = one.kernels
    few = KernelCode("many_rows", kernel.steps, Symbol("x.0") >= 32)
    values = {name: getattr(one, name) for name in PluginSpec.__dataclass_fields__}
    return PluginSpec(**{**values, "kernels": (few, kernel)})


def described(*dims: tuple[int, ...]) -> list[Any]:
    return [SimpleNamespace(dims=one) for one in dims]


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are shared by the whole process, so that a test would meet the driver of the one before."""
    monkeypatch.setattr(runner, "_loaded", weakref.WeakValueDictionary())


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> LaunchDriver:
    driver = LaunchDriver()
    driver.sizes = [8, 8, 8, 8, 4]
    monkeypatch.setattr("layerport.kernels.launcher.require_driver", lambda: driver)
    monkeypatch.setattr(plugin, "native_architecture", lambda: "sm_89")
    return driver


def test_kernels_are_tactics_and_each_is_right_for_every_shape(
    engine_bundle: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recorder:
        def __init__(self, image: bytes, symbol: str, rule: Any) -> None:
            names.append(self)

        def prepare(self, sizes: Any) -> Any:
            chosen.append(("many_rows", "launch_scale")[names.index(self)])
            return self

        def launch(self, pointers: Any, stream: int) -> None:
            raise AssertionError

    names: list[Any] = []
    chosen: list[str] = []
    monkeypatch.setattr(plugin, "native_architecture", lambda: "sm_89")
    monkeypatch.setattr(plugin, "KernelRunner", lambda one, device: runner.KernelRunner(one, device, Recorder))
    one = with_choice(spec_of(engine_bundle, "lp_small::scale"))
    made = plugin.plugin_class(flavours.load("rtx"))(one)
    assert made.get_valid_tactics() == [1, 2]
    for tactic, wanted in (
        (0, ["launch_scale", "many_rows"]),
        (1, ["launch_scale", "many_rows"]),
        (2, ["launch_scale", "launch_scale"]),
    ):
        names.clear()
        chosen.clear()
        context = made.attach_to_context(None)
        context.set_tactic(tactic)
        for rows in (4, 64):
            context.on_shape_change(described((rows, 16), (16,)), described((rows, 16)))
        assert chosen == wanted, tactic
        # TensorRT may also choose after the shapes are known, and copies keep the choice.
        chosen.clear()
        context.set_tactic(2)
        assert chosen == ["launch_scale"]
    with pytest.raises(BuildError) as caught:
        made.set_tactic(3)
    assert caught.value.fault == "layer lp_small::scale has 2 kernels, tactic 3 was asked for"
    again = context.clone()
    chosen.clear()
    names.clear()
    again.on_shape_change(described((64, 16), (16,)), described((64, 16)))
    assert chosen[-1] == "launch_scale"


def test_one_kernel_is_no_choice(engine_bundle: Built) -> None:
    made = plugin.plugin_class(flavours.load("rtx"))(spec_of(engine_bundle, "lp_small::scale"))
    assert made.get_valid_tactics() == []


def test_tensorrt_builds_tactics_and_takes_the_first_where_it_cannot_measure(
    engine_bundle: Built, tmp_path: Path
) -> None:
    """Built for real: the plan names, in clear text, the tactic that it runs."""
    import re

    plugins = from_bytes((engine_bundle.path / "plugins.safetensors").read_bytes())
    specs = {}
    keys = {}
    for key, one in plugins.specs.items():
        changed = with_choice(one) if one.layer == "lp_small::scale" else one
        specs[changed.key] = changed
        keys[key] = changed.key
    changed = PluginSet(specs, {node: keys[key] for node, key in plugins.nodes.items()}, plugins.parameters)
    (tmp_path / "plugins").write_bytes(to_bytes(changed))
    manifest = json.loads((engine_bundle.path / "manifest.json").read_text())
    request = {
        "model": str(engine_bundle.path / "model.onnx"),
        "plugins": str(tmp_path / "plugins"),
        "plan": str(tmp_path / "plan"),
        "flavour": "rtx",
        "architectures": ["sm_89"],
        "profile": manifest["targets"][0]["profile"],
    }
    code = "import json, sys; from layerport.engine.worker import build_plan; build_plan(json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", code, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=TESTS)
    assert done.returncode == 0, done.stderr
    tactics = set(re.findall(rb'tactic_id="[^"]*_(\d+)"', (tmp_path / "plan").read_bytes()))
    assert tactics <= {b"0", b"1"} and b"1" in tactics


def test_enqueue_before_shapes_is_an_error(engine_bundle: Built, launches: LaunchDriver) -> None:
    one = spec_of(engine_bundle, "lp_small::scale")
    with pytest.raises(UsageError) as caught:
        runner.KernelRunner(one, "sm_89").launch({}, 0)
    assert caught.value.fault == "layer lp_small::scale is launched before its shapes are set"


def test_a_kernel_is_loaded_once_and_unloaded_with_its_last_user(engine_bundle: Built, launches: LaunchDriver) -> None:
    import gc

    one = spec_of(engine_bundle, "lp_small::scale")
    made = [plugin.plugin_class(flavours.load("rtx"))(one).attach_to_context(None) for _ in range(3)]
    for rows, each in enumerate(made, 1):
        each.on_shape_change(described((rows, 16), (16,)), described((rows, 16)))
    assert len(launches.libraries) == 1
    for rows, each in enumerate(made, 1):  # each keeps sizes of its own
        each.enqueue(None, None, [16, 32], [48], 0, 5)
        assert launches.launches[-1] == ((1, 1, 1), (256, 1, 1), 0, 5, [16, 32, 48, rows * 16, 16])
    del each
    made.clear()
    gc.collect()
    assert launches.libraries == {}


def enqueuer(bundle: Built, monkeypatch: pytest.MonkeyPatch) -> Any:
    driver = SilentDriver()
    monkeypatch.setattr("layerport.kernels.launcher.require_driver", lambda: driver)
    monkeypatch.setattr(plugin, "native_architecture", lambda: "sm_89")
    made = plugin.plugin_class(flavours.load("rtx"))(spec_of(bundle, "lp_small::scale")).attach_to_context(None)
    made.on_shape_change(described((64, 16), (16,)), described((64, 16)))
    return made


def test_enqueue_costs_the_host_less_than_ten_microseconds(
    engine_bundle: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the driver's own share, which a double cannot know; the least of many rounds, for a shared machine."""
    made = enqueuer(engine_bundle, monkeypatch)
    inputs, outputs = [0x7F0000001000, 0x7F0000002000], [0x7F0000003000]
    best = float("inf")
    for _ in range(50):
        begun = time.perf_counter()
        for _ in range(200):
            made.enqueue(None, None, inputs, outputs, 0, 0x55)
        best = min(best, (time.perf_counter() - begun) / 200)
    assert best <= 10e-6


def test_enqueue_allocates_nothing(engine_bundle: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    made = enqueuer(engine_bundle, monkeypatch)
    inputs, outputs = [0x7F0000001000, 0x7F0000002000], [0x7F0000003000]
    for _ in range(10):
        made.enqueue(None, None, inputs, outputs, 0, 0x55)
    figures = []
    tracemalloc.start()
    try:
        for _ in range(5):  # other threads of the process allocate too, now and then
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for _ in range(200):
                made.enqueue(None, None, inputs, outputs, 0, 0x55)
            after, peak = tracemalloc.get_traced_memory()
            figures.append((after - before, peak - before))
    finally:
        tracemalloc.stop()
    kept, most = (min(column) for column in zip(*figures, strict=True))
    # Nothing stays, and at no time is there more than the arguments of one call.
    assert kept <= 64
    assert most <= 1024
