"""A bundle takes the place of an older one: never anything else, and never so that both are lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerport.bundle import bundle as bundles
from layerport.bundle import replacing
from layerport.bundle.bundle import Bundle, check_output, writing
from layerport.errors import LayerportError, UsageError
from layerport.system import renames
from small_bundles import write_small
from small_setup import python

KEPT = "is not a bundle and was kept, also with --force"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def replace(out: Path, text: str = "new") -> None:
    with writing(out, force=True) as folder:
        write_small(folder, text)


@pytest.fixture(params=["in one step", "in two steps"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the exchange of Linux, and as on a file system that has none."""
    if request.param == "in two steps":
        monkeypatch.setattr(renames, "_renameat2", lambda: None)
    return str(request.param)


def test_a_bundle_is_replaced_and_nothing_is_left(tmp_path: Path, steps: str) -> None:
    out = write_small(tmp_path / "a.lp", "old", more=("rtx-sm_89.plan", "model.onnx.data", "samples.safetensors"))
    replace(out)
    assert (out / bundles.MODEL).read_text() == "new" and not (out / "rtx-sm_89.plan").exists()
    assert os.listdir(tmp_path) == ["a.lp"]


def test_this_machine_exchanges_in_one_step(tmp_path: Path) -> None:
    """Else the tests above would show the second way twice."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    assert renames.exchange(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path / "a") == ["b"]


PRECIOUS: dict[str, Callable[[Path], Any]] = {
    "a file beside": lambda out: (out / "notes.txt").write_text("mine"),
    "a hidden file": lambda out: (out / ".git").write_text("mine"),
    "a folder": lambda out: (out / "checkpoints").mkdir(),
    "a folder with a bundle's name": lambda out: (out / "rtx-sm_89.plan").mkdir(),
    "a link with a bundle's name": lambda out: (out / "samples.safetensors").symlink_to("/etc/hostname"),
    "a bundle's name that is not listed": lambda out: (out / "samples.safetensors").write_text("mine"),
    "a bundle in the bundle": lambda out: write_small(out / "b.lp", "mine"),
}


@pytest.mark.parametrize("kind", PRECIOUS)
def test_a_folder_with_anything_else_is_kept_and_the_thing_named(tmp_path: Path, kind: str) -> None:
    out = write_small(tmp_path / "a.lp", "old")
    before = set(os.listdir(out))
    PRECIOUS[kind](out)
    (name,) = set(os.listdir(out)) - before
    after = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError) as caught:
        check_output(out, force=True)
    assert caught.value.fault == f"{out} {KEPT}"
    assert [fault.split()[0] for fault in caught.value.faults] == [name]
    assert sorted(tmp_path.rglob("*")) == after


MANIFESTS: dict[str, Any] = {
    "a browser extension": {"manifest_version": 3, "name": "x", "files": ["a.js"]},
    "a list": [1],
    "a build tool": {"format": 1, "files": {}},
    "another format": {"format": 2, "layerport": "9", "files": {}},
    "a format that only equals ours": {"format": True, "layerport": "1", "files": {}},
    "files as list": {"format": 1, "layerport": "1", "files": []},
}


@pytest.mark.parametrize("kind", [*MANIFESTS, "no JSON", "deep", "a link", "a FIFO", "a large one"])
def test_a_manifest_alone_makes_no_bundle(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.lp"
    out.mkdir()
    (out / "precious").write_text("1")
    manifest = out / bundles.MANIFEST
    sound = write_small(tmp_path / "sound.lp", "x")
    if kind in MANIFESTS:
        manifest.write_text(json.dumps(MANIFESTS[kind]))
    elif kind == "a link":
        manifest.symlink_to(sound / bundles.MANIFEST)
    elif kind == "a FIFO":
        os.mkfifo(manifest)
    elif kind == "a large one":
        manifest.write_text("[]")
        os.truncate(manifest, 1 << 40)
    else:
        manifest.write_text("[" * 100_000 if kind == "deep" else "old")
    with pytest.raises(UsageError) as caught, writing(out, force=True):
        raise AssertionError("not reached")
    assert caught.value.fault == f"{out} {KEPT}"
    assert sorted(os.listdir(out)) == ["manifest.json", "precious"]


def test_a_manifest_that_lists_strange_names_frees_none_of_them(tmp_path: Path) -> None:
    out = write_small(tmp_path / "a.lp", "old", more=("thesis.tex",))
    with pytest.raises(UsageError) as caught:
        check_output(out, force=True)
    assert caught.value.faults == ("thesis.tex is no file of the bundle",)


def test_many_strange_files_are_counted(tmp_path: Path) -> None:
    out = write_small(tmp_path / "a.lp", "old")
    for number in range(50):
        (out / f"photo{number:02}.jpg").write_text("")
    with pytest.raises(UsageError) as caught:
        check_output(out, force=True)
    assert len(caught.value.faults) == 21 and caught.value.faults[-1] == "and 30 more"


def test_a_bundle_is_whole_with_all_its_files_and_no_other(tmp_path: Path) -> None:
    out = write_small(tmp_path / "a.lp", "old", more=("samples.safetensors",))
    assert replacing.is_whole(out)
    (out / "samples.safetensors").unlink()
    assert not replacing.is_whole(out)
    (out / "samples.safetensors").write_text("again")
    (out / "other").write_text("")
    assert not replacing.is_whole(out)
    (out / "other").unlink()
    (out / bundles.MANIFEST).unlink()
    assert not replacing.is_whole(out)


def test_removing_takes_a_bundles_files_and_follows_no_link(tmp_path: Path) -> None:
    out = write_small(tmp_path / "a.lp", "old")
    link, missing = tmp_path / "link.lp", tmp_path / "missing.lp"
    link.symlink_to(out.name)
    before = content(out)
    replacing.remove_bundle(link)
    replacing.remove_bundle(missing)
    assert content(out) == before and link.is_symlink()
    (out / "thesis.tex").write_text("")
    replacing.remove_bundle(out)
    assert os.listdir(out) == ["thesis.tex"]
    again = write_small(tmp_path / "b.lp", "old")
    replacing.remove_bundle(again)
    assert not again.exists()


@pytest.mark.parametrize("force", [False, True])
def test_a_link_at_the_output_is_never_followed_or_replaced(tmp_path: Path, force: bool) -> None:
    target = write_small(tmp_path / "v1.lp", "old")
    out = tmp_path / "current.lp"
    out.symlink_to(target.name)
    with pytest.raises(UsageError, match="was kept"):
        check_output(out, force=force)
    assert os.readlink(out) == "v1.lp" and (target / bundles.MODEL).read_text() == "old"


def test_a_file_that_comes_while_it_is_replaced_is_kept(
    tmp_path: Path, steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look and the exchange: the look is repeated when nobody can reach the folder any more."""
    out = write_small(tmp_path / "a.lp", "old")
    real = replacing._write_through

    def late(*paths: Path) -> None:
        if len(paths) > 1:
            (out / "notes.txt").write_text("mine")
        real(*paths)

    monkeypatch.setattr(replacing, "_write_through", late)
    with pytest.raises(UsageError) as caught:
        replace(out)
    assert caught.value.faults == ("notes.txt is no file of the bundle",)
    assert (out / bundles.MODEL).read_text() == "old" and (out / "notes.txt").read_text() == "mine"
    assert os.listdir(tmp_path) == ["a.lp"]


