"""What a Triton kernel does to memory, looked up access by access; the interpreter itself is a stand-in here."""

from __future__ import annotations

import mmap
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from layerport.harness.triton_memory import Fault, Memory, Tensor, far_apart

EXCHANGE = "exchange"


class Real:
    """Stands in for the interpreter's own access: float32, at the addresses as they are."""

    RMW_OP = SimpleNamespace(XCHG=EXCHANGE)

    def __init__(self, memory: dict[int, np.ndarray[Any, Any]]) -> None:
        self.memory = memory

    def place(self, pointer: int) -> tuple[np.ndarray[Any, Any], int]:
        for start, array in self.memory.items():
            if start <= pointer < start + array.nbytes:
                return array, (pointer - start) // array.itemsize
        raise AssertionError("the guard let a wild access pass")

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> list[float]:
        found = [self.place(int(one)) for one, on in zip(pointers, mask, strict=True) if on]
        return [float(array[place]) for array, place in found]

    def store(self, pointers: Any, value: Any, mask: Any) -> None:
        for one, number, on in zip(pointers, np.broadcast_to(value, np.shape(pointers)), mask, strict=True):
            if on:
                array, place = self.place(int(one))
                array[place] = number

    def atomic_rmw(self, operation: Any, pointers: Any, value: Any, mask: Any, order: Any) -> str:
        return "done"

    def atomic_cas(self, pointers: Any, compared: Any, value: Any, order: Any) -> str:
        return "compared"


class Guarded:
    """An input x and an output y of `count` float32 elements each, and the guard over both."""

    def __init__(self, count: int = 4, *, strict: bool = True, once: bool = False) -> None:
        places = far_apart([(4 * count, 0), (4 * count, 0)])
        arrays = [place.view(np.float32) for place in places]
        self.x, self.y = arrays
        self.tensors = [
            Tensor(name, place, "float32", 4, is_input=name == "x") for name, place in zip("xy", places, strict=True)
        ]
        self.guard = Memory(Real({one.address: array for one, array in zip(self.tensors, arrays, strict=True)}))
        self.guard.begin(self.tensors, strict=strict, once=once)

    def at(self, name: str, *places: int) -> np.ndarray[Any, Any]:
        return self.tensors["xy".index(name)].address + 4 * np.array(places)

    def write(self, program: int, places: list[int], value: Any, **options: Any) -> None:
        self.guard.begin_program(program)
        self.store("y", places, value, **options)

    def store(self, name: str, places: list[int], value: Any, mask: Any = True) -> None:
        pointers = self.at(name, *places)
        self.guard.store(pointers, np.asarray(value, np.float32), np.broadcast_to(mask, pointers.shape))

    def load(self, name: str, *places: int, mask: Any = True) -> Any:
        pointers = self.at(name, *places)
        return self.guard.load(pointers, np.broadcast_to(mask, pointers.shape), None, np.dtype(np.float32))

    def add(self, name: str, *places: int, operation: str = "add") -> Any:
        pointers = self.at(name, *places)
        return self.guard.atomic_rmw(operation, pointers, np.float32(1), True, "relaxed")

    def refused(self, what: str, *arguments: Any, **options: Any) -> str:
        with pytest.raises(Fault) as caught:
            getattr(self, what)(*arguments, **options)
        return str(caught.value)


def test_memory_is_far_apart_and_at_the_offset_asked_for() -> None:
    first, second, empty = far_apart([(40, 16), (8, 4), (0, 0)])
    assert (first.nbytes, second.nbytes, empty.nbytes) == (40, 8, 0)
    assert first.ctypes.data % 4096 == 16 and second.ctypes.data % 4096 == 4
    assert second.ctypes.data - first.ctypes.data > 1 << 25
    assert far_apart([]) == []


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_less_address_space_brings_memory_nearer(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = mmap.mmap, []

    def limited(number: int, size: int, *rest: Any) -> Any:
        asked.append(size)
        if len(asked) <= failures:
            raise OSError("no room")
        return real(number, size, *rest)

    monkeypatch.setattr(mmap, "mmap", limited)
    if failures == 3:
        with pytest.raises(MemoryError, match="no address space for 2 tensors"):
            far_apart([(8, 0), (8, 0)])
    else:
        first, second = far_apart([(8, 0), (8, 0)])
        assert second.ctypes.data - first.ctypes.data == asked[-1] // 2
    assert asked == sorted(asked, reverse=True) and len(set(asked)) == len(asked)


def test_what_is_right_passes() -> None:
    made = Guarded()
    made.x[:] = [1, 2, 3, 4]
    made.write(0, [0, 1], [5, 6])
    assert made.load("x", 0, 3) == [1, 4] and made.load("y", 1) == [6]
    made.write(1, [2, 3], 7)
    assert made.y.tolist() == [5, 6, 7, 7]
    # a masked lane may point anywhere
    assert made.load("x", 0, 1 << 20, mask=[True, False]) == [1]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (4, "reads 1 elements out of bounds, the first at x[4], which has 4 elements"),
        (-1, "reads 1 elements out of bounds, the first at x[-1], which has 4 elements"),
        (1 << 40, "reads 1 elements at addresses in no tensor, the first at 0x"),
    ],
)
def test_out_of_bounds(place: int, said: str) -> None:
    made = Guarded()
    assert made.refused("load", "x", 0, place).startswith(said)


