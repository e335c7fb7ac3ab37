"""What a Triton kernel does to memory under the interpreter, looked up access by access.

For `triton_worker` only.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

_GAP = 1 << 33
_NORESERVE = 0x4000 if not hasattr(mmap, "MAP_NORESERVE") else mmap.MAP_NORESERVE
_NOBODY, _ATOMIC = -1, -2


class Fault(Exception):
    """The kernel does what it must not."""


def far_apart(places: Sequence[tuple[int, int]]) -> list[Any]:
    """Memory for each (bytes, offset from a page), so far apart that what misses one does not hit the next."""
    import numpy as np

    most = max((nbytes + offset for nbytes, offset in places), default=0)
    for bits in (34, 30, 26):
        step = 1 << max(bits, most.bit_length() + 2)
        try:
            room = mmap.mmap(-1, step * max(len(places), 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        except OSError:
            continue
        whole = np.frombuffer(room, np.uint8)
        starts = [step * number + step // 2 + offset for number, (_, offset) in enumerate(places)]
        return [whole[start : start + nbytes] for start, (nbytes, _) in zip(starts, places, strict=True)]
    raise MemoryError(f"no address space for {len(places)} tensors")


class Tensor:
    """A tensor as the interpreter wants one: an address and a dtype, with the copies to a host being no copies.

    writers: for each element the program that wrote it; None for an input.
    """

    def __init__(self, name: str, memory: Any, dtype: str, itemsize: int, *, is_input: bool) -> None:
        import numpy as np

        self.name = name
        self.memory = memory
        self.address: int = memory.ctypes.data
        self.nbytes: int = memory.nbytes
        self.dtype = dtype
        self.itemsize = itemsize
        self.writers = None if is_input else np.full(self.nbytes // itemsize, _NOBODY, np.int64)

    def data_ptr(self) -> int:
        return self.address

    def itself(self, *_: Any, **__: Any) -> Tensor:
        return self

    untyped_storage = cpu = new_empty = set_ = storage_offset = size = stride = copy_ = itself


class Memory:
    """The interpreter's access to memory, which refuses what a GPU would not: addresses that are in no tensor, and
    writes to inputs; in a strict run what depends on the order of programs, and what nothing has written, too; where
    each element is to be written once, a second program that writes it.
    """

    tensors: list[Tensor]
    strict: bool
    once: bool
    program: int
    synchronised: bool

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def begin(self, tensors: list[Tensor], *, strict: bool, once: bool) -> None:
        self.tensors, self.strict, self.once = tensors, strict, once

    def begin_program(self, number: int) -> None:
        # A program that has done an atomic operation may know by it that another one is done.
        self.program, self.synchronised = number, False

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        size = dtype.itemsize if hasattr(dtype, "itemsize") else dtype().itemsize
        for tensor, elements, _ in self.places("reads", pointers, mask, size):
            self.known(tensor, elements, "reads")
        return self.real.load(pointers, mask, other, dtype)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        import numpy as np

        size = value.dtype.itemsize
        places = self.places("writes", pointers, mask, size)
        values = np.broadcast_to(value, np.shape(pointers)).reshape(-1)
        for tensor, elements, chosen in places:
            self.not_an_input(tensor, elements)
            if self.once:
                self.one_writer(tensor, elements)
            if self.strict and size == tensor.itemsize:
                self.one_value(tensor, elements, values[chosen])
            self.wrote(tensor, elements, size, self.program)
        answer = self.real.store(pointers, value, mask)
        if self.strict:
            for tensor, elements, chosen in places:
                if size == tensor.itemsize:
                    self.same_lanes(tensor, elements, values[chosen])
        return answer

    def atomic_rmw(self, operation: Any, pointers: Any, value: Any, mask: Any, order: Any) -> Any:
        self.atomic(pointers, mask, value.dtype.itemsize, reads=operation != self.real.RMW_OP.XCHG)
        return self.real.atomic_rmw(operation, pointers, value, mask, order)

    def atomic_cas(self, pointers: Any, compared: Any, value: Any, order: Any) -> Any:
        self.atomic(pointers, True, value.dtype.itemsize, reads=True)
        return self.real.atomic_cas(pointers, compared, value, order)

    def atomic(self, pointers: Any, mask: Any, size: int, *, reads: bool) -> None:
        for tensor, elements, _ in self.places("writes", pointers, mask, size):
            self.not_an_input(tensor, elements)
            if reads:
                self.known(tensor, elements, "adds to")
            self.wrote(tensor, elements, size, _ATOMIC)
        self.synchronised = True

    def places(self, what: str, pointers: Any, mask: Any, size: int) -> list[tuple[Tensor, Any, Any]]:
        """For each tensor that is met: its elements, and which pointers they are.  Raises Fault for the others."""
        import numpy as np

        addresses = np.asarray(pointers).astype(np.uint64).reshape(-1)
        active = np.flatnonzero(np.broadcast_to(np.asarray(mask).astype(bool), np.shape(pointers)).reshape(-1))
        left = addresses[active]
        found = []
        for tensor in self.tensors:
            start, end = np.uint64(tensor.address), np.uint64(tensor.address + tensor.nbytes)
            inside = (left >= start) & (left + np.uint64(size) <= end)
            if inside.any():
                elements = ((left[inside] - start) // np.uint64(tensor.itemsize)).astype(np.int64)
                found.append((tensor, elements, active[inside]))
                left, active = left[~inside], active[~inside]
            if not left.size:
                return found
        if left.size:
            raise Fault(self.describe(what, int(left[0]), int(left.size)))
        return found

    def known(self, tensor: Tensor, elements: Any, what: str) -> None:
        """That a program may rely on what it reads here."""
        if tensor.writers is None or not self.strict:
            return
        writers = tensor.writers[elements]
        if (bad := writers == _NOBODY).any():
            raise Fault(f"{what} {tensor.name}[{int(elements[bad][0])}], which nothing has written")
        bad = (writers >= 0) & (writers != self.program)
        if bad.any() and not self.synchronised:
            raise Fault(
                f"program {self.program} {what} {tensor.name}[{int(elements[bad][0])}], which program "
                f"{int(writers[bad][0])} writes: programs run in any order"
            )

    def not_an_input(self, tensor: Tensor, elements: Any) -> None:
        if tensor.writers is None:
            raise Fault(f"writes its input {tensor.name}[{int(elements[0])}]")

    def one_writer(self, tensor: Tensor, elements: Any) -> None:
        """That no other program writes there, not even the same value."""
        writers = tensor.writers[elements]  # type: ignore[index]
        others = (writers >= 0) & (writers != self.program)
        if others.any() and not self.synchronised:
            raise Fault(
                f"program {self.program} writes {tensor.name}[{int(elements[others][0])}], which program "
                f"{int(writers[others][0])} writes too; let one program write it, or all of them by atomic operations"
            )

    def one_value(self, tensor: Tensor, elements: Any, values: Any) -> None:
        """That no other program writes another value there."""
        writers = tensor.writers[elements]  # type: ignore[index]
        others = (writers >= 0) & (writers != self.program)
        if self.synchronised or not others.any():
            return
        bad = others & self.differs(tensor, elements, values)
        if bad.any():
            raise Fault(
                f"program {self.program} writes {tensor.name}[{int(elements[bad][0])}], where program "
                f"{int(writers[bad][0])} writes another value"
            )

    def same_lanes(self, tensor: Tensor, elements: Any, values: Any) -> None:
        bad = self.differs(tensor, elements, values)
        if bad.any():
            raise Fault(f"writes different values to {tensor.name}[{int(elements[bad][0])}] at once")

    def differs(self, tensor: Tensor, elements: Any, values: Any) -> Any:
        import numpy as np

        kind = np.dtype(f"u{tensor.itemsize}")
        return tensor.memory.view(kind)[elements] != np.ascontiguousarray(values).view(kind)

    def wrote(self, tensor: Tensor, elements: Any, size: int, who: int) -> None:
        assert tensor.writers is not None
        for further in range(0, max(size, 1), tensor.itemsize):
            tensor.writers[elements + further // tensor.itemsize] = who

    def describe(self, what: str, address: int, count: int) -> str:
        def distance(tensor: Tensor) -> int:
            return max(tensor.address - address, address - (tensor.address + tensor.nbytes - 1), 0)

        near = min(self.tensors, key=distance, default=None)
        if near is None or distance(near) > _GAP:
            return f"{what} {count} elements at addresses in no tensor, the first at {address:#x}"
        index, elements = (address - near.address) // near.itemsize, near.nbytes // near.itemsize
        return (
            f"{what} {count} elements out of bounds, the first at {near.name}[{index}], which has {elements} elements"
        )
