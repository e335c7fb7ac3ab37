"""What `layerport run -o` writes, and where: names come from a bundle that nobody vouches for."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from layerport.bundle.bundle import Bundle
from layerport.commands.output_files import OutputFolder, file_names
from layerport.commands.running import run_bundle
from layerport.errors import BuildError, UsageError
from small_bundles import identity_bundle

REAL = {
    "logits": "logits.npy",
    "past_key_values.0.key": "past_key_values.0.key.npy",
    "onnx::Cast_0": "onnx::Cast_0.npy",
    "a/b": "a%2Fb.npy",
    "/model/Add_output_0": "%2Fmodel%2FAdd_output_0.npy",
    "50%": "50%25.npy",
    "größe": "größe.npy",
}
HARMFUL = {
    "/../../x": "%2F..%2F..%2Fx.npy",
    "../x": "%2E.%2Fx.npy",
    "..": "%2E..npy",
    ".": "%2E.npy",
    ".bashrc": "%2Ebashrc.npy",
    "/etc/cron.d/x": "%2Fetc%2Fcron.d%2Fx.npy",
    "a/../../x": "a%2F..%2F..%2Fx.npy",
}


def test_each_name_is_one_file_of_the_folder(tmp_path: Path) -> None:
    for one in (REAL, HARMFUL):
        assert file_names(list(one)) == one
    assert file_names(["\0"]) == {"\0": "%00.npy"}
    bundle = identity_bundle(tmp_path / "a.lp", [*REAL, *HARMFUL])
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "deep" / "er" / "out"
    result = run_bundle(str(bundle), (), str(out), device="cpu")
    assert sorted(os.listdir(out)) == sorted([*REAL.values(), *HARMFUL.values()])
    assert {*tmp_path.rglob("*")} - {*before} == {out.parent.parent, out.parent, out, *out.iterdir()}
    for name, file in (REAL | HARMFUL).items():
        assert result.outputs[name].file == str(out / file)
        np.testing.assert_array_equal(np.load(out / file), np.arange(3, dtype=np.float32))


def test_an_escaped_name_never_meets_another(tmp_path: Path) -> None:
    names = ["a/b", "a%2Fb", "a%252Fb", "%", "%25", ".a", "%2Ea"]
    assert len(set(file_names(names).values())) == len(names)


@pytest.mark.parametrize(
    "names, fault",
    [
        (["Logits", "logits"], "Logits and logits would be one file"),
        (["é", "e\u0301"], "é and e\u0301 would be one file"),
        (["y", "a" * 252], f"{'a' * 60}... is 256 bytes long as a file name, 255 are possible"),
        (["/" * 84], f"{'/' * 60}... is 256 bytes long as a file name, 255 are possible"),
    ],
)
def test_names_that_cannot_be_files(
    tmp_path: Path, names: list[str], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing runs and nothing is made; without -o it runs."""
    bundle = identity_bundle(tmp_path / "a.lp", names)
    assert set(run_bundle(str(bundle), (), None, device="cpu").outputs) == set(names)
    monkeypatch.setattr("layerport.session.session.Session.__init__", None)
    with pytest.raises(UsageError) as caught:
        run_bundle(str(bundle), (), str(tmp_path / "out"), device="cpu")
    assert caught.value.faults == (fault,)
    assert os.listdir(tmp_path) == ["a.lp"]