def test_an_access_that_begins_inside_and_ends_outside() -> None:
    made = Guarded()
    with pytest.raises(Fault, match=r"out of bounds, the first at x\[3\]"):
        made.guard.load(made.at("x", 3), np.array([True]), None, np.dtype(np.float64))


def test_an_input_is_not_written() -> None:
    assert Guarded().refused("store", "x", [2], 1.0) == "writes its input x[2]"
    assert Guarded().refused("add", "x", 3) == "writes its input x[3]"


def test_what_nothing_has_written_is_not_read() -> None:
    made = Guarded()
    made.write(0, [0], 1)
    assert made.refused("load", "y", 0, 2, 3) == "reads y[2], which nothing has written"
    assert made.refused("add", "y", 1) == "adds to y[1], which nothing has written"
    assert made.add("y", 1, operation=EXCHANGE) == "done"
    assert Guarded(strict=False).load("y", 0) == [0.0]


def test_what_other_programs_write_is_named_with_its_program() -> None:
    made = Guarded()
    made.write(0, [0], 1)
    made.write(1, [1], 2)
    made.write(2, [2], 3)
    made.guard.begin_program(3)
    said = made.refused("load", "y", 1, 2)
    assert said == "program 3 reads y[1], which program 1 writes: programs run in any order"
    assert made.refused("store", "y", [2, 1], 9.0) == "program 3 writes y[2], where program 2 writes another value"
    # the same value is no race
    made.store("y", [2], 3.0)
    # who has done an atomic operation may know that the others are done
    made.guard.begin_program(4)
    made.add("y", 3, operation=EXCHANGE)
    assert made.load("y", 0) == [1.0]
    made.store("y", [0], 8.0)
    made.guard.begin_program(5)
    assert "programs run in any order" in made.refused("load", "y", 0)


def test_each_element_once() -> None:
    made = Guarded(once=True)
    made.write(0, [0], 1)
    made.write(1, [1], 1)
    assert made.refused("write", 2, [1, 0], 1).startswith("program 2 writes y[1], which program 1 writes too; let one")
    made.write(1, [1], 1)
    other = Guarded(once=False)
    other.write(0, [0], 1)
    other.write(1, [0], 1)


def test_lanes_that_write_one_element() -> None:
    made = Guarded()
    assert made.refused("write", 0, [1, 1], [1, 2]) == "writes different values to y[1] at once"
    made.write(0, [1, 1], [2, 2])
    Guarded(strict=False).write(0, [1, 1], [1, 2])


def test_a_wide_write_is_known_for_each_of_its_elements() -> None:
    made = Guarded()
    made.guard.begin_program(0)
    made.guard.store(made.at("y", 0), np.float64(0), np.array([True]))
    assert made.load("y", 0, 1) == [0, 0]
    assert made.refused("load", "y", 2) == "reads y[2], which nothing has written"


def test_compare_and_swap_reads_and_writes() -> None:
    made = Guarded()
    with pytest.raises(Fault, match=r"adds to y\[0\], which nothing has written"):
        made.guard.atomic_cas(made.at("y", 0), np.float32(0), np.float32(1), "relaxed")
    made.write(0, [0], 0)
    assert made.guard.atomic_cas(made.at("y", 0), np.float32(0), np.float32(1), "relaxed") == "compared"


def test_other_names_are_those_of_the_interpreter() -> None:
    assert Guarded().guard.RMW_OP.XCHG == EXCHANGE
