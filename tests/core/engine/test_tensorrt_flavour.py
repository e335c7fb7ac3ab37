"""The `tensorrt` flavour: what our code asks of it is what its real bindings have; what a machine without it is told.

TensorRT's libraries are on no package index, so nothing is built here; its bindings are, and run over empty libraries.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import foreign_names
import tensorrt_stub
from layerport.engine import dim_expressions as tensorrt_expressions
from layerport.engine import flavours, options
from layerport.engine.child import BuildProcess
from layerport.errors import BuildError
from layerport.parameters.frameworks import tensorrt_dtypes
from layerport.targets import RTX_ARCHITECTURES, Target
from small_setup import TESTS, python

DESCRIBE = (
    "import sys, foreign_names; from layerport.engine import flavours\n"
    "print(foreign_names.describe(flavours.load(sys.argv[1])))\n"
)
# What one flavour has and the other lacks, of all that our code uses.
ONLY_RTX = {
    *("ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"),
    *("CudaGraphStrategy", "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE", "IRuntimeConfig.cuda_graph_strategy"),
    *("IRuntimeConfig.create_runtime_cache", "IRuntimeConfig.set_runtime_cache"),
    *("IRuntimeCache.serialize", "IRuntimeCache.deserialize"),
}
PER_FLAVOUR = pytest.mark.parametrize("flavour", ["rtx", "tensorrt"])


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `import tensorrt` finds the real bindings over empty libraries."""
    folder = tmp_path_factory.mktemp("tensorrt")
    found = tensorrt_stub.make(folder)
    return {**found, "PYTHONPATH": os.pathsep.join([str(folder), *paths()])}


def paths() -> list[str]:
    return [path for path in (str(TESTS), str(TESTS / "core"), os.environ.get("PYTHONPATH")) if path]


