"""The process in which Triton kernels run under Triton's interpreter, on plain memory.

Run as a file by `triton_interpreter.py`, never imported by it; it imports no layerport module.  One process serves
many runs, because importing Triton takes longer than most of them.

A line on stdin names a folder.  In it lies `request.json`, which tells where each array starts in `memory.bin`; the
worker runs the kernel, writes the arrays back, writes `answer.json`, and then a line on stdout.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import linecache
import os
import random
import sys
import traceback
from pathlib import Path
from typing import Any

_ALIGNMENT = 256
_GAP = 1 << 16  # between two tensors, so that what runs over the end of one is not in the next


class Fault(Exception):
    """The kernel does what it must not."""


class Tensor:
    """A tensor as the interpreter wants one: an address and a dtype, with the copies to a host being no copies."""

    def __init__(self, name: str, memory: Any, start: int, nbytes: int, dtype: str, itemsize: int) -> None:
        self.name = name
        self.address: int = memory.ctypes.data + start
        self.nbytes = nbytes
        self.dtype = dtype
        self.itemsize = itemsize

    def data_ptr(self) -> int:
        return self.address

    def itself(self, *_: Any, **__: Any) -> Tensor:
        return self

    untyped_storage = cpu = new_empty = set_ = storage_offset = size = stride = copy_ = itself


class Memory:
    """The interpreter's access to memory, which refuses addresses that are in no tensor."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.tensors: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self.check("reads", pointers, mask, dtype.itemsize if hasattr(dtype, "itemsize") else dtype().itemsize)
        return self.real.load(pointers, mask, other, dtype)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        self.check("writes", pointers, mask, value.dtype.itemsize)
        return self.real.store(pointers, value, mask)

    def atomic_rmw(self, operation: Any, pointers: Any, value: Any, mask: Any, order: Any) -> Any:
        self.check("writes", pointers, mask, value.dtype.itemsize)
        return self.real.atomic_rmw(operation, pointers, value, mask, order)

    def atomic_cas(self, pointers: Any, compared: Any, value: Any, order: Any) -> Any:
        self.check("writes", pointers, True, value.dtype.itemsize)
        return self.real.atomic_cas(pointers, compared, value, order)

    def check(self, what: str, pointers: Any, mask: Any, itemsize: int) -> None:
        import numpy as np

        addresses = np.asarray(pointers).astype(np.uint64)
        active = addresses[np.broadcast_to(np.asarray(mask).astype(bool), addresses.shape)]
        inside = np.zeros(active.shape, bool)
        for tensor in self.tensors:
            start, end = np.uint64(tensor.address), np.uint64(tensor.address + tensor.nbytes)
            inside |= (active >= start) & (active + np.uint64(itemsize) <= end)
        if not inside.all():
            raise Fault(self._describe(what, int(active[~inside][0]), int((~inside).sum())))

    def _describe(self, what: str, address: int, count: int) -> str:
        def distance(tensor: Tensor) -> int:
            return max(tensor.address - address, address - (tensor.address + tensor.nbytes - 1), 0)

        near = min(self.tensors, key=distance, default=None)
        if near is None or distance(near) > _GAP:
            return f"{what} {count} elements at addresses in no tensor, the first at {address:#x}"
        index, elements = (address - near.address) // near.itemsize, near.nbytes // near.itemsize
        return (
            f"{what} {count} elements out of bounds, the first at {near.name}[{index}], which has {elements} elements"
        )


@functools.cache
def load_file(path: str, content: bytes) -> Any:
    """The module of a file, run once for each content of it."""
    name = f"layerport_triton_{hashlib.sha256(path.encode() + content).hexdigest()[:32]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    linecache.updatecache(path)
    # Python's own cache takes an edit within the same second for no edit.
    exec(compile(content, path, "exec", dont_inherit=True), vars(module))
    return module


def find(place: dict[str, Any]) -> Any:
    if place["module"]:
        module = importlib.import_module(place["module"])
    else:
        module = load_file(place["file"], Path(place["file"]).read_bytes())
    return getattr(module, place["name"])


