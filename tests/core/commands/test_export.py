"""`layerport export`: the files and commands for each tool, and that nothing is written where something is wrong."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from layerport.bundle.bundle import Bundle
from layerport.cli import main
from layerport.commands import exporting
from layerport.commands.export_triton import config_text
from layerport.commands.exporting import Exported, export_bundle
from layerport.dtypes import DType
from layerport.engine import native
from layerport.errors import BuildError, LayerportError, UsageError
from layerport.sizes.tensors import TensorType
from small_bundles import identity_bundle, sign
from small_setup import Built

TYPES = ("TYPE_FP32", "TYPE_FP16", "TYPE_BF16", "TYPE_INT64", "TYPE_INT32", "TYPE_INT8", "TYPE_UINT8", "TYPE_BOOL")


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed `layerport_native`, whose libraries nobody opens."""
    package = tmp_path / "installed" / "layerport_native"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in (native.FILE, native.STATIC_FILE):
        (package / name).write_text(name)
    monkeypatch.syspath_prepend(str(package.parent))
    return package


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def exported(bundle: Path, tool: str, out: Path) -> Exported:
    """An export whose record, folder and page agree."""
    made = export_bundle(str(bundle), tool, str(out))
    assert set(made.files) <= files_below(out)
    page = (out / "README.md").read_text()
    assert all(command in page for command in made.commands)
    assert not [path for path in (*out.parent.iterdir(), *out.iterdir()) if path.name.startswith(".")]
    return made