@pytest.mark.parametrize("name", ["", "a\nb", "a\x1b[31m", "a\0", "\u202egnp", "\ud800", "a" * 513, "a\x7f", "\x9b2J"])
def test_a_bundle_with_a_name_that_steers_a_terminal_is_refused(tmp_path: Path, name: str) -> None:
    import json

    bundle = identity_bundle(tmp_path / "a.lp", ["y"])
    for kind in ("inputs", "outputs"):
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest[kind][0]["name"] = name
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BuildError) as caught:
            Bundle.open(tmp_path)
        assert "manifest.json cannot be read" in caught.value.fault
        assert all(character.isprintable() or character == "\n" for character in str(caught.value))


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder", "FIFO"])
def test_what_has_the_name_already(tmp_path: Path, kind: str, force: bool) -> None:
    bundle, out = identity_bundle(tmp_path / "a.lp", ["y", "z"]), tmp_path / "out"
    out.mkdir()
    (tmp_path / "precious").write_text("1")
    if kind == "file":
        (out / "z.npy").write_text("old")
    elif kind == "folder":
        (out / "z.npy").mkdir()
    elif kind == "FIFO":
        os.mkfifo(out / "z.npy")
    else:
        (out / "z.npy").symlink_to(tmp_path / ("precious" if kind == "link" else "gone"))
    if kind == "file" and force:
        run_bundle(str(bundle), (), str(out), device="cpu", force=True)
        assert np.load(out / "z.npy").shape == (3,) and sorted(os.listdir(out)) == ["y.npy", "z.npy"]
        return
    with pytest.raises(UsageError) as caught:
        run_bundle(str(bundle), (), str(out), device="cpu", force=force)
    words = "no plain file: kept, also with --force" if force else "already, kept"
    assert caught.value.fault.startswith(f"{out} has z.npy") and caught.value.fault.endswith(words)
    assert os.listdir(out) == ["z.npy"] and (tmp_path / "precious").read_text() == "1"
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("force", [False, True])
def test_what_comes_while_the_model_runs_is_kept(tmp_path: Path, force: bool) -> None:
    out, precious = tmp_path / "out", tmp_path / "precious"
    precious.write_text("1")
    folder = OutputFolder(out, ["y.npy", "z.npy"], force=force)
    out.mkdir()
    (out / "z.npy").symlink_to(precious)
    with pytest.raises(UsageError, match="kept"):
        folder.write({name: lambda file: file.write(b"new") for name in ("y.npy", "z.npy")})
    assert os.listdir(out) == ["z.npy"] and precious.read_text() == "1"


def test_a_folder_that_moves_away_meanwhile_takes_its_files_along(tmp_path: Path) -> None:
    """Names are looked up in the folder that was opened, not under its path again."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()

    def swap(file: object) -> None:
        out.rename(tmp_path / "moved")
        out.symlink_to(elsewhere)

    OutputFolder(out, ["y.npy"], force=False).write({"y.npy": swap})
    assert os.listdir(elsewhere) == [] and os.listdir(tmp_path / "moved") == ["y.npy"]


def test_a_full_disk_leaves_no_output(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def full(file: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(BuildError, match="No space left on device"):
        OutputFolder(out, ["y.npy", "z.npy"], force=False).write(
            {"y.npy": lambda file: file.write(b"1"), "z.npy": full}
        )
    assert os.listdir(out) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "/x"])
def test_paths_are_checked_once_more_before_writing(tmp_path: Path, name: str) -> None:
    """Should a name ever get past the rule above."""
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="no name of a file"):
        OutputFolder(tmp_path / "out", [name], force=True)
    with pytest.raises(UsageError, match="no name of a file"):
        OutputFolder(tmp_path / "new", [name], force=True).write({name: lambda file: file.write(b"1")})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "out"]


def test_types_that_numpy_files_lack_travel_as_bytes(tmp_path: Path) -> None:
    bundle = identity_bundle(tmp_path / "a.lp", ["y"], dtype="bfloat16")
    run_bundle(str(bundle), (), str(tmp_path), device="cpu")
    assert np.load(tmp_path / "y.npy").view(ml_dtypes.bfloat16).tolist() == [0, 1, 2]
    again = run_bundle(str(bundle), [f"x={tmp_path / 'y.npy'}"], str(tmp_path), device="cpu", force=True)
    assert again.outputs["y"].max == 2


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_input_file_is_refused_or_read(tmp_path: Path, seed: int) -> None:
    from random import Random

    from fuzz.mutations import bytes_mutation

    bundle = identity_bundle(tmp_path / "a.lp", ["y"])
    np.save(tmp_path / "x.npy", np.arange(3, dtype=np.float32))
    data = (tmp_path / "x.npy").read_bytes()
    for number in range(20):
        (tmp_path / "x.npy").write_bytes(bytes_mutation(data, Random(f"npy/{seed}/{number}")))
        with suppress(UsageError):
            run_bundle(str(bundle), [f"x={tmp_path / 'x.npy'}"], None, device="cpu")
