"""One run of a CUDA kernel on the CPU: the compiled program in a process of its own, its memory checked.

A stray access stops that process and not ours.  `execution` runs it.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from layerport.errors import PackError, escaped
from layerport.harness import PATIENCE, offset_of, time_up
from layerport.harness.compiler import HostProgram, source_line
from layerport.harness.cpu_job import Array, CpuJob
from layerport.kernels.launch_rules import PointerArg, ScalarArg
from layerport.system import processes
from layerport.system.trust import own_temporary_folder

_ORDERS = {"forward": 0, "backward": 1}
_RANDOM = 2
_OPPOSITE: dict[str | int, str] = {"backward": "forward"}
_TIME_UP = 4


@dataclass(frozen=True, kw_only=True)
class CudaJob(CpuJob):
    """A run of a compiled program.  order: of the threads of a block, and of the blocks.

    strict: threads that have returned do not count as being at a barrier.
    """

    program: HostProgram

    def run(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], *, garbage: int) -> dict[str, Array]:
        """See `CpuJob.run`.  garbage: the byte of memory that nothing has written."""
        with own_temporary_folder("layerport-host-") as folder:
            program, request, answer = (Path(folder, name) for name in ("program", "request", "answer"))
            program.write_bytes(self.program.image)
            program.chmod(0o700)
            request.write_bytes(self._request(inputs, outputs, garbage))
            environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:exitcode=3:color=never"}
            try:
                limit = self.time_limit + PATIENCE
                done = processes.run([program, request, answer], timeout=limit, env=environment)
            except subprocess.TimeoutExpired as error:
                raise time_up(self.label, self.time_limit) from error
            print(escaped(done.stdout), end="", file=sys.stderr)  # what the kernel's own printf says
            if done.returncode != 0:
                raise self._error(program, done.returncode, done.stderr)
            return _split(answer.read_bytes(), outputs)

    def reversed(self) -> CudaJob:
        """The same run with the threads in the opposite order."""
        return replace(self, order=_OPPOSITE.get(self.order, "backward"))

    def _request(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], garbage: int) -> bytes:
        self.require_order()
        order = _ORDERS.get(str(self.order), _RANDOM)
        seed = self.order if isinstance(self.order, int) else 0
        geometry, program = self.geometry, self.program
        parts = [_text("layerport host request 3")]
        parts.append(_numbers(order, seed, self.strict, self.once, garbage, max(1, round(self.time_limit * 1000))))
        parts.append(_numbers(*geometry.grid, *geometry.block, geometry.shared))
        parts.append(struct.pack("<qQQ", *program.static_range, len(program.statics)))
        for name, position, size in program.statics:
            parts += [_text(name), struct.pack("<qQ", position, size)]
        buffers = {**inputs, **outputs}
        parts.append(_numbers(len(buffers), max((array.nbytes for array in buffers.values()), default=0)))
        for name, array in buffers.items():
            parts += [
                _text(name),
                _numbers(name in inputs, offset_of(self.offset, name), array.nbytes),
                np.ascontiguousarray(array).tobytes(),
            ]
        parts.append(_numbers(len(self.rule.args)))
        places = {name: place for place, name in enumerate(buffers)}
        for arg, value in zip(self.rule.args, geometry.values, strict=True):
            parts.append(_argument(arg, value, places))
        return b"".join(parts)

    def _error(self, program: Path, code: int, log: str) -> PackError:
        lines = log.splitlines()
        said = [line.removeprefix("layerport: ") for line in lines if line.startswith("layerport: ")]
        details = [line.strip() for line in lines if line.startswith("  ")] if said else lines[-8:]
        where = [line.strip() for line in lines if "AddressSanitizer:" in line and "ERROR" in line]
        place = next((int(line.split()[1]) for line in lines if line.startswith("layerport-at: ")), None)
        line = None
        if place is not None:
            line = source_line(program, self.program.anchor + place)
        at = f"{line}: " if line else ""
        if code == _TIME_UP and said:
            return time_up(self.label, self.time_limit, at=at + said[0])
        return PackError(
            f"{self.label}: {at}{said[0] if said else f'the program ended with {code}'}",
            "correct the kernel or its launch rule",
            faults=[*where, *details[:8]],
        )


def _argument(arg: PointerArg | ScalarArg, value: int | float | bool | None, places: Mapping[str, int]) -> bytes:
    if isinstance(arg, PointerArg):
        return struct.pack("<QQ", 3, 0) if arg.name is None else struct.pack("<QQ", 0, places[arg.name])
    if isinstance(value, float):
        return struct.pack("<Qd", 2, value)
    return struct.pack("<Qq", 1, int(value or 0))


def _numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def _text(value: str) -> bytes:
    data = value.encode()
    return _numbers(len(data)) + data


def _split(data: bytes, buffers: Mapping[str, Array]) -> dict[str, Array]:
    results = {}
    start = 0
    for name, array in buffers.items():
        results[name] = np.frombuffer(data[start : start + array.nbytes], array.dtype).reshape(array.shape).copy()
        start += array.nbytes
    return results
