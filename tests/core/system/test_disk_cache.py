"""The disk cache: what it gives back, what it refuses to believe, and that it never stops a build."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerport.errors import BuildError
from layerport.system import disk_cache as module
from layerport.system.disk_cache import FOLDER_VARIABLE, DiskCache, cache_key, default_folder
from layerport.system.trust import own_temporary_folder

KEY = cache_key({"source": "a"})


@pytest.fixture
def store(tmp_path: Path) -> DiskCache:
    store = DiskCache(tmp_path / "kernels")
    store.put(KEY, {"symbol": "k"}, b"\x00cubin\n" * 50)
    return store


def test_gives_back_what_was_put(store: DiskCache) -> None:
    assert store.get(KEY) == ({"symbol": "k"}, b"\x00cubin\n" * 50)
    assert store.get(cache_key({"source": "b"})) is None


def test_keys_differ_with_each_field_and_not_with_their_order() -> None:
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1})
    assert len({cache_key({"a": 1}), cache_key({"a": 2}), cache_key({"b": 1}), cache_key({"a": "1"})}) == 4


def test_only_the_owner_may_use_the_folder(store: DiskCache) -> None:
    assert store.folder.stat().st_mode & 0o077 == 0
    assert [path.name for path in store.path(KEY).parent.iterdir()] == [KEY]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-1], "does not have the digest"),
        (lambda data: data[:60], "not an entry of this cache"),
        (lambda data: b"", "not an entry of this cache"),
        (lambda data: data + b"x", "does not have the digest"),
        (lambda data: data.replace(b"cubin", b"CUBIN"), "does not have the digest"),
        (lambda data: b"\x7fELF" + data, "not an entry of this cache"),
    ],
)
def test_a_damaged_entry_is_a_miss(
    store: DiskCache, damage: object, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(damage)
    path = store.path(KEY)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert store.get(KEY) is None
    assert reason in caplog.text
    assert str(path) in caplog.text


@given(st.data())
def test_no_flipped_byte_is_believed(data: st.DataObject) -> None:
    entry = bytearray(module._encode(KEY, {"symbol": "k"}, b"payload" * 9))
    assert module._decode(bytes(entry), KEY) == ({"symbol": "k"}, b"payload" * 9)
    place = data.draw(st.integers(0, len(entry) - 1))
    entry[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="it is not an entry|does not have the digest"):
        module._decode(bytes(entry), KEY)


def test_an_entry_of_another_key_is_a_miss(store: DiskCache, caplog: pytest.LogCaptureFixture) -> None:
    other = cache_key({"source": "b"})
    store.path(other).parent.mkdir(exist_ok=True)
    store.path(other).write_bytes(store.path(KEY).read_bytes())
    assert store.get(other) is None
    assert "it belongs to another key" in caplog.text


def test_a_folder_that_cannot_be_written_warns_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = DiskCache(tmp_path / "file" / "kernels")
    with pytest.warns(RuntimeWarning, match=r"nothing is kept in .*LAYERPORT_CACHE_DIR to a folder that can be"):
        store.put(KEY, {}, b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.put(KEY, {}, b"x")
    assert store.get(KEY) is None


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    store = DiskCache(tmp_path / "full")
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        store.put(KEY, {}, b"x")
    assert list(store.path(KEY).parent.iterdir()) == []


def test_the_variable_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", "")
    assert default_folder().name == "layerport"


_WRITER = """
import sys
from pathlib import Path
from layerport.system.disk_cache import DiskCache
store = DiskCache(Path(sys.argv[1]))
for turn in range(200):
    store.put("aa" + "0" * 62, {"symbol": "k"}, b"payload" * 5000)
    entry = store.get("aa" + "0" * 62)
    assert entry is not None and entry[1] == b"payload" * 5000, entry
