"""Runs a layer's Triton kernel on the CPU under Triton's interpreter, through the layer's own launch rule.

What `execution` does with a Triton kernel.  Triton reads at import whether it interprets, so this
happens in a process of its own (`triton_worker.py`), which stays for the next run.  Every access of the kernel is
checked against the bounds of its tensors.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import inspect
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from layerport.dtypes import DType
from layerport.errors import PackError, UsageError
from layerport.harness import PATIENCE, Offset, offset_of, time_up
from layerport.harness.cpu_job import Array, CpuJob
from layerport.kernels.launch_rules import PointerArg
from layerport.kernels.toolchains.triton_functions import place_of, require_triton
from layerport.kernels.toolchains.triton_signature import triton_type
from layerport.kernels.triton_source import Specialisation, TritonSource
from layerport.system.processes import Program

_WORKER = Path(__file__).with_name("triton_worker.py")
_ALIGNMENT = 256
_CUT = ("TRITON_", "PYTHONWARNINGS")


@dataclass(frozen=True, kw_only=True)
class TritonJob(CpuJob):
    """A run under the interpreter.  order: of the programs of the grid."""

    source: TritonSource
    made: Specialisation

    def run(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], *, garbage: int) -> dict[str, Array]:
        """See `CpuJob.run`.  garbage: the byte of what a masked load leaves undefined."""
        offsets = self.offset.values() if isinstance(self.offset, Mapping) else (self.offset,)
        if any(offset % self.source.alignment for offset in offsets):
            raise UsageError(
                f"{self.label}: offset {self.offset} is no multiple of {self.source.alignment} bytes, "
                "and the launcher refuses such an address",
                "give another offset, or make the kernel with lp.triton(..., alignment=1)",
            )
        if importlib.util.find_spec("triton") is None:
            require_triton(self.label)
        place = place_of(self.source, self.label)
        file = place.file or (None if isinstance(self.source.fn, str) else inspect.getsourcefile(self.source.fn.fn))
        if file is None and place.module is not None:
            file = getattr(_spec(place.module), "origin", None)
        self.require_order()
        buffers = {**inputs, **outputs}
        memory, starts = _lay_out(buffers, self.offset)
        request = {
            "place": {"module": place.module, "file": place.file, "name": place.name},
            "source": file,
            "grid": self.geometry.grid,
            "order": self.order,
            "garbage": garbage,
            "inputs": list(inputs),
            "strict": self.strict,
            "once": self.once,
            "time_limit": self.time_limit,
            "tensors": {
                name: [starts[name], array.nbytes, DType.from_numpy(array.dtype).value, array.itemsize]
                for name, array in buffers.items()
            },
            "constexprs": {name: _plain(value) for name, value in self.made.constexprs.items()},
            "args": self._args(),
        }
        with tempfile.TemporaryDirectory(prefix="layerport-triton-") as folder:
            Path(folder, "request.json").write_text(json.dumps(request))
            Path(folder, "memory.bin").write_bytes(memory)
            answer = _serve(folder, self.label, self.time_limit)
            memory = Path(folder, "memory.bin").read_bytes()
        if not answer["ok"]:
            if answer["time_up"]:
                raise time_up(self.label, self.time_limit, at=f"{file}:{answer['line']}" if answer["line"] else "")
            where = f"{file}:{answer['line']}" if answer["line"] else f"{self.source.name} of {file or place.module}"
            raise PackError(
                f"{self.label}: {where}: {answer['error']}", "correct the kernel, its launch rule or its constexprs"
            )
        return {
            name: np.frombuffer(memory, array.dtype, array.size, starts[name]).reshape(array.shape).copy()
            for name, array in outputs.items()
        }

    def _args(self) -> list[list[Any]]:
        args: list[list[Any]] = []
        for arg, value in zip(self.rule.args, self.geometry.values, strict=True):
            if isinstance(arg, PointerArg):
                args.append(["null", None] if arg.name is None else ["tensor", arg.name])
            else:
                args.append(["value", value])
        return args


def _plain(value: Any) -> Any:
    return {"dtype": triton_type(value)} if isinstance(value, DType) else value


def _spec(module: str) -> Any:
    with contextlib.suppress(ImportError, ValueError):
        return importlib.util.find_spec(module)
    return None


def _lay_out(buffers: Mapping[str, Array], offset: Offset) -> tuple[bytes, dict[str, int]]:
    """All arrays in one memory, and where each starts: off the alignment by its offset."""
    memory = bytearray()
    starts = {}
    for name, array in buffers.items():
        memory += bytes(-len(memory) % _ALIGNMENT + offset_of(offset, name))
        starts[name] = len(memory)
        memory += np.ascontiguousarray(array).tobytes()
    return bytes(memory), starts


def _serve(folder: str, label: str, limit: float) -> dict[str, Any]:
    """Have the worker run what lies in a folder, and give its answer."""
    with _lock:
        worker = _worker()
        if worker.process.poll() is not None:  # ended while nobody used it, by the system for example
            _worker.cache_clear()
            worker.end()
            worker = _worker()
        worker.program.thread = threading.get_ident()
        told = worker.ask(folder, limit)
        worker.program.thread = 0  # nobody waits for it; the thread's number will be another's
        printed = worker.printed()
        if told is not True:
            _worker.cache_clear()
            worker.end()
            if told is None:
                raise time_up(label, limit)
            raise PackError(
                f"{label}: the interpreter's process ended with {worker.process.returncode}",
                "python -c 'import triton' shows whether Triton loads at all",
                faults=printed.strip().splitlines()[-8:],
            )
    if printed:
        print(printed, end="")  # tl.device_print
    answer: dict[str, Any] = json.loads(Path(folder, "answer.json").read_text())
    return answer


class _Worker:
    def __init__(self) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_CUT)}
        self.program = Program(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment | {"TRITON_INTERPRET": "1"},
            text=True,
        )
        self.process: subprocess.Popen[str] = self.program.process
        self._read = 0
        self._say(json.dumps(sys.path))

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def ask(self, folder: str, limit: float) -> bool | None:
        """True when the answer is there, False when the process ended, None when the time is over."""
        assert self.process.stdout is not None
        self._say(folder)
        ready, _, _ = select.select([self.process.stdout], [], [], limit + PATIENCE)
        if not ready:
            return None
        return self.process.stdout.readline() == "done\n"

    def printed(self) -> str:
        """What was printed since the last time."""
        self.errors.seek(self._read)
        data = self.errors.read()
        self._read += len(data)
        return data.decode(errors="replace")

    def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.program.end()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()


_lock = threading.Lock()


@functools.cache
def _worker() -> _Worker:
    worker = _Worker()
    atexit.register(worker.end)
    return worker
