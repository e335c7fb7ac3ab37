"""Says on screen which pack keeps a build waiting, and since when, while it does.

`calls` and `loading` say what is running; `building` says where a remark about it goes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PATIENCE = 5.0
"""Seconds after which a pack is named for the first time; then again each time that the wait has doubled."""


@dataclass
class _Running:
    what: str
    since: float
    named_at: float


_running: list[_Running] = []
_listeners: list[Callable[[str], None]] = []


@contextlib.contextmanager
def running(what: str) -> Iterator[None]:
    """Note that a pack is at work within the block: at one call, or at many, as the inner blocks say.

    what: how a remark begins, such as `pack a (a-layers 1.0): layerport_layers`.
    """
    if not _listeners or threading.current_thread() is not threading.main_thread():
        yield
        return
    now = time.monotonic()
    entry = _Running(what, now, now)
    _running.append(entry)
    try:
        yield
    finally:
        del _running[_running.index(entry) :]


@contextlib.contextmanager
def reported(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell, from a thread of its own, of each pack that is at work for long within the block."""
    done = threading.Event()
    thread = threading.Thread(target=_look, args=(done, tell, PATIENCE), name="layerport pack clock", daemon=True)
    _listeners.append(tell)
    thread.start()
    try:
        yield
    finally:
        done.set()
        _listeners.remove(tell)
        thread.join()


def _look(done: threading.Event, tell: Callable[[str], None], patience: float) -> None:
    while not done.wait(patience / 5):
        if remark := _remark(patience):
            tell(remark)


def _remark(patience: float) -> str | None:
    now = time.monotonic()
    entries = list(_running)
    for entry in reversed(entries):
        waited = now - entry.since
        if waited < patience or waited < 2 * (entry.named_at - entry.since):
            continue
        for one in entries:
            one.named_at = now
        inside = "" if entry is entries[-1] else f", now with {entries[-1].what}"
        return f"{entry.what} has been running for {waited:.0f} s{inside}; Ctrl-C stops the build"
    return None
