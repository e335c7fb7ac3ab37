"""`layerport lock` and `build --locked`: the same packs pass, and each thing that differs is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import layerport as lp
from layerport.cli import main
from layerport.errors import BuildError, PackError, UsageError
from layerport.packs.host import load
from layerport.packs.locking import digest_of, lock_of, require_locked, write_lock
from packs.installer import Site

KERNEL = """
from torch import Tensor

import layerport as lp


@lp.layer("NAMESPACE::copied")
def copied(x: Tensor) -> Tensor:
    return x.clone()


@copied.kernel(lp.cuda("copied.cu", "copied"), dtypes=("float32",))
def launch(x, output):
    return lp.Launch(grid=1, block=1, args=(x, output))


@copied.kernel(lp.triton("copied_triton.py:copied"), dtypes=("float16",))
def launch_triton(x, output):
    return lp.Launch(grid=1, args=(x, output))


@lp.hookimpl
def layerport_layers():
    return (copied,)
"""
FILES = {"pack.py": KERNEL, "copied.cu": '#include "more.h"\n', "more.h": "// 1\n", "copied_triton.py": "# 1\n"}


@pytest.fixture
def locked(site: Site, tmp_path: Path) -> Path:
    site.install("good", name="swish", distribution="swish-layers", version="1.0")
    path = tmp_path / "layerport.lock"
    write_lock(lock_of(load()), path)
    require_locked(load(), path)
    return path


def changed(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert re.search(old, text)
    path.write_text(re.sub(old, new, text, count=1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"version": "1.0"', '"version": "0.9"', ["pack swish: version 1.0 is here, 0.9 was locked"]),
        (
            '"name": "swish"',
            '"name": "gone"',
            ["pack gone (swish-layers 1.0) is not here", "pack swish (swish-layers 1.0) was not locked"],
        ),
        (r"::swish version 3\": \"..", '::swish version 3": "zz', ["::swish version 3 of pack swish is another one"]),
        (
            "::double version 1",
            "::double version 2",
            ["::double version 1 of pack swish was not locked", "::double version 2 of pack swish is not here"],
        ),
    ],
)
def test_each_difference_is_named(old: str, new: str, says: list[str], locked: Path) -> None:
    with pytest.raises(UsageError) as error:
        require_locked(load(), changed(locked, old, new))
    assert len(error.value.faults) == len(says)
    for fault, text in zip(error.value.faults, says, strict=True):
        assert text in fault
    assert "run `layerport lock` again" in error.value.repair


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no file"),
        ("{", "cannot be read as a lock"),
        ('{"format": 2, "packs": []}', "its format is 2, not 1"),
        ('{"format": 1}', "cannot be read as a lock"),
        ('{"format": 1, "packs": [{"name": 1, "distribution": null, "version": null, "layers": {}}]}', "has no name"),
        ('{"format": 1, "packs": [7]}', "cannot be read as a lock"),
    ],
)
def test_what_is_no_lock(text: str | None, says: str, locked: Path) -> None:
    locked.unlink() if text is None else locked.write_text(text)
    with pytest.raises(UsageError, match=says):
        require_locked(load(), locked)


def test_a_pack_that_does_not_load_cannot_be_locked(site: Site) -> None:
    site.install("import no_such_module\n", name="broken")
    with pytest.raises(PackError) as error:
        lock_of(load())
    assert "no_such_module" in error.value.faults[0]


def test_a_folder_that_takes_no_file(locked: Path) -> None:
    with pytest.raises(BuildError, match="cannot be written"):
        write_lock(lock_of(load()), locked / "layerport.lock")


@pytest.mark.parametrize("changed_file", [None, *FILES])
def test_a_digest_follows_reference_kernels_and_headers(changed_file: str | None, tmp_path: Path) -> None:
    digests = set()
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        for file, text in FILES.items():
            is_other = folder.name == "second" and file == changed_file
            (folder / file).write_text(text.replace("NAMESPACE", "digests_of_locks") + ("\n\n" if is_other else ""))
        (layer,) = _layers(folder / "pack.py")
        digests.add(digest_of(layer))
    assert len(digests) == (1 if changed_file is None else 2)


def _layers(file: Path) -> tuple[lp.Layer, ...]:
    return next(one for one in load(file) if one.explicit).layers


def test_the_commands(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("good", name="swish", distribution="swish-layers", version="1.0")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["lock"])
    assert done.exit_code == 0 and "swish (swish-layers 1.0): " in done.output
    assert "layerport.lock is written" in done.output
    said = json.loads(CliRunner().invoke(main, ["lock", "--json"]).output)
    assert said["packs"] == json.loads(Path("layerport.lock").read_text())["packs"]
    model = (torch.nn.ReLU(), (torch.ones(2),))
    lp.build(model, "fits.lp", target="portable", locked=True)
    changed(Path("layerport.lock"), '"version": "1.0"', '"version": "0.9"')
    with pytest.raises(UsageError, match="the packs here are not those of layerport.lock"):
        lp.build(model, "other.lp", target="portable", locked=True)
    assert not Path("other.lp").exists()
    Path("model.py").write_text("import torch\n\ndef made():\n    return torch.nn.ReLU(), (torch.ones(2),)\n")
    done = CliRunner().invoke(main, ["build", "model.py:made", "-o", "x.lp", "--target", "portable", "--locked"])
    assert done.exit_code == 2 and "version 1.0 is here, 0.9 was locked" in done.output
