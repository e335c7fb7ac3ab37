"""The disk cache: what it gives back, what it refuses to believe, and that it never stops a build."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerport import cache as module
from layerport.cache import KernelCache, cache_key, default_folder

KEY = cache_key({"source": "a"})


@pytest.fixture
def store(tmp_path: Path) -> KernelCache:
    store = KernelCache(tmp_path / "kernels")
    store.put(KEY, {"symbol": "k"}, b"\x00cubin\n" * 50)
    return store


def test_gives_back_what_was_put(store: KernelCache) -> None:
    assert store.get(KEY) == ({"symbol": "k"}, b"\x00cubin\n" * 50)
    assert store.get(cache_key({"source": "b"})) is None


def test_keys_differ_with_each_field_and_not_with_their_order() -> None:
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1})
    assert len({cache_key({"a": 1}), cache_key({"a": 2}), cache_key({"b": 1}), cache_key({"a": "1"})}) == 4


def test_only_the_owner_may_use_the_folder(store: KernelCache) -> None:
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
    store: KernelCache, damage: object, reason: str, caplog: pytest.LogCaptureFixture
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


def test_an_entry_of_another_key_is_a_miss(store: KernelCache, caplog: pytest.LogCaptureFixture) -> None:
    other = cache_key({"source": "b"})
    store.path(other).parent.mkdir(exist_ok=True)
    store.path(other).write_bytes(store.path(KEY).read_bytes())
    assert store.get(other) is None
    assert "it belongs to another key" in caplog.text


def test_a_folder_that_cannot_be_written_warns_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = KernelCache(tmp_path / "file" / "kernels")
    with pytest.warns(RuntimeWarning, match=r"cannot be kept in .*set LAYERPORT_CACHE_DIR"):
        store.put(KEY, {}, b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.put(KEY, {}, b"x")
    assert store.get(KEY) is None


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    store = KernelCache(tmp_path / "full")
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
from layerport.cache import KernelCache
store = KernelCache(Path(sys.argv[1]))
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