# A fault at each step


NAMES = ("os.rename", "os.fsync", "os.unlink", "os.rmdir")


def faulty(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException, done: bool) -> list[str]:
    """Let the step of this number raise, after it was done or instead; the steps in order."""
    seen: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            if len(seen) - 1 == at and not done:
                raise error
            value = real(*args, **kwargs)
            if len(seen) - 1 == at:
                raise error
            return value

        return step

    for name in NAMES:
        monkeypatch.setattr(name, wrap(name, getattr(os, name.removeprefix("os."))))
    monkeypatch.setattr(replacing, "exchange", wrap("exchange", replacing.exchange))
    return seen


def steps_of(tmp_path: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        seen = faulty(patch, -1, ValueError(), done=False)
        replace(write_small(tmp_path / "counted.lp", "old"))
    shutil.rmtree(tmp_path / "counted.lp")
    return len(seen)


@pytest.mark.parametrize("done", [False, True], ids=["instead", "after"])
@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt()], ids=["EIO", "Ctrl-C"]
)
def test_a_fault_at_each_step_leaves_one_of_them_whole(
    tmp_path: Path, steps: str, error: BaseException, done: bool
) -> None:
    count = steps_of(tmp_path)
    assert count >= 5
    for at in range(count):
        out = write_small(tmp_path / f"{at}.lp", "old")
        with pytest.MonkeyPatch.context() as patch:
            faulty(patch, at, error, done)
            try:
                replace(out)
                raised = False
            except (LayerportError, OSError, KeyboardInterrupt):
                raised = True
        assert replacing.is_whole(out), at
        texts = set(content(out).values()) - {(out / bundles.MANIFEST).read_bytes()}
        assert texts in ({b"old"}, {b"new"}), at
        assert raised or texts == {b"new"}, at
        # What could not be removed is at most the older bundle; the next build goes through all the same.
        replace(out, "next")
        assert (out / bundles.MODEL).read_text() == "next"


