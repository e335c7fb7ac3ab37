"""Lanes shared by threads: which one a call gets, how many there are, and how they end."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from layerport.engine import lanes
from layerport.engine.lanes import Pool
from layerport.errors import UsageError


class OneLane:
    """Stands in for a lane, which needs a GPU."""

    def __init__(self, key: Any = None) -> None:
        self.key, self.closed = key, 0

    def holds(self, key: Any) -> bool:
        return bool(self.key == key)

    def close(self) -> None:
        self.closed += 1


class Made:
    """What a pool has made."""

    def __init__(self, limit: int, *, fails: bool = False) -> None:
        self.lanes: list[OneLane] = []
        self.fails = fails
        self.pool = Pool(self.make, limit)  # type: ignore[arg-type]

    def make(self) -> OneLane:
        if self.fails:
            raise RuntimeError("no memory")
        self.lanes.append(OneLane())
        return self.lanes[-1]


def key(text: str) -> Any:
    return (("x", text),)


def test_a_lane_that_has_these_shapes_is_preferred_and_then_the_last_one() -> None:
    made = Made(3)
    with made.pool.lane(key("a")) as first, made.pool.lane(key("b")) as second:
        first.key, second.key = key("a"), key("b")  # type: ignore[attr-defined]
        assert first is not second
    with made.pool.lane(key("b")) as again:
        assert again is second
    with made.pool.lane(key("a")) as again:
        assert again is first
    with made.pool.lane(key("c")) as again:
        assert again is first
    assert len(made.lanes) == 2


def test_more_threads_than_lanes_wait_for_one() -> None:
    made, got = Made(1), threading.Event()

    def call() -> None:
        with made.pool.lane(key("a")):
            got.set()

    with made.pool.lane(key("a")):
        caller = threading.Thread(target=call)
        caller.start()
        assert not got.wait(0.2)
    caller.join(30)
    assert got.is_set() and len(made.lanes) == 1


def test_a_lane_that_could_not_be_made_takes_no_place() -> None:
    made = Made(1, fails=True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no memory"), made.pool.lane(key("a")):
            pass
    made.fails = False
    with made.pool.lane(key("a")) as lane:
        assert lane is made.lanes[0]


def test_close_ends_every_lane_once_and_those_who_wait() -> None:
    made, said = Made(1), []

    def call() -> None:
        try:
            with made.pool.lane(key("a")):
                said.append("a lane")
        except UsageError as error:
            said.append(error.fault)

    with made.pool.lane(key("a")):
        caller = threading.Thread(target=call)
        caller.start()
        closer = threading.Thread(target=made.pool.close)
        closer.start()
        caller.join(30)
        assert said == ["the session is closed"] and closer.is_alive()
    closer.join(30)
    made.pool.close()
    assert [lane.closed for lane in made.lanes] == [1]
    with pytest.raises(UsageError, match="the session is closed"), made.pool.lane(key("a")):
        pass
    assert len(made.lanes) == 1


def test_the_buffer_that_tensorrt_is_given_serves_what_fits() -> None:
    class Base:
        pass

    one = lanes._allocator(SimpleNamespace(IOutputAllocator=Base))
    assert one.reallocate_output("y", 0, 1, 16) == 0  # nothing was offered yet
    one.offer(4096, 100)
    for size, address in ((0, 4096), (99, 4096), (100, 4096), (101, 0)):
        assert one.reallocate_output("y", 0, size, 16) == address
        assert one.reallocate_output_async("y", 0, size, 16, 7) == address
