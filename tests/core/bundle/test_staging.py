"""What a killed build leaves beside the output is cleared away by the next; what belongs to anyone else stays."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layerport.bundle import staging
from layerport.bundle.bundle import MANIFEST, writing
from layerport.errors import BuildError
from process_table import kill

HOLDS = """
import sys
from pathlib import Path
from layerport.bundle.bundle import writing
with writing(Path(sys.argv[1])) as folder:
    (folder / "model.onnx").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
"""


def build(out: Path) -> tuple[subprocess.Popen[str], Path]:
    """A build at work in another process, and its folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(out: Path) -> None:
    with writing(out, force=True) as folder:
        (folder / MANIFEST).write_text('{"layerport": "0.1", "format": 1, "files": {}}')


def test_the_next_build_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    process, folder = build(tmp_path / "a.lp")
    assert folder.is_relative_to(tmp_path)
    kill(process)
    assert folder.is_dir()
    write(tmp_path / "b.lp")
    assert left(tmp_path) == ["b.lp"]
    assert left(tmp_path / "b.lp") == [MANIFEST]


def test_a_build_at_work_keeps_its_folder(tmp_path: Path) -> None:
    process, folder = build(tmp_path / "a.lp")
    try:
        write(tmp_path / "a.lp")
        write(tmp_path / "b.lp")
        assert (folder / "model.onnx").read_text() == "half"
    finally:
        kill(process)
    write(tmp_path / "b.lp")
    assert left(tmp_path) == ["a.lp", "b.lp"]


def test_two_builds_of_one_process_keep_their_folders(tmp_path: Path) -> None:
    with writing(tmp_path / "a.lp") as folder:
        write(tmp_path / "b.lp")
        assert folder.is_dir()
    assert left(tmp_path) == ["a.lp", "b.lp"]


def test_another_machines_folder_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_machine", lambda: "0123abcd")
    process, folder = build(tmp_path / "a.lp")
    kill(process)
    write(tmp_path / "b.lp")
    assert folder.is_dir()


def test_a_folder_that_is_not_ours_is_kept(tmp_path: Path) -> None:
    name = f".a.lp.{staging._machine()}-abc.partial"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / name).symlink_to(outside)
    (beside / ".a.lp.partial").mkdir()
    (beside / ".a.lp.abcdefgh.partial").mkdir()
    (beside / f".b.lp.{staging._machine()}-abc.partial").write_text("a file")
    before = left(beside)
    staging.clear(beside)
    assert left(beside) == before and left(outside) == ["file"]


def test_a_lock_that_is_a_fifo_or_a_link_does_not_stop_a_build(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f".{name}.{staging._machine()}-abc.partial").mkdir()
    os.mkfifo(tmp_path / f".one.{staging._machine()}-abc.partial" / "lock")
    (tmp_path / f".two.{staging._machine()}-abc.partial" / "lock").symlink_to("/etc/passwd")
    begin = time.monotonic()
    write(tmp_path / "a.lp")
    assert time.monotonic() - begin < 5
    assert (tmp_path / "a.lp").is_dir()


def test_what_a_killed_replacement_left_goes_but_for_what_no_manifest_lists(tmp_path: Path) -> None:
    for name in ("a", "b"):
        process, folder = build(tmp_path / f"{name}.lp")
        kill(process)
        (folder / MANIFEST).write_text('{"layerport": "0.1", "format": 1, "files": {"model.onnx": {}}}')
    (folder / "mine.txt").write_text("put there in the moment before")
    staging.clear(tmp_path)
    assert left(tmp_path) == [folder.parent.name]
    assert left(folder) == [MANIFEST, "mine.txt", "model.onnx"]


def test_a_folder_that_a_cleaner_took_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = staging.tempfile.mkdtemp
    taken = []

    def taken_at_once(**options: str) -> str:
        name = made(**options)
        if len(taken) < 2:
            taken.append(name)
            if len(taken) == 1:
                os.rmdir(name)
            else:
                held = os.open(os.path.join(name, "lock"), os.O_RDWR | os.O_CREAT)
                fcntl.flock(held, fcntl.LOCK_EX)  # let go when the test's process ends
        return name

    monkeypatch.setattr(staging.tempfile, "mkdtemp", taken_at_once)
    write(tmp_path / "a.lp")
    assert len(taken) == 2 and (tmp_path / "a.lp").is_dir()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(handle: int, how: int) -> None:
        raise OSError(staging.errno.ENOLCK, "no locks available")

    process, folder = build(tmp_path / "a.lp")
    kill(process)
    monkeypatch.setattr(fcntl, "flock", none)
    write(tmp_path / "b.lp")
    assert (tmp_path / "b.lp").is_dir() and folder.is_dir()  # nobody can say whether it is at work


def test_a_folder_that_cannot_be_locked_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, how: int) -> None:
        raise OSError(staging.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fcntl, "flock", full)
    with pytest.raises(BuildError, match=r"cannot write beside .*: No space left on device"):
        write(tmp_path / "a.lp")
    assert left(tmp_path) == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_modes(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with writing(tmp_path / "a.lp") as folder:
            assert folder.parent.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    assert (tmp_path / "a.lp").stat().st_mode & 0o777 == 0o755