KILLED = """
import os, signal, sys
from pathlib import Path
from layerport.bundle import replacing
from layerport.system import renames
from layerport.bundle.bundle import writing
from small_bundles import write_small

out, at, steps = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if steps == "in two steps":
    renames._renameat2 = lambda: None
seen = 0

def step(real):
    def call(*args, **kwargs):
        global seen
        value = real(*args, **kwargs)
        seen += 1
        if seen - 1 == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return value
    return call

for name in ("rename", "fsync", "unlink", "rmdir"):
    setattr(os, name, step(getattr(os, name)))
replacing.exchange = step(replacing.exchange)
with writing(out, force=True) as folder:
    write_small(folder, "new")
print(seen)
"""


def test_a_kill_at_each_step_leaves_one_of_them_whole(tmp_path: Path, steps: str) -> None:
    at, missing = 0, 0
    while True:
        out = write_small(tmp_path / f"{at}.lp", "old")
        killed = python(KILLED, str(out), str(at), steps)
        if killed.returncode == 0:
            break
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        if not out.exists():
            missing += 1
            with pytest.raises(UsageError) as caught:
                Bundle.open(out)
            assert caught.value.fault == f"{out} is not there: a build was killed while it replaced it"
            assert str(replacing.set_aside(out)) in str(caught.value.repair)
            assert replacing.is_whole(replacing.set_aside(out))
            with pytest.raises(UsageError, match="exists and was kept"):
                check_output(out)  # which puts it back
        assert replacing.is_whole(out)
        assert (out / bundles.MODEL).read_text() in ("old", "new")
        replace(out, "next")
        assert (out / bundles.MODEL).read_text() == "next"
        at += 1
    assert at >= 5 and missing == (1 if steps == "in two steps" else 0)


def test_what_stands_where_the_older_one_waits_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renames, "_renameat2", lambda: None)
    out = write_small(tmp_path / "a.lp", "old")
    aside = replacing.set_aside(out)
    aside.mkdir()
    (aside / "mine").write_text("1")
    with pytest.raises(UsageError) as caught:
        replace(out)
    assert caught.value.fault.startswith(f"{aside} is in the way")
    assert (aside / "mine").read_text() == "1" and (out / bundles.MODEL).read_text() == "old"
