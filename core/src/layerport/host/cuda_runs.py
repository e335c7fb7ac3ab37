"""One run of a CUDA kernel on the CPU: the compiled program in a process of its own, its memory checked.

A stray access stops that process and not ours.  `execution` runs it.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from layerport import processes
from layerport.errors import PackError, UsageError
from layerport.host import Offset, offset_of, time_up
from layerport.host.compiler import HostProgram
from layerport.launch_rules import Geometry, LaunchRule, PointerArg, ScalarArg

_ORDERS = {"forward": 0, "backward": 1}
_RANDOM = 2

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class CudaJob:
    """One run.  order: of the threads of a block, and of the blocks.  offset: bytes off an allocation's alignment."""

    program: HostProgram
    rule: LaunchRule
    geometry: Geometry
    order: str | int
    offset: Offset
    label: str
    time_limit: float

    def run(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs that the kernel writes.  Raises PackError for what it must not do, or TimeUp."""
        buffers = {**inputs, **outputs}
        with tempfile.TemporaryDirectory(prefix="layerport-host-") as folder:
            program, request, answer = (Path(folder, name) for name in ("program", "request", "answer"))
            program.write_bytes(self.program.image)
            program.chmod(0o700)
            request.write_bytes(self._request(buffers))
            environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:exitcode=3:color=never"}
            try:
                done = processes.run([program, request, answer], timeout=self.time_limit, env=environment)
            except subprocess.TimeoutExpired as error:
                raise time_up(self.label, self.time_limit) from error
            if done.returncode != 0:
                raise _run_error(self.label, done.returncode, done.stderr)
            data = answer.read_bytes()
        results = _split(data, buffers)
        for name, array in inputs.items():
            if results[name].tobytes() != np.ascontiguousarray(array).tobytes():
                raise PackError(f"{self.label} writes its input {name}", "a kernel writes its outputs only")
        return {name: results[name] for name in outputs}

    def _request(self, buffers: Mapping[str, Array]) -> bytes:
        order = _ORDERS.get(str(self.order), _RANDOM)
        if order == _RANDOM and not isinstance(self.order, int):
            raise UsageError(f"order {self.order!r} is unknown", 'use "forward", "backward" or a whole number as seed')
        seed = self.order if isinstance(self.order, int) else 0
        parts = [_text("layerport host request 1")]
        geometry = self.geometry
        parts.append(_numbers(order, seed, *geometry.grid, *geometry.block, geometry.shared))
        parts.append(_numbers(len(self.program.statics)))
        parts += [struct.pack("<qQ", position, size) for position, size in self.program.statics]
        parts.append(_numbers(len(buffers)))
        for name, array in buffers.items():
            parts += [
                _text(name),
                _numbers(offset_of(self.offset, name), array.nbytes),
                np.ascontiguousarray(array).tobytes(),
            ]
        parts.append(_numbers(len(self.rule.args)))
        places = {name: place for place, name in enumerate(buffers)}
        for arg, value in zip(self.rule.args, geometry.values, strict=True):
            parts.append(_argument(arg, value, places))
        return b"".join(parts)


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


def _run_error(label: str, code: int, log: str) -> PackError:
    lines = log.splitlines()
    said = [line.removeprefix("layerport: ") for line in lines if line.startswith("layerport: ")]
    details = [line.strip() for line in lines if line.startswith("  ")] if said else lines[-8:]
    where = [line.strip() for line in lines if "AddressSanitizer:" in line and "ERROR" in line]
    return PackError(
        f"{label}: {said[0] if said else f'the program ended with {code}'}",
        "correct the kernel or its launch rule",
        faults=[*where, *details[:8]],
    )