def arguments(fn: Any, request: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The value of every parameter of the function."""
    import triton.language as tl

    annotated = {name for name, kind in fn.fn.__annotations__.items() if "constexpr" in str(kind)}
    constants: dict[str, Any] = {}
    for name, value in request["constexprs"].items():
        if isinstance(value, dict):
            value = tl.str_to_ty(value["dtype"], None)
        # `is None` is asked of the value itself; other values of unannotated parameters would become tensors.
        constants[name] = value if name in annotated or value is None else tl.constexpr(value)
    if unknown := sorted(set(constants) - set(fn.arg_names)):
        raise Fault(f"it has no constexpr {', '.join(unknown)}, its parameters are {', '.join(fn.arg_names)}")
    left = [name for name in fn.arg_names if name not in constants and name not in annotated]
    given = request["args"]
    if len(left) != len(given):
        raise Fault(
            f"it takes {len(left)} arguments that are no constexprs ({', '.join(left)}), {len(given)} are passed"
        )
    for name, (kind, value) in zip(left, given, strict=True):
        if kind == "value":
            constants[name] = scalar(value, fn.fn.__annotations__.get(name))
        else:
            constants[name] = tensors[value] if kind == "tensor" else None
    return constants


def scalar(value: bool | int | float, annotation: Any) -> Any:
    """A number of the type that it has in the compiled kernel, where the interpreter would go by its value."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter, jit

    stated = jit._normalize_ty(annotation) if annotation is not None else ""
    if isinstance(value, bool):
        kind = "u1"
    elif isinstance(value, float):
        kind = stated if stated == "fp64" else "fp32"
    elif stated in ("i32", "i64", "u32", "u64"):
        kind = stated
    else:
        kind = "i32" if -(2**31) <= value < 2**31 else "i64"
    made = tl.str_to_ty(kind, None)
    data = np.array([value], np.bool_ if kind == "u1" else interpreter._get_np_dtype(made))
    return tl.tensor(interpreter.TensorHandle(data, made), made)


def run(request: dict[str, Any], memory: Any, guard: Memory) -> None:
    import numpy as np
    from triton.runtime import interpreter

    tensors = {
        name: Tensor(name, memory, start, nbytes, dtype, itemsize)
        for name, (start, nbytes, dtype, itemsize) in request["tensors"].items()
    }
    guard.tensors = list(tensors.values())
    fn = find(request["place"])
    values = arguments(fn, request, tensors)
    grid = tuple(request["grid"])
    programs = list(range(grid[0] * grid[1] * grid[2]))
    if request["order"] == "backward":
        programs.reverse()
    elif request["order"] != "forward":
        random.Random(request["order"]).shuffle(programs)
    builder = interpreter.interpreter_builder
    place, load = type(builder).set_grid_idx, type(builder).create_masked_load

    def set_grid_idx(x: int, y: int, z: int) -> None:
        chosen = programs[(x * grid[1] + y) * grid[2] + z]
        place(builder, chosen // (grid[1] * grid[2]), chosen // grid[2] % grid[1], chosen % grid[2])

    def create_masked_load(pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        # Without `other`, what a masked lane holds is undefined: here it is a NaN or -1, on a GPU it may be anything.
        kind = interpreter._get_np_dtype(pointers.get_element_ty())
        if other is None and np.dtype(kind) != np.bool_:
            fill = np.empty(pointers.data.shape, kind)
            fill.reshape(-1).view(np.uint8)[...] = request["garbage"]
            other = interpreter.TensorHandle(fill, pointers.get_element_ty())
        return load(builder, pointers, mask, other, *rest)

    builder.set_grid_idx, builder.create_masked_load = set_grid_idx, create_masked_load
    with np.errstate(all="ignore"):
        fn[grid](**values)


def explain(error: BaseException, file: str | None) -> dict[str, Any]:
    """What went wrong and where in the author's file."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    line = None
    at: BaseException | None = error
    while at is not None:
        for frame, number in traceback.walk_tb(at.__traceback__):
            if file is not None and frame.f_code.co_filename == file:
                line = number
        at = at.__cause__
    kind = "" if isinstance(root, Fault) else f"{type(root).__name__}: "
    return {"ok": False, "error": f"{kind}{root}".strip(), "line": line}


def serve(folder: Path, guard: Memory) -> dict[str, Any]:
    import numpy as np

    request = json.loads((folder / "request.json").read_text())
    data = (folder / "memory.bin").read_bytes()
    room = np.zeros(len(data) + _ALIGNMENT, np.uint8)
    skipped = -room.ctypes.data % _ALIGNMENT
    memory = room[skipped : skipped + len(data)]
    memory[...] = np.frombuffer(data, np.uint8)
    try:
        run(request, memory, guard)
    except Exception as error:
        return explain(error, request["source"])
    (folder / "memory.bin").write_bytes(memory.tobytes())
    return {"ok": True}


def main() -> None:
    signal = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a kernel prints must not look like an answer
    sys.path[:] = json.loads(sys.stdin.readline())
    sys.modules["torch"] = None  # type: ignore[assignment]  # Triton looks for it once, and seconds pass
    import triton.runtime.jit
    from triton.runtime import interpreter

    triton.runtime.jit.mangle_type(1)
    del sys.modules["torch"]
    guard = Memory(interpreter._interpreter)
    interpreter._interpreter = guard
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        answer = serve(folder, guard)
        sys.stdout.flush()
        (folder / "answer.json").write_text(json.dumps(answer))
        signal.write("done\n")
        signal.flush()


if __name__ == "__main__":
    main()