def test_trtexec_gets_plan_model_library_and_samples(engine_bundle: Built, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = exported(engine_bundle.path, "trtexec", out)
    bundle = Bundle.open(engine_bundle.path)
    (target,) = bundle.manifest["targets"]
    assert (out / "model.plan").read_bytes() == (engine_bundle.path / target["file"]).read_bytes()
    assert (out / native.FILE).read_text() == native.FILE
    inputs, outputs = bundle.samples()
    words = [
        "tensorrt_rtx",
        "--loadEngine=model.plan",
        "--dynamicPlugins=./liblayerport_plugins.so",
        "--shapes=x:" + "x".join(map(str, inputs["x"].shape)),
        "--loadInputs=x:samples/input_0.bin",
    ]
    assert list(map(shlex.split, made.commands)) == [words]
    assert (out / "samples" / "input_0.bin").read_bytes() == inputs["x"].tobytes()
    lines = [line.split() for line in (out / "samples.txt").read_text().splitlines()]
    (name, array), *_ = outputs.items()
    assert lines[0][:3] == ["input", "samples/input_0.bin", "float32"] and lines[0][-1] == "x"
    assert lines[1][0] == "output" and lines[1][-1] == name
    assert lines[1][5:-1] == list(map(str, (array.ndim, *array.shape)))
    assert any(target["tensorrt"] in note and "sm_89" in note for note in made.notes)
    kernels = [node for node in onnx.load(out / "model.onnx").graph.node if node.domain == "layerport"]
    assert len(kernels) == target["plugins"] and {node.op_type for node in kernels} == {"Kernel"}


def protobuf() -> Any:
    """The part of Triton's `ModelConfig` that is written, as a class that reads text."""
    file = descriptor_pb2.FileDescriptorProto(name="part.proto", syntax="proto3")
    types = file.enum_type.add(name="DataType")
    for number, name in enumerate(("TYPE_INVALID", *TYPES)):
        types.value.add(name=name, number=number)
    kinds = file.enum_type.add(name="Kind")
    for number, name in enumerate(("KIND_AUTO", "KIND_GPU")):
        kinds.value.add(name=name, number=number)
    kind = descriptor_pb2.FieldDescriptorProto
    plain = {"s": kind.TYPE_STRING, "i": kind.TYPE_INT64}
    for message, fields in {
        "Shape": "shape*i",
        "Port": "name=s data_type=.DataType dims*i reshape=.Shape",
        "Group": "kind=.Kind count=i profile*s",
        "All": "",
        "Policy": "all=.All",
        "Model": "name=s platform=s max_batch_size=i input*.Port output*.Port "
        "instance_group*.Group version_policy=.Policy",
    }.items():
        made = file.message_type.add(name=message)
        for number, text in enumerate(fields.split(), 1):
            name, sign_, type_ = text.partition("=" if "=" in text else "*")
            label = kind.LABEL_OPTIONAL if sign_ == "=" else kind.LABEL_REPEATED
            field = made.field.add(name=name, number=number, label=label)
            if type_ in plain:
                field.type = plain[type_]
            else:
                field.type = kind.TYPE_ENUM if type_ in (".DataType", ".Kind") else kind.TYPE_MESSAGE
                field.type_name = type_
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Model"))


def test_triton_gets_a_repository_with_versions(engine_bundle: Built, tmp_path: Path) -> None:
    out = tmp_path / "served"
    made = exported(engine_bundle.path, "triton", out)
    name = engine_bundle.path.stem
    model = out / "models" / name
    assert files_below(out) == {
        "README.md",
        native.STATIC_FILE,
        f"models/{name}/config.pbtxt",
        f"models/{name}/1/model.onnx",
    }
    building, serving = map(shlex.split, made.commands)  # its plan is one of TensorRT for RTX, which Triton lacks
    assert f"--saveEngine=models/{name}/1/model.plan" in building
    assert f"--staticPlugins=./{native.STATIC_FILE}" in building
    assert [word.partition(":")[0] for word in building[-3:]] == ["--minShapes=x", "--optShapes=x", "--maxShapes=x"]
    assert serving == [
        "tritonserver",
        "--model-repository=models",
        f"--backend-config=tensorrt,plugins=./{native.STATIC_FILE}",
    ]
    config = text_format.Parse((model / "config.pbtxt").read_text(), protobuf()())
    assert (config.name, config.platform, config.max_batch_size) == (name, "tensorrt_plan", 0)
    bundle = Bundle.open(engine_bundle.path)
    for ports, wanted in ((config.input, bundle.inputs), (config.output, bundle.outputs)):
        assert [port.name for port in ports] == [one.name for one in wanted]
        sizes = [[size if isinstance(size, int) else -1 for size in one.shape] for one in wanted]
        assert [list(port.dims) for port in ports] == sizes and any(-1 in one for one in sizes)
        assert {port.data_type for port in ports} == {1 + TYPES.index("TYPE_FP32")}
    assert list(config.instance_group[0].profile) == ["0"] and config.version_policy.HasField("all")

    again = exported(engine_bundle.path, "triton", out)
    assert f"models/{name}/2/model.onnx" in again.files and f"models/{name}/1/model.onnx" not in again.files
    (model / "007").mkdir()  # passed over by Triton
    (model / "9").mkdir()
    exported(engine_bundle.path, "triton", out)
    assert (model / "10" / "model.onnx").read_bytes() == (model / "1" / "model.onnx").read_bytes()

    other = identity_bundle(tmp_path / "other.lp", ["y"])
    exported(other, "triton", out)
    assert {path.name for path in (out / "models").iterdir()} == {name, "other"}
    before = files_below(out)
    (tmp_path / "elsewhere").mkdir()
    same_name = shutil.copytree(other, tmp_path / "elsewhere" / f"{name}.lp")
    with pytest.raises(UsageError, match="is a model with another config.pbtxt") as caught:
        export_bundle(str(same_name), "triton", str(out))
    assert "now: dims: [ 3 ]" in caught.value.faults
    assert files_below(out) == before


def test_a_plan_of_tensorrt_is_served_as_it_is(engine_bundle: Built, tmp_path: Path) -> None:
    bundle = engine_bundle.copy(tmp_path / "net.lp")
    manifest = json.loads((bundle / "manifest.json").read_text())
    (target,) = manifest["targets"]
    sign(bundle, targets=[{**target, "flavour": "tensorrt"}])
    made = exported(bundle, "triton", tmp_path / "out")
    assert made.commands[0].startswith("tritonserver")
    plan = (tmp_path / "out" / "models" / "net" / "1" / "model.plan").read_bytes()
    assert plan == (bundle / target["file"]).read_bytes()
    assert exported(bundle, "trtexec", tmp_path / "other").commands[0].startswith("trtexec --loadEngine=")


def test_a_config_for_what_triton_has_no_words_for() -> None:
    ports = [
        TensorType("", DType.INT64, ()),
        TensorType('a "b" \\ c', DType.BFLOAT16, (None, 3)),
        TensorType("größe", DType.BOOL, (0,)),
    ]
    config = text_format.Parse(config_text("m", ports, ports), protobuf()())
    assert [port.name for port in config.input] == [one.name for one in ports]
    scalar, text, _ = config.input
    assert list(scalar.dims) == [1] and scalar.HasField("reshape") and not scalar.reshape.shape
    assert list(text.dims) == [-1, 3] and not text.HasField("reshape")


def settings_in(path: Path) -> dict[str, str]:
    first, *lines = path.read_text().splitlines()
    assert first == "[property]"
    return dict(line.split("=", 1) for line in lines)


def test_deepstream_gets_its_settings(engine_bundle: Built, tmp_path: Path) -> None:
    made = exported(engine_bundle.path, "deepstream", tmp_path / "out")
    settings = settings_in(tmp_path / "out" / "config_infer.txt")
    assert settings["custom-lib-path"] == f"./{native.STATIC_FILE}" and settings["model-engine-file"] == "model.plan"
    assert settings["input-tensor-from-meta"] == "1" and any("nvdspreprocess" in note for note in made.notes)

    image = identity_bundle(tmp_path / "image.lp", ["y"])
    dims = {"inputs": [{"name": "x", "dtype": "float32", "dims": ["batch", 3, 480, 640]}]}
    sign(image, **dims, dims=[{"name": "batch", "min": 1, "opt": 4, "max": 8}], outputs=dims["inputs"])
    made = exported(image, "deepstream", tmp_path / "frames")
    settings = settings_in(tmp_path / "frames" / "config_infer.txt")
    assert settings["infer-dims"] == "3;480;640" and settings["batch-size"] == "4"
    assert "custom-lib-path" not in settings and "input-tensor-from-meta" not in settings
    building, running = map(shlex.split, made.commands)
    assert building[3:] == [f"--{one}Shapes=x:{size}x3x480x640" for one, size in (("min", 1), ("opt", 4), ("max", 8))]
    assert "batch-size=4" in running and "width=640" in running and "video/x-raw(memory:NVMM)" in running


def test_a_program_gets_its_sources(engine_bundle: Built, tmp_path: Path) -> None:
    made = exported(engine_bundle.path, "cpp", tmp_path / "out")
    assert {"main.cpp", "samples.h", "CMakeLists.txt", "samples.txt", "model.plan", native.FILE} <= set(made.files)
    assert "NAMES tensorrt_rtx HINTS" in (tmp_path / "out" / "CMakeLists.txt").read_text()


def test_a_model_without_plugins_needs_no_library(tmp_path: Path, installed: Path) -> None:
    shutil.rmtree(installed)
    bundle = identity_bundle(tmp_path / "plain.lp", ["y"])
    made = exported(bundle, "trtexec", tmp_path / "out")
    assert not [name for name in made.files if name.endswith(".so")] and "Plugins" not in made.commands[0]
    assert made.commands[0] == "trtexec --onnx=model.onnx --saveEngine=model.plan"


def refused(bundle: Path, tool: str, out: Path) -> LayerportError:
    """The error of an export that writes nothing, and leaves nothing beside."""
    before = set(out.parent.rglob("*"))
    with pytest.raises(LayerportError) as caught:
        export_bundle(str(bundle), tool, str(out))
    assert set(out.parent.rglob("*")) == before
    return caught.value


@pytest.mark.parametrize("tool", exporting.TOOLS)
def test_what_is_in_the_way_is_kept(engine_bundle: Built, tmp_path: Path, tool: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert "is there already, kept" in refused(engine_bundle.path, tool, out).fault
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    assert "is there already, kept" in refused(engine_bundle.path, tool, link).fault
    assert "there is no folder" in refused(engine_bundle.path, tool, tmp_path / "no" / "out").fault


def test_without_the_library_nothing_is_written(
    engine_bundle: Built, tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in installed.glob("*.so"):
        path.unlink()
    error = refused(engine_bundle.path, "trtexec", tmp_path / "out")
    assert isinstance(error, BuildError) and error.repair == "pip install layerport-native"
    monkeypatch.setattr(native, "PACKAGE", "layerport_native_that_nobody_installed")
    assert "is not installed" in refused(engine_bundle.path, "cpp", tmp_path / "out").fault


def test_layers_with_their_own_class_are_named(engine_bundle: Built, tmp_path: Path) -> None:
    bundle = engine_bundle.copy(tmp_path / "net.lp")
    layers = json.loads((bundle / "manifest.json").read_text())["layers"]
    plugins = [one for one in layers if one["realised"] == "plugin"]
    plugins[0]["plugin_class"] = "pack.plugins:Own"
    sign(bundle, layers=layers)
    error = refused(bundle, "triton", tmp_path / "out")
    assert error.faults == (f"{plugins[0]['layer']} (pack.plugins:Own)",) and "--decompose" in str(error.repair)


def test_what_a_tool_cannot_run(engine_bundle: Built, tmp_path: Path) -> None:
    strange = identity_bundle(tmp_path / "strange.lp", ["y"], dtype="int16")
    assert refused(strange, "triton", tmp_path / "out").faults == (
        "x is int16, which Triton does not have",
        "y is int16, which Triton does not have",
    )
    two = identity_bundle(tmp_path / "two.lp", ["y"])
    manifest = json.loads((two / "manifest.json").read_text())
    sign(two, inputs=[*manifest["inputs"], {**manifest["inputs"][0], "name": "z"}])
    assert "the model has 2" in refused(two, "deepstream", tmp_path / "out").faults[0]
    endless = identity_bundle(tmp_path / "endless.lp", ["y"])
    ports = [{"name": "x", "dtype": "float32", "dims": ["n"]}]
    sign(endless, inputs=ports, dims=[{"name": "n", "min": 1, "opt": 3, "max": None}])
    assert "no greatest" not in (error := refused(endless, "trtexec", tmp_path / "out")).fault
    assert error.fault == "an engine needs a greatest size of each dim, there is none of n"
    assert error.repair == "build the bundle again with --range n=MIN..USUAL..MAX"
    without = identity_bundle(tmp_path / "without.lp", ["y"])
    sign(without, samples=None)
    assert "has no samples" in refused(without, "cpp", tmp_path / "out").fault
    assert "samples.txt" not in exported(without, "trtexec", tmp_path / "out").files


def test_a_damaged_bundle_or_a_full_disk_leaves_nothing(
    engine_bundle: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = engine_bundle.copy(tmp_path / "net.lp")
    plan = next(bundle.glob("*.plan"))
    data = bytearray(plan.read_bytes())
    data[-1] ^= 1
    plan.write_bytes(data)
    assert "SHA-256" in refused(bundle, "trtexec", tmp_path / "out").fault

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    error = refused(engine_bundle.path, "trtexec", tmp_path / "out")
    assert error.fault == f"writing {tmp_path / 'out'} failed: No space left on device"
    monkeypatch.undo()


def test_the_tolerances_are_those_of_verify() -> None:
    from layerport.parameters.comparison import compare, tolerance

    want = np.linspace(-3, 3, 64, dtype=np.float32)
    absolute, relative = tolerance(want)
    near = want + (absolute + relative * np.abs(want)).astype(np.float32) * np.float32(0.99)
    far = want.copy()
    far[5] += np.float32(1.5) * np.float32(absolute + relative * abs(float(want[5])))
    assert compare("y", near, want).passed and not compare("y", far, want).passed
    assert tolerance(np.arange(3)) == (0.0, 0.0)


def test_the_command(engine_bundle: Built, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    done = CliRunner().invoke(main, ["export", str(engine_bundle.path), "--for", "cpp", "-o", out])
    assert done.exit_code == 0, done.output
    assert f"next: cd {out}" in done.output and "  cmake -S . -B build" in done.output
    done = CliRunner().invoke(main, ["export", str(engine_bundle.path), "--for", "cpp", "-o", out])
    assert done.exit_code == 2 and "is there already, kept" in done.output
    done = CliRunner().invoke(main, ["export", str(engine_bundle.path), "--for", "cpp", "-o", out + "2", "--json"])
    assert json.loads(done.stdout)["tool"] == "cpp"
    assert CliRunner().invoke(main, ["export", str(engine_bundle.path), "--for", "what", "-o", out]).exit_code == 2
