"""The process in which Triton kernels run under Triton's interpreter, on plain memory.

Run as a file by `triton_interpreter.py`, never imported by it.  One process serves many runs, because importing Triton
takes longer than most of them.

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
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from layerport.foreign import triton_private
from layerport.harness import triton_numbers
from layerport.harness.triton_memory import Fault, Memory, Tensor, far_apart

_ALIGNMENT = 256


class TimeUp(Exception):
    """The kernel did not end in its time."""


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


def arguments(fn: Any, request: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
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

    stated = triton_private.stated_type(annotation) if annotation is not None else ""
    if isinstance(value, bool):
        kind = "u1"
    elif isinstance(value, float):
        kind = stated if stated == "fp64" else "fp32"
    elif stated in ("i32", "i64", "u32", "u64"):
        kind = stated
    else:
        kind = "i32" if -(2**31) <= value < 2**31 else "i64"
    made = tl.str_to_ty(kind, None)
    data = np.array([value], np.bool_ if kind == "u1" else triton_private.numpy_dtype(made))
    return tl.tensor(triton_private.handle(data, made), made)


def run(request: dict[str, Any], memory: Any, guard: Any) -> None:
    import numpy as np

    described = request["tensors"]
    room = far_apart([(nbytes, start % _ALIGNMENT) for start, nbytes, *_ in described.values()])
    tensors = {}
    for place, (name, (start, nbytes, dtype, itemsize)) in zip(room, described.items(), strict=True):
        place[...] = memory[start : start + nbytes]
        tensors[name] = Tensor(name, place, dtype, itemsize, is_input=name in request["inputs"])
    guard.begin(list(tensors.values()), strict=request["strict"], once=request["once"])
    fn = find(request["place"])
    values = arguments(fn, request, tensors)
    grid = tuple(request["grid"])
    programs = list(range(grid[0] * grid[1] * grid[2]))
    if request["order"] == "backward":
        programs.reverse()
    elif request["order"] != "forward":
        random.Random(request["order"]).shuffle(programs)
    builder = triton_private.builder()
    place, load = type(builder).set_grid_idx, type(builder).create_masked_load

    def set_grid_idx(x: int, y: int, z: int) -> None:
        chosen = programs[(x * grid[1] + y) * grid[2] + z]
        guard.begin_program(chosen)
        place(builder, chosen // (grid[1] * grid[2]), chosen // grid[2] % grid[1], chosen % grid[2])

    def create_masked_load(pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        # Without `other`, what a masked lane holds is undefined: here it is a NaN or -1, on a GPU it may be anything.
        kind = triton_private.numpy_dtype(pointers.get_element_ty())
        if other is None and np.dtype(kind) != np.bool_:
            fill = np.empty(pointers.data.shape, kind)
            fill.reshape(-1).view(np.uint8)[...] = request["garbage"]
            other = triton_private.handle(fill, pointers.get_element_ty())
        return load(builder, pointers, mask, other, *rest)

    builder.set_grid_idx, builder.create_masked_load = set_grid_idx, create_masked_load
    with np.errstate(all="ignore"):
        fn[grid](**values)
    for name, (start, nbytes, *_) in described.items():
        memory[start : start + nbytes] = tensors[name].memory


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
    return {"ok": False, "error": f"{kind}{root}".strip(), "line": line, "time_up": isinstance(root, TimeUp)}


def stop(*_: Any) -> None:
    raise TimeUp("its time is up")


def serve(folder: Path, guard: Any) -> dict[str, Any]:
    import numpy as np

    request = json.loads((folder / "request.json").read_text())
    memory = np.fromfile(folder / "memory.bin", np.uint8)
    try:
        signal.setitimer(signal.ITIMER_REAL, request["time_limit"])
        try:
            run(request, memory, guard)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Exception as error:
        return explain(error, request["source"])
    (folder / "memory.bin").write_bytes(memory.tobytes())
    return {"ok": True}


def main() -> None:
    done = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a kernel prints must not look like an answer
    sys.path[:] = json.loads(sys.stdin.readline())
    sys.modules["torch"] = None  # type: ignore[assignment]  # Triton looks for it once, and seconds pass
    import triton.runtime.jit

    triton.runtime.jit.mangle_type(1)
    del sys.modules["torch"]

    guard = triton_private.guard_memory(Memory)
    triton_numbers.install()
    signal.signal(signal.SIGALRM, stop)
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        answer = serve(folder, guard)
        sys.stdout.flush()
        (folder / "answer.json").write_text(json.dumps(answer))
        done.write("done\n")
        done.flush()


if __name__ == "__main__":
    main()
