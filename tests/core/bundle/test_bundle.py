"""Bundles on disk: written whole or not at all, and read with trust in nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerport import building
from layerport.bundle import bundle as bundles
from layerport.bundle.bundle import Bundle, check_output, writing
from layerport.checks.verification import verify
from layerport.commands.reports import inspect_bundle
from layerport.errors import BuildError, LayerportError, UsageError
from layerport.front import portable
from layerport.session.session import load
from small_bundles import write_small
from small_models import net
from small_setup import ENGINE, SMALL, Built


def everything(path: Path) -> None:
    """Read all that a bundle holds."""
    inspect_bundle(path)
    verify(path)


# Writing


def test_a_block_that_ends_well(tmp_path: Path) -> None:
    out = tmp_path / "a.lp"
    with writing(out) as folder:
        (folder / "x").write_text("1")
        assert folder.parent.parent == tmp_path and not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.lp"]
    assert (out / "x").read_text() == "1"
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_a_block_that_does_not(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), writing(tmp_path / "a.lp") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "x").write_text("1")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    out = write_small(tmp_path / "a.lp", "old")
    with pytest.raises(UsageError) as caught, writing(out):
        raise AssertionError("not reached")
    assert caught.value.fault == f"{out} exists and was kept"
    assert caught.value.repair == "choose another name with -o, or overwrite it with --force"
    with writing(out, force=True) as folder:
        write_small(folder, "new")
        assert (out / bundles.MODEL).read_text() == "old"
    assert (out / bundles.MODEL).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.lp"]


def test_a_forced_build_that_fails_keeps_the_old_one(tmp_path: Path) -> None:
    out = write_small(tmp_path / "a.lp", "old")
    with pytest.raises(ValueError), writing(out, force=True):
        raise ValueError
    assert (out / bundles.MODEL).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.lp"]


@pytest.mark.parametrize("kind", ["folder", "file", "link to a folder", "dangling link"])
def test_what_is_no_bundle_is_kept_also_with_force(tmp_path: Path, kind: str) -> None:
    out, other = tmp_path / "a.lp", tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("1")
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.write_text("precious")
    else:
        out.symlink_to(other if kind == "link to a folder" else tmp_path / "gone")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError) as caught:
        check_output(out, force=True)
    assert caught.value.fault == f"{out} is not a bundle and was kept, also with --force"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bundle_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "a.lp"
    with pytest.raises(LayerportError), writing(out):
        out.mkdir()
        (out / bundles.MANIFEST).write_text("another build's")
    assert (out / bundles.MANIFEST).read_text() == "another build's"
    assert [path.name for path in tmp_path.iterdir()] == ["a.lp"]


def test_a_folder_that_is_not_there_or_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        check_output(tmp_path / "no" / "a.lp", force=False)
    assert caught.value.fault == f"there is no folder {tmp_path / 'no'}"
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="there is no folder"):
        check_output(tmp_path / "file" / "a.lp", force=False)


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As root every folder can be written, so the system's answers are played.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(BuildError) as caught:
        check_output(tmp_path / "a.lp", force=False)
    assert caught.value.fault == f"cannot write beside {tmp_path / 'a.lp'}: permission denied"
    monkeypatch.undo()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(BuildError) as caught, writing(tmp_path / "a.lp"):
        raise AssertionError("not reached")
    assert caught.value.fault == f"cannot write beside {tmp_path / 'a.lp'}: Read-only file system"
    assert caught.value.repair == "choose another place with -o"


def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught, writing(tmp_path / "a.lp") as folder:
        (folder / "x").write_text("1")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.fault == f"writing {tmp_path / 'a.lp'} failed: No space left on device; nothing was written"
    assert caught.value.repair == "free some space, or choose another place with -o"
    assert list(tmp_path.iterdir()) == []


# Reading


def test_a_sound_bundle(engine_bundle: Built) -> None:
    bundle = Bundle.open(engine_bundle.path)
    assert [str(port) for port in bundle.inputs] == ["x: float32[rows, 16]"]
    assert [str(port) for port in bundle.outputs] == ["output: float32[rows, 16]"]
    assert (bundle.dims["rows"].min, bundle.dims["rows"].opt, bundle.dims["rows"].max) == (1, 3, 64)
    assert {path.name for path in engine_bundle.path.iterdir()} == {*bundle.manifest["files"], bundles.MANIFEST}
    inputs, outputs = bundle.samples()
    assert (inputs["x"].shape, outputs["output"].shape) == ((3, 16), (3, 16))


def test_what_is_no_bundle(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UsageError) as caught:
            Bundle.open(path)
        assert caught.value.fault == f"{path} is not a bundle: it has no manifest.json"


FILES = ("model.onnx", "plugins.safetensors", "samples.safetensors", "rtx-sm_89.plan")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "longer", "changed", "empty", "missing", "link", "folder"])
def test_a_damaged_file(engine_bundle: Built, tmp_path: Path, name: str, damage: str) -> None:
    copy = engine_bundle.copy(tmp_path / "copy.lp")
    file = copy / name
    data = file.read_bytes()
    message = f"{file} is missing or not a plain file"
    if damage in ("cut", "longer", "empty"):
        new = {"cut": data[:-1], "longer": data + b"\0", "empty": b""}[damage]
        file.write_bytes(new)
        message = f"{file} has {len(new)} bytes, the manifest says {len(data)}"
    elif damage == "changed":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        message = f"{file} has SHA-256 "
    else:
        file.unlink()
        if damage == "link":
            file.symlink_to(engine_bundle.path / name)
        elif damage == "folder":
            file.mkdir()
    with pytest.raises(BuildError) as caught:
        everything(copy)
    assert message in caught.value.fault
    assert "copy the whole bundle again" in str(caught.value.repair)


def manifest_of(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / bundles.MANIFEST).read_text()))


SHA = "0" * 64
FORGERIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "path upwards": lambda m: m["files"].update({"../../etc/passwd": {"bytes": 1, "sha256": SHA}}),
    "absolute path": lambda m: m["files"].update({"/etc/passwd": {"bytes": 1, "sha256": SHA}}),
    "hidden file": lambda m: m["files"].update({".ssh": {"bytes": 1, "sha256": SHA}}),
    "empty name": lambda m: m["files"].update({"": {"bytes": 1, "sha256": SHA}}),
    "name with NUL": lambda m: m["files"].update({"a\0b": {"bytes": 1, "sha256": SHA}}),
    "long name": lambda m: m["files"].update({"a" * 5000: {"bytes": 1, "sha256": SHA}}),
    "no digest": lambda m: m["files"].update({"a": {"bytes": 1, "sha256": None}}),
    "short digest": lambda m: m["files"].update({"a": {"bytes": 1, "sha256": "00"}}),
    "no size": lambda m: m["files"].update({"a": {"bytes": "1", "sha256": SHA}}),
    "files as list": lambda m: m.update(files=[]),
    "no files": lambda m: m.pop("files"),
    "plan that is no file": lambda m: m["targets"][0].update(file="other.plan"),
    "plan elsewhere": lambda m: m["targets"][0].update(file="/tmp/evil.plan"),
    "targets as text": lambda m: m.update(targets="rtx"),
    "target without file": lambda m: m["targets"][0].pop("file"),
    "layers of numbers": lambda m: m.update(layers=[1]),
    "layer without name": lambda m: m["layers"][0].update(layer=None),
    "dims without end": lambda m: m["dims"][0].pop("max"),
    "dims that contradict": lambda m: m["dims"][0].update(min=9, max=1),
    "dims of text": lambda m: m["dims"][0].update(min="1"),
    "inputs as number": lambda m: m.update(inputs=3),
    "input without dims": lambda m: m["inputs"][0].pop("dims"),
    "other format": lambda m: m.update(format=2),
    "no format": lambda m: m.pop("format"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_manifest(engine_bundle: Built, tmp_path: Path, forgery: str) -> None:
    copy = engine_bundle.copy(tmp_path / "copy.lp")
    manifest = manifest_of(copy)
    FORGERIES[forgery](manifest)
    (copy / bundles.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BuildError) as caught:
        everything(copy)
    assert "manifest.json cannot be read" in caught.value.fault or "has format 2" in caught.value.fault
    assert "build" in str(caught.value.repair)


WRONG_TYPES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an unknown dtype": lambda m: m["outputs"][0].update(dtype="float99"),
    "a size of no dim": lambda m: m["outputs"][0].update(dims=["rows + elsewhere"]),
    "a size that is no expression": lambda m: m["outputs"][0].update(dims=["rows; rows"]),
    "a dim that is no dim": lambda m: m["inputs"][0].update(dims=[None, {}]),
    "negative dim": lambda m: m["inputs"][0].update(dims=[-1, 16]),
    "no input": lambda m: m.update(inputs=[]),
    "no output": lambda m: m.update(outputs=[]),
    "other output name": lambda m: m["outputs"][0].update(name="other"),
    "bool size": lambda m: m["files"]["model.onnx"].update(bytes=True),
    "huge size": lambda m: m["files"]["model.onnx"].update(bytes=10**40),
    "fewer files": lambda m: m["files"].pop("samples.safetensors"),
    "claims as number": lambda m: m.update(claims=4),
    "no layers": lambda m: m.pop("layers"),
}


@pytest.mark.parametrize("forgery", WRONG_TYPES)
def test_a_manifest_that_lies(engine_bundle: Built, tmp_path: Path, forgery: str) -> None:
    """Whatever it says, the answer is one of our errors, or a verification that fails."""
    copy = engine_bundle.copy(tmp_path / "copy.lp")
    manifest = manifest_of(copy)
    WRONG_TYPES[forgery](manifest)
    (copy / bundles.MANIFEST).write_text(json.dumps(manifest))
    try:
        inspect_bundle(copy)
        result = verify(copy)
    except LayerportError as error:
        assert str(error)
    else:
        assert forgery == "claims as number" or not result.passed


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', "[" * 100_000, '{"format": 1}', "\ud800", "é"])
def test_a_manifest_that_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / bundles.MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BuildError) as caught:
        Bundle.open(tmp_path)
    assert "manifest.json cannot be read" in caught.value.fault
    assert caught.value.repair == "build the bundle again"


def test_a_manifest_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "MANIFEST_LIMIT", 10)
    (tmp_path / bundles.MANIFEST).write_text("{" + " " * 20)
    with pytest.raises(BuildError, match="has 21 bytes, at most 10 are read"):
        Bundle.open(tmp_path)


def test_a_file_that_the_manifest_does_not_name(engine_bundle: Built) -> None:
    bundle = Bundle.open(engine_bundle.path)
    for name in ("other", "../net.json", "manifest.json"):
        with pytest.raises(BuildError, match="does not list a file"):
            bundle.file(name)


def test_a_model_that_points_out_of_the_bundle(engine_bundle: Built, tmp_path: Path) -> None:
    """External data of a forged model must not be read from elsewhere, whatever the manifest says."""
    import onnx

    copy = engine_bundle.copy(tmp_path / "copy.lp")
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\0" * 64)
    model = onnx.load(copy / "model.onnx")
    tensor = next(one for one in model.graph.initializer if list(one.dims) == [16])
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    manifest = manifest_of(copy)
    manifest["files"]["model.onnx"] = {
        "bytes": (copy / "model.onnx").stat().st_size,
        "sha256": bundles.digest(copy / "model.onnx"),
    }
    (copy / bundles.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BuildError):
        load(copy)


def test_a_build_reads_nothing_again_to_hash_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine_bundle: Built
) -> None:
    """Whoever writes a file knows its digest; the digests are right all the same."""
    read: list[str] = []
    real = bundles.digest
    monkeypatch.setattr(bundles, "digest", lambda path: read.append(path.name) or real(path))
    monkeypatch.setattr(portable, "EXTERNAL_BYTES", 0)
    path = tmp_path / "net.lp"
    building.build(net(), path, target=ENGINE, packs=[SMALL])
    assert read == []
    stated = json.loads((path / "manifest.json").read_text())["files"]
    assert set(stated) >= {"model.onnx", "model.onnx.data", "plugins.safetensors", "samples.safetensors"}
    assert {name: (one["sha256"], one["bytes"]) for name, one in stated.items()} == {
        file.name: (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size)
        for file in path.iterdir()
        if file.name != "manifest.json"
    }


def test_a_large_piece_is_hashed_beside_its_writing(tmp_path: Path) -> None:
    pieces = [b"head", memoryview(np.arange(1 << 18, dtype=np.int64).view(np.uint8)), b"", b"tail"]
    digest = bundles.write_hashed(tmp_path / "file", pieces)
    data = (tmp_path / "file").read_bytes()
    assert data == b"".join(map(bytes, pieces)) and digest == hashlib.sha256(data).hexdigest()


def test_weights_beside_the_model(tmp_path: Path) -> None:
    """Every type, those that ONNX packs too; small ones stay inside, and a large one begins at a page."""
    import ml_dtypes
    import onnx
    import onnx_ir as ir

    arrays = {
        "large": np.arange(1 << 18, dtype=np.float32),
        "half": np.arange(3000).astype(ml_dtypes.bfloat16),
        "packed": (np.arange(5001) % 16 - 8).astype(ml_dtypes.int4),
        "fp8": (np.arange(2000) % 400).astype(ml_dtypes.float8_e4m3fn),
        "flags": np.arange(5000) % 3 == 0,
        "turned": np.arange(6000, dtype=np.float64).reshape(2, 3000).T,
        "larger": np.arange(1 << 19, dtype=np.float16),
        "small": np.arange(3, dtype=np.int64),
        "empty": np.empty((0, 4), np.float32),
    }
    values = [ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in arrays.items()]
    for value in values:
        value.shape, value.dtype = value.const_value.shape, value.const_value.dtype  # type: ignore[union-attr]
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 20}, name="g")
    digests = portable.write_portable(ir.Model(graph, ir_version=10), tmp_path)
    assert digests.keys() == {"model.onnx"}  # all together are no 16 MiB
    inside = {one.name: one for one in onnx.load(tmp_path / "model.onnx").graph.initializer}
    graph.initializers.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portable, "EXTERNAL_BYTES", 0)
        model = ir.load(tmp_path / "model.onnx")
        digests = portable.write_portable(model, tmp_path)
    assert digests.keys() == {"model.onnx", "model.onnx.data"}
    bare = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    outside = {one.name: int(one.external_data[1].value) for one in bare.graph.initializer if one.external_data}
    assert arrays.keys() - outside.keys() == {"small", "empty"}
    assert outside["large"] % 4096 == outside["larger"] % 4096 == 0
    for one in onnx.load(tmp_path / "model.onnx").graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(one), arrays[one.name])
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(inside[one.name]), arrays[one.name])
