"""Files of a bundle are plain files, opened once: nothing is followed, waited for or read that the manifest lacks."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

import layerport as lp
from layerport.bundle import bundle as bundles
from layerport.bundle.bundle import Bundle, DamagedFile
from layerport.bundle.external_data import external_tensors
from layerport.checks.verification import verify
from layerport.commands.reports import inspect_bundle
from layerport.commands.running import run_bundle
from layerport.errors import BuildError, LayerportError
from layerport.system.plain_files import NotPlainError, open_plain
from small_bundles import external, identity_bundle, place, sign

KINDS = {
    "link": "it is a link",
    "link to itself": "it is a link",
    "hard link": "it is a hard link, the file has 2 names",
    "folder": "it is a folder",
    "FIFO": "it is a FIFO",
    "socket": "it is a socket",
    "device": "it is a device",
    "sparse": "it is sparse: 0 of its 1099511627776 bytes are there",
}


def put(path: Path, kind: str) -> None:
    """Something else in place of a file."""
    kept = path.with_name("kept")
    path.rename(kept)
    if kind == "link":
        path.symlink_to(kept)
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "hard link":
        os.link(kept, path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            here = os.getcwd()
            os.chdir(path.parent)  # a socket's path has few bytes
            try:
                one.bind(path.name)
            finally:
                os.chdir(here)
    elif kind == "device":
        try:
            os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero, which never ends
        except PermissionError:
            pytest.skip("this user can make no device")
    else:
        path.touch()
        os.truncate(path, 1 << 40)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with open_plain(path) as file:
        assert file.read() == b"content"
    put(path, kind)
    began = time.monotonic()
    with pytest.raises(NotPlainError) as caught:
        open_plain(path)
    assert str(caught.value) == KINDS[kind] and time.monotonic() - began < 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [bundles.MANIFEST, bundles.MODEL, bundles.SAMPLES])
def test_every_command_refuses_it_at_once(tmp_path: Path, name: str, kind: str) -> None:
    bundle = identity_bundle(tmp_path / "a.lp", ["y"])
    if kind == "sparse" and name != bundles.MANIFEST:  # a manifest that says so too
        manifest = json.loads((bundle / bundles.MANIFEST).read_text())
        manifest["files"][name]["bytes"] = 1 << 40
        (bundle / bundles.MANIFEST).write_text(json.dumps(manifest))
    put(bundle / name, kind)
    began = time.monotonic()
    for command in (
        inspect_bundle,
        lambda path: verify(path, device="cpu"),
        lambda path: run_bundle(str(path), (), None, device="cpu"),
    ):
        with pytest.raises(BuildError) as caught:
            command(bundle)
        assert KINDS[kind] in caught.value.fault and str(bundle / name) in caught.value.fault
    assert time.monotonic() - began < 2


def test_a_bundle_behind_a_link_is_a_bundle(tmp_path: Path) -> None:
    """Whoever names the link means it; what lies in the folder is another matter."""
    identity_bundle(tmp_path / "v1.lp", ["y"])
    (tmp_path / "current.lp").symlink_to("v1.lp")
    assert lp.load(tmp_path / "current.lp", device="cpu").bundle.outputs[0].name == "y"


def test_a_file_is_what_was_checked(tmp_path: Path) -> None:
    """Changed after its check, it is checked again; changed while a runtime opens its path, it is refused."""
    bundle = Bundle.open(identity_bundle(tmp_path / "a.lp", ["y"]))
    path = bundle.model()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\0")
    with pytest.raises(DamagedFile, match="model.onnx was changed while it was opened"):
        bundle.require_unchanged()
    with pytest.raises(DamagedFile, match="has SHA-256"):
        bundle.model()
    path.write_bytes(data)
    assert bundle.model() == path and bundle.read(bundles.MODEL) == data
    bundle.require_unchanged()
    path.unlink()
    with pytest.raises(DamagedFile, match="was changed"):
        bundle.require_unchanged()


def test_a_model_that_is_swapped_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from layerport.session import onnxruntime as onnxruntime_session

    folder = identity_bundle(tmp_path / "a.lp", ["y"])
    real = onnxruntime_session._open

    def swapped(model: Path, plain: bool) -> Any:
        made = model.with_name("made")
        made.write_bytes(model.read_bytes())
        made.rename(model)
        return real(model, plain)

    monkeypatch.setattr(onnxruntime_session, "_open", swapped)
    with pytest.raises(DamagedFile, match="model.onnx was changed while it was opened"):
        lp.load(folder, device="cpu")


def test_nothing_is_hashed_twice_that_did_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(identity_bundle(tmp_path / "a.lp", ["y"]))
    bundle.samples(), bundle.model()
    monkeypatch.setattr(hashlib, "sha256", None)
    monkeypatch.setattr(hashlib, "file_digest", None)
    bundle.samples(), bundle.model()


# The data of a model's tensors


PLACES = (
    "initializer",
    "attribute",
    "attribute list",
    "subgraph",
    "subgraph in a subgraph",
    "function",
    "sparse values",
    "sparse indices",
    "sparse attribute",
    "training",
)
DATA = bundles.MODEL_DATA


def with_model(folder: Path, model: onnx.ModelProto) -> Path:
    """A signed bundle with this model and 64 bytes of data beside it."""
    identity_bundle(folder, ["y"])
    (folder / DATA).write_bytes(bytes(64))
    (folder / bundles.MODEL).write_bytes(model.SerializeToString())
    return sign(folder)


@pytest.mark.parametrize("where", PLACES)
def test_a_tensor_anywhere_in_a_model_names_a_listed_file(tmp_path: Path, where: str) -> None:
    secret = tmp_path / "a.lp" / "unlisted.bin"
    model = place(where, external("w", location=secret.name))
    assert [tensor.name for tensor in external_tensors(model)] == ["w"]
    folder = with_model(tmp_path / "a.lp", model)
    secret.write_bytes(bytes(64))
    for command in (lp.load, lambda path: verify(path, device="cpu"), lambda path: Bundle.open(path).model()):
        with pytest.raises(BuildError) as caught:
            command(folder)
        assert caught.value.faults == ("tensor 'w' keeps its data in 'unlisted.bin', no file beside the model",)
    assert Bundle.open(with_model(tmp_path / "b.lp", place(where, external("w", location=DATA)))).model()


WRONG: dict[str, tuple[TensorProto, str]] = {
    "upwards": (external("w", location="../a.lp/model.onnx.data"), "no file beside the model"),
    "absolute": (external("w", location="/etc/hostname"), "no file beside the model"),
    "another spelling": (external("w", location=f"./{DATA}"), "no file beside the model"),
    "empty": (external("w", location=""), "no file beside the model"),
    "memory": (external("w", location="*/_ORT_MEM_ADDR_/*", offset="4096", length="16"), "no file beside the model"),
    "the manifest": (external("w", location="manifest.json"), "no file beside the model"),
    "NUL": (external("w", location=f"{DATA}\0"), "no file beside the model"),
    "beyond the end": (
        external("w", location=DATA, offset="60"),
        "names bytes 60 to 76 of model.onnx.data, which has 64",
    ),
    "too long": (external("w", location=DATA, length="17"), "takes 16 bytes, and names 17"),
    "too short": (external("w", location=DATA, length="15"), "takes 16 bytes, and names 15"),
    "huge": (external("w", dims=(2**40, 2**40), location=DATA), "names bytes 0 to "),
    "negative dims": (external("w", dims=(-4, -1), location=DATA), "has the dims [-4, -1]"),
    "negative offset": (external("w", location=DATA, offset="-8"), "has the place"),
    "odd offset": (external("w", location=DATA, offset="0x8"), "has the place"),
    "long offset": (external("w", location=DATA, offset="9" * 30), "has the place"),
    "other digits": (external("w", location=DATA, offset="٣"), "has the place"),
    "unknown key": (
        external("w", location=DATA, prepacked_0="x|0;8;0"),
        "each of checksum, length, location, offset may stand once",
    ),
    "text": (external("w", kind=TensorProto.STRING, location=DATA), "does not say how many bytes"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_tensor_names_bytes_that_are_there(tmp_path: Path, kind: str) -> None:
    tensor, fault = WRONG[kind]
    folder = with_model(tmp_path / "a.lp", place("initializer", tensor))
    with pytest.raises(BuildError) as caught:
        lp.load(folder, device="cpu")
    assert fault in caught.value.faults[0]


def test_one_key_twice(tmp_path: Path) -> None:
    """One reader takes the first, another the last."""
    tensor = external("w", location=DATA)
    tensor.external_data.add(key="location", value="/etc/hostname")
    with pytest.raises(BuildError) as caught:
        Bundle.open(with_model(tmp_path / "a.lp", place("initializer", tensor))).model()
    assert "may stand once" in caught.value.faults[0]


@pytest.mark.parametrize(
    "kind, dims, length", [(TensorProto.INT4, (7,), 4), (TensorProto.BOOL, (3,), 3), (TensorProto.FLOAT, (0, 4), 0)]
)
def test_types_of_all_widths_fit(tmp_path: Path, kind: int, dims: tuple[int, ...], length: int) -> None:
    tensor = external("w", kind=kind, dims=dims, location=DATA, offset="8", length=str(length))
    assert Bundle.open(with_model(tmp_path / "a.lp", place("initializer", tensor))).model()


def test_data_beside_the_model_is_checked_by_digest(tmp_path: Path) -> None:
    folder = with_model(tmp_path / "a.lp", place("initializer", external("w", location=DATA)))
    (folder / DATA).write_bytes(bytes(63) + b"\1")
    with pytest.raises(DamagedFile, match="model.onnx.data has SHA-256"):
        lp.load(folder, device="cpu")


@pytest.mark.parametrize(
    "kind, other", [("uint8", TensorProto.FLOAT), ("float64", TensorProto.FLOAT), ("int4", TensorProto.FLOAT)]
)
def test_an_output_of_another_type_than_stated_is_not_read(tmp_path: Path, kind: str, other: int) -> None:
    """ONNX Runtime hands out an address for the types that NumPy lacks: a wider type would read beyond its end."""
    folder = identity_bundle(tmp_path / "a.lp", ["y"])
    manifest = json.loads((folder / bundles.MANIFEST).read_text())
    manifest["outputs"][0]["dtype"] = kind
    (folder / bundles.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BuildError) as caught:
        lp.load(folder, device="cpu")
    assert caught.value.faults == (f"output y is tensor(float) in the model, the manifest says {kind}",)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_model_is_refused_or_runs(tmp_path: Path, seed: int) -> None:
    """With data beside it, at the wire's level."""
    from random import Random

    from fuzz.mutations import bytes_mutation

    folder = with_model(tmp_path / "a.lp", place("initializer", external("w", location=DATA, offset="8", length="16")))
    data = (folder / bundles.MODEL).read_bytes()
    for number in range(10):
        (folder / bundles.MODEL).write_bytes(bytes_mutation(data, Random(f"{seed}/{number}")))
        sign(folder)
        try:
            lp.load(folder, device="cpu")
        except LayerportError as error:
            assert str(error)