@pytest.fixture(scope="session")
def described(stub: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What the bindings of each flavour have."""
    pytest.importorskip("tensorrt_rtx")
    return {flavour: json.loads(inside(stub, DESCRIBE, flavour)) for flavour in ("rtx", "tensorrt")}


def inside(environment: dict[str, str], code: str, *arguments: str) -> str:
    done = python(code, *arguments, environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_bindings_are_the_real_ones(stub: dict[str, str]) -> None:
    code = (
        "import sys; from layerport.engine import flavours; from layerport.targets import Target\n"
        "trt = flavours.load('tensorrt'); flavours.require(Target('tensorrt', ('sm_90',)))\n"
        "print(flavours.version_of('tensorrt'), trt.__version__, trt.IBuilderConfig.__module__)\n"
        "assert 'torch' not in sys.modules and 'tensorrt_rtx' not in sys.modules\n"
    )
    version = tensorrt_stub.bindings_version()
    assert inside(stub, code).split() == [version, version, "tensorrt_bindings.tensorrt"]
    assert int(version.partition(".")[0]) >= 11


# Names and signatures.


@PER_FLAVOUR
def test_every_name_and_signature_that_we_use_is_there(flavour: str, described: Any) -> None:
    found = foreign_names.uses()
    assert len({use.text for use in found}) > 60, "the source is not read right"
    faults = {use: foreign_names.faults_of(use, described[flavour]) for use in found}
    lacking = {use.text for use, fault in faults.items() if fault == "is not there"}
    others = [f"{use.place}: {use.text} {fault}" for use, fault in faults.items() if fault and use.text not in lacking]
    assert others == []
    assert lacking == (ONLY_RTX if flavour == "tensorrt" else set())


def test_the_check_sees_what_is_wrong(described: Any) -> None:
    def fault(owner: str, name: str, kind: str = "call", *more: Any) -> str | None:
        return foreign_names.faults_of(foreign_names.Use("here", owner, name, kind, *more), described["tensorrt"])

    assert fault("IBuilderConfig", "set_flags") == "is not there"
    assert fault("NoSuchClass", "set_flag") == "is not there"
    assert fault("IBuilderConfig", "num_optimization_profiles", "write") == "cannot be set"
    assert fault("IBuilderConfig", "flags") == "is no method"
    assert fault("IBuilderConfig", "set_flag", "call", 1) is None
    assert "is called with 2 arguments" in str(fault("IBuilderConfig", "set_flag", "call", 2))
    assert "is called with 0 arguments" in str(fault("IBuilderConfig", "set_flag"))
    assert fault("OnnxParser", "parse", "call", 1, ("path",)) is None
    assert "['file']" in str(fault("OnnxParser", "parse", "call", 1, ("file",)))
    assert fault("", "PluginField", "call", 3) is None
    assert "is called with 5 arguments" in str(fault("", "PluginField", "call", 5))
    assert foreign_names.undeclared() == []


def test_signatures_are_read_from_docstrings() -> None:
    doc = (
        "f(*args, **kwargs)\nOverloaded function.\n\n1. f(self: a.B) -> None\n\n"
        "2. f(self: a.B, x: dict[str, int], y: a.T = <T.ON: 8>, z: str = '') -> tuple[int, int]\n  text (a: b) -> x\n"
    )
    assert foreign_names.signatures_of(doc) == [
        [("self", True)],
        [("self", True), ("x", True), ("y", False), ("z", False)],
    ]


@PER_FLAVOUR
def test_names_that_are_put_together_at_run_time_are_there(flavour: str, described: Any) -> None:
    members = described[flavour]
    names = {
        "DataType": {*tensorrt_dtypes._NAMES.values(), "INT64"},
        "PluginFieldType": set(tensorrt_dtypes._FIELDS.values()),
        "DimensionOperation": {*tensorrt_expressions._PAIRWISE.values(), "SUM", "SUB", "PROD"},
        "HardwareCompatibilityLevel": {"AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"},
        "BuilderFlag": {"REFIT", "REFIT_IDENTICAL"},
    }
    if flavour == "rtx":
        names["ComputeCapability"] = {name.replace("_", "").upper() for name in RTX_ARCHITECTURES}
    assert {kind: wanted - set(members[kind]) for kind, wanted in names.items()} == {kind: set() for kind in names}
    forms = options.OPTIONS["hardware_compatibility"].form
    assert {form.upper() for form in forms.split("|")} == names["HardwareCompatibilityLevel"]


# Classes of ours on classes of TensorRT.

OPTIONAL = {"destroy"}
REQUIRED = {
    "IPluginV3OneCore": {"plugin_name", "plugin_version", "plugin_namespace"},
    "IPluginV3OneBuild": {"num_outputs"},
    "IPluginCreatorV3One": {"name", "plugin_version", "plugin_namespace", "field_names"},
}
OWN = {"spec", "kept", "failure", "errors", "warnings", "listed", "shape", "size", "digest", "search"}
OWN_METHODS = {
    *("mark", "since", "offer", "load"),
    # TensorRT's Python class has no such members to look at; its documentation says to write them.
    *("reallocate_output", "reallocate_output_async", "notify_shape"),
}


@PER_FLAVOUR
def test_our_classes_override_what_their_bases_have(flavour: str, described: Any) -> None:
    found = {one.place: one for one in foreign_names.derived()}
    assert {f"engine/plugin.py {name}" for name in ("SpecPlugin", "KernelPlugin", "KernelCreator")} <= set(found)
    assert {"engine/worker.py Logger", "engine/worker.py Monitor"} <= set(found)
    faults = [f"{one.place}: {fault}" for one in found.values() for fault in class_faults(one, described[flavour])]
    assert faults == []


def class_faults(one: foreign_names.Derived, described: Any) -> list[str]:
    members = {name: member for base in one.bases for name, member in described[base].items()}
    methods = {name: member for name, member in members.items() if member["kind"] == "method" and name[0] != "_"}
    faults = [f"{name} is no method of its bases" for name in set(one.methods) - set(methods) - OWN_METHODS]
    faults += [f"{name} is not there" for name in set(methods) - set(one.methods) - OPTIONAL]
    for name in set(methods) & set(one.methods):
        counts = {len(signature) for signature in foreign_names.signatures_of(methods[name]["doc"])}
        if counts != {one.methods[name]}:
            faults.append(f"{name} takes {one.methods[name]} parameters, its base {counts}")
    settable = {name for name, member in members.items() if member.get("settable")}
    faults += [f"{name} cannot be set" for name in one.attributes - settable - OWN]
    required = set().union(*(REQUIRED.get(base, set()) for base in one.bases))
    return faults + [f"{name} is not set" for name in required - one.attributes]


PLUGIN = """
import sys
from plugin_specs import spec
from layerport.engine import flavours, plugin
from layerport.engine.plan_fields import read_field
trt = flavours.load(sys.argv[1])
one = spec()
made = plugin.plugin_class(trt)(one)
assert isinstance(made, trt.IPluginV3) and made.clone() is not made
assert made.get_capability_interface(trt.PluginCapabilityType.BUILD) is made
assert (made.plugin_name, made.plugin_namespace, made.plugin_version) == ("Kernel", "layerport", "1")
assert made.metadata_string == "pack::layer"
assert (made.num_outputs, made.timing_cache_id) == (2, one.key)
assert made.get_output_data_types([]) == [trt.DataType.FLOAT, trt.DataType.INT64]
def tensor(kind, form=trt.TensorFormat.LINEAR):
    found = trt.DynamicPluginTensorDesc()
    inner = found.desc
    inner.type, inner.format = kind, form
    found.desc = inner
    return found
kinds = [trt.DataType.HALF, trt.DataType.BF16, trt.DataType.FLOAT, trt.DataType.INT64]
tensors = [tensor(kind) for kind in kinds]
assert [made.supports_format_combination(place, tensors, 2) for place in range(4)] == [True] * 4
assert not made.supports_format_combination(0, [tensor(trt.DataType.FLOAT)], 2)
assert not made.supports_format_combination(0, [tensor(trt.DataType.HALF, trt.TensorFormat.CHW32)], 2)
kept = made.get_fields_to_serialize()
field, = kept
assert (field.name, field.type) == (plugin.KEY_FIELD, trt.PluginFieldType.INT8)
assert read_field(bytes(field.data)).key == one.key
maker = plugin.creator_class(trt)("layerport", "Kernel", {}, False)
assert (maker.name, maker.plugin_namespace, maker.plugin_version) == ("Kernel", "layerport", "1")
assert [declared.name for declared in maker.field_names] == [plugin.KEY_FIELD]
again = maker.create_plugin("node", kept, trt.TensorRTPhase.RUNTIME)
assert again.spec.key == one.key and isinstance(again, trt.IPluginV3)
text = trt.PluginField(plugin.KEY_FIELD, bytes(field.data) + b"\\0", trt.PluginFieldType.CHAR)
assert maker.create_plugin("node", trt.PluginFieldCollection([text]), trt.TensorRTPhase.BUILD).spec.key == one.key
print("done")
"""


@PER_FLAVOUR
def test_a_plugin_and_its_creator_over_the_real_bindings(flavour: str, stub: dict[str, str]) -> None:
    assert inside(stub, PLUGIN, flavour).strip() == "done"


CONVERSIONS = """
import sys
import ml_dtypes, numpy as np
from layerport.conversion import from_standard, to_standard
from layerport.engine import flavours
trt = flavours.load(sys.argv[1])
assert sys.modules[trt.IExprBuilder.__module__].DimensionOperation is trt.DimensionOperation
for kind in (np.float32, np.float16, np.int32, np.int64, np.int8, np.uint8, np.bool_, ml_dtypes.bfloat16):
    array = np.arange(6).astype(kind)
    weights = from_standard(array, "tensorrt")
    assert type(weights) is trt.Weights and weights.size == 6
    back = to_standard(weights, path="w").array
    assert back.dtype == array.dtype and back.tobytes() == array.tobytes()
array = np.arange(3, dtype=np.float32)
field = from_standard(array, "tensorrt.PluginField", name="w")
assert (type(field), field.name, field.type) == (trt.PluginField, "w", trt.PluginFieldType.FLOAT32)
assert to_standard(field, path="w").array.tolist() == [0, 1, 2]
print("done")
"""


@PER_FLAVOUR
def test_conversions_over_the_real_bindings(flavour: str, stub: dict[str, str]) -> None:
    assert inside(stub, CONVERSIONS, flavour).strip() == "done"


def test_logger_and_monitor_over_the_real_bindings(stub: dict[str, str]) -> None:
    code = (
        "from layerport.engine import flavours, worker\n"
        "trt = flavours.load('tensorrt'); told = []\n"
        "logger, monitor = worker._logger(trt, told.append), worker._monitor(trt, told.append)\n"
        "logger.log(trt.ILogger.ERROR, 'bad'); logger.log(trt.ILogger.WARNING, 'odd')\n"
        "logger.log(trt.ILogger.INFO, 'fine')\n"
        "monitor.phase_start('a', None, 3); assert monitor.step_complete('a', 0) is True; monitor.phase_finish('a')\n"
        "assert (logger.errors, logger.warnings) == (['bad'], ['odd'])\n"
        "assert [one.kind for one in told] == ['log', 'phase', 'step', 'finish']\n"
    )
    inside(stub, code)


# Where it is not, too old, or has no GPU.


def test_a_build_where_tensorrt_finds_no_gpu(stub: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stub.items():
        monkeypatch.setenv(name, value)
    with BuildProcess("tensorrt") as process, pytest.raises(BuildError) as caught:
        process.build({"flavour": "tensorrt"}, lambda event: None)
    assert caught.value.fault == "TensorRT cannot start here"
    assert "needs a GPU and a driver" in str(caught.value.repair)


def test_a_build_where_its_libraries_are_missing(stub: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", stub["PYTHONPATH"])
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    with BuildProcess("tensorrt") as process, pytest.raises(BuildError) as caught:
        process.build({"flavour": "tensorrt"}, lambda event: None)
    assert caught.value.fault.startswith("tensorrt does not load: ImportError: libnv")
    assert "layerport doctor" in str(caught.value.repair)


def have(monkeypatch: pytest.MonkeyPatch, gpu: str | None = None, **versions: str) -> None:
    monkeypatch.setattr(flavours, "version_of", versions.get)
    monkeypatch.setattr(flavours, "native_architecture", lambda: gpu)


def test_one_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, tensorrt="10.16.1.11", rtx="1.2.0")
    with pytest.raises(BuildError) as caught:
        flavours.require(Target("tensorrt", ("sm_90",)))
    assert caught.value.fault == "target tensorrt:sm_90 needs tensorrt 11 or newer; 10.16.1.11 is installed here"
    assert caught.value.repair == 'pip install "layerport[tensorrt]", or build with --target portable'
    with pytest.raises(BuildError, match="needs tensorrt_rtx 1.3 or newer; 1.2.0 is installed here"):
        flavours.require(Target("rtx", ("sm_89",)))
    have(monkeypatch, tensorrt="11.0.0.114", rtx="1.3")
    flavours.require(Target("tensorrt", ("sm_90",)))
    flavours.require(Target("rtx", ("sm_89",)))


WITH_RTX = "tensorrt_rtx is installed and builds without a GPU"
NO_GPU = "tensorrt is installed, but it builds on a GPU and there is none here"


@pytest.mark.parametrize(
    ("versions", "gpu", "target", "why"),
    [
        ({"tensorrt": "11.0.0.114"}, "sm_90", "tensorrt:sm_90", "tensorrt is installed and this machine has a GPU"),
        ({"tensorrt": "11.4", "rtx": "1.7"}, None, "rtx:sm_89,sm_120", WITH_RTX),
        ({"tensorrt": "10.16", "rtx": "1.7"}, "sm_90", "rtx:sm_89,sm_120", WITH_RTX),
        ({"tensorrt": "11.4"}, None, "portable", NO_GPU),
        ({"tensorrt": "10.16"}, "sm_90", "portable", "an engine needs tensorrt 11 or newer; 10.16 is installed here"),
        ({}, "sm_90", "portable", 'no TensorRT is installed; pip install "layerport[rtx]" adds one'),
    ],
)  # fmt: skip
def test_the_default_target(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], gpu: str | None, target: str, why: str
) -> None:
    have(monkeypatch, gpu, **versions)
    found, reason = flavours.default_target()
    assert (str(found), reason) == (target, why)


def test_it_builds_for_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, "sm_90")
    assert flavours.on_this_machine(Target("tensorrt")) == Target("tensorrt", ("sm_90",))
    for text in ("tensorrt:sm_90", "tensorrt:sm_80,sm_90", "rtx:sm_89", "portable"):
        assert flavours.on_this_machine(Target.parse(text)) == Target.parse(text)
    with pytest.raises(BuildError) as caught:
        flavours.on_this_machine(Target("tensorrt", ("sm_89",)))
    assert caught.value.fault == "target tensorrt:sm_89 is built on the GPU that it targets, and the one here is sm_90"
    assert caught.value.repair == "build on such a GPU, or use --target tensorrt for this one"
    have(monkeypatch)
    for text in ("tensorrt", "tensorrt:sm_90"):
        with pytest.raises(
            BuildError, match="target tensorrt builds on the GPU that it targets, and there is none here"
        ):
            flavours.on_this_machine(Target.parse(text))


def test_only_one_module_names_the_packages() -> None:
    for path in Path(flavours.__file__).parent.glob("*.py"):
        if path.name != "flavours.py":
            assert "import tensorrt" not in path.read_text()