"""


def test_two_processes_on_one_key(tmp_path: Path) -> None:
    source = str(Path(module.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source}
    command = [sys.executable, "-c", _WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for writer in writers:
        # An entry seen half would print the warning of a miss here.
        assert writer.communicate(timeout=60)[1] == ""
        assert writer.returncode == 0
    assert len(list((tmp_path / "aa").iterdir())) == 1


def own_by_another(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, -1, follow_symlinks=False)


FOLDERS = {
    "the folder may be written by all": (lambda store: store.folder.chmod(0o777), "mode 777", "chmod go-w"),
    "the folder may be written by its group": (lambda store: store.folder.chmod(0o770), "mode 770", "chmod go-w"),
    "sticky is not enough for the folder itself": (lambda store: store.folder.chmod(0o1777), "mode 1777", "chmod go-w"),
    "a folder inside it": (lambda store: store.path(KEY).parent.chmod(0o722), "mode 722", "chmod go-w"),
    "a folder above it": (lambda store: store.folder.parent.chmod(0o775), "mode 775", "chmod go-w"),
    "the folder is another's": (lambda store: own_by_another(store.folder), "belongs to user 12345", "chown"),
    "a folder above is another's": (lambda store: own_by_another(store.folder.parent), "user 12345", "chown"),
    "the entry may be written by others": (lambda store: store.path(KEY).chmod(0o666), "mode 666", "chmod go-w"),
    "the entry is another's": (lambda store: own_by_another(store.path(KEY)), "belongs to user 12345", "chown"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_what_others_can_write_is_not_used_and_the_repair_is_said_once(name: str, tmp_path: Path) -> None:
    above = tmp_path / "above"
    above.mkdir()
    store = DiskCache(above / "kernels")
    store.put(KEY, {"symbol": "k"}, b"payload")
    change, reason, repair = FOLDERS[name]
    change(store)
    with pytest.warns(RuntimeWarning, match=f"nothing is kept in .*{reason}.*To repair: {repair} ") as told:
        assert store.get(KEY) is None
    assert "or set LAYERPORT_CACHE_DIR to a folder of your own" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.get(KEY) is None
        if "entry" not in name:
            before = store.path(KEY).stat().st_mtime_ns
            store.put(KEY, {"symbol": "k"}, b"payload")
            assert store.path(KEY).stat().st_mtime_ns == before


def test_a_sticky_folder_above_is_fine_where_ours_is_ours(tmp_path: Path) -> None:
    above = tmp_path / "as_tmp"
    above.mkdir()
    above.chmod(0o1777)
    store = DiskCache(above / "mine" / "kernels")
    store.put(KEY, {}, b"payload")
    assert store.get(KEY) == ({}, b"payload")
    assert [one.stat().st_mode & 0o777 for one in (store.folder, store.folder.parent)] == [0o700, 0o700]


def test_links_are_followed_by_the_same_rule(tmp_path: Path) -> None:
    real = tmp_path / "real"
    DiskCache(real / "kernels").put(KEY, {}, b"payload")
    safe, open_to_all = tmp_path / "safe", tmp_path / "open"
    for folder in (safe, open_to_all):
        folder.mkdir()
        (folder / "link").symlink_to("../real")
    (safe / "far").symlink_to(open_to_all / "link")
    open_to_all.chmod(0o777)
    assert DiskCache(safe / "link" / "kernels").get(KEY) == ({}, b"payload")
    for folder in (open_to_all / "link" / "kernels", safe / "far" / "kernels"):
        with pytest.warns(RuntimeWarning, match=f"others may write to {open_to_all}"):
            assert DiskCache(folder).get(KEY) is None


def test_a_link_that_another_has_put_into_a_sticky_folder(tmp_path: Path) -> None:
    real, above = tmp_path / "real", tmp_path / "as_tmp"
    DiskCache(real / "kernels").put(KEY, {}, b"payload")
    above.mkdir()
    above.chmod(0o1777)
    (above / "link").symlink_to(real)
    own_by_another(above / "link")
    with pytest.warns(RuntimeWarning, match="belongs to user 12345"):
        assert DiskCache(above / "link" / "kernels").get(KEY) is None


def test_links_in_a_ring_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.warns(RuntimeWarning, match="leads through more than 40 links"):
        assert DiskCache(tmp_path / "a" / "kernels").get(KEY) is None


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "socket", "sparse"])
def test_what_is_no_regular_file_is_a_miss_at_once(
    kind: str, store: DiskCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = store.path(KEY)
    content = path.read_bytes()
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "folder":
        path.mkdir(0o700)
    elif kind == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "socket":
        import socket

        monkey = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{monkey}/{path.name}")
        os.close(monkey)
        path.chmod(0o600)
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
        path.chmod(0o600)
    begin = time.monotonic()
    assert store.get(KEY) is None
    assert time.monotonic() - begin < 1
    assert str(path) in caplog.text and "will be made again" in caplog.text
    if kind != "folder":
        store.put(KEY, {"symbol": "k"}, b"new")
        assert store.get(KEY) == ({"symbol": "k"}, b"new")


def test_an_entry_beyond_the_limit_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIMIT", 1000)
    store = DiskCache(tmp_path / "kernels")
    with pytest.warns(RuntimeWarning, match="at most 1000 are kept"):
        store.put(KEY, {}, bytes(1001))
    assert store.get(KEY) is None


def test_what_killed_processes_left_goes_and_what_is_being_written_stays(store: DiskCache) -> None:
    folder = store.path(KEY).parent
    old, new = folder / ".writing-old", folder / ".writing-new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    store.put(KEY, {}, b"again")
    assert sorted(path.name for path in folder.iterdir()) == [new.name, KEY]


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_whatever_the_umask_the_folders_are_ones_own(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = DiskCache(tmp_path / "a" / "b" / "kernels")
        store.put(KEY, {}, b"payload")
        assert store.get(KEY) == ({}, b"payload")
    finally:
        os.umask(before)


def test_all_that_is_kept_goes_through_one_place() -> None:
    root = Path(module.__file__).parent
    found = {
        path.name
        for path in root.rglob("*.py")
        if any(word in path.read_text() for word in ("default_folder", "user_cache_dir", "DiskCache(", FOLDER_VARIABLE))
    }
    assert found == {"disk_cache.py"}


def test_a_temporary_folder_that_others_can_replace_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    with (
        pytest.raises(BuildError, match=r"not safe to run programs from: others may write to .*shared ") as caught,
        own_temporary_folder("layerport-x-"),
    ):
        pass
    assert f"chmod go-w {shared}, or set TMPDIR to a folder of your own" in str(caught.value)
    assert list(shared.iterdir()) == []
    shared.chmod(0o1777)
    with own_temporary_folder("layerport-x-") as folder:
        assert folder.parent == shared
