"""A double of `cuda.bindings.driver` whose launches really run: by the host harness, on ordinary memory.

It reads the argument table as the driver would, so geometry, widths, pointers and results are tested without a GPU;
streams, concurrency and speed are not.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from gpu_doubles import Status
from launch_doubles import LaunchDriver
from layerport.harness import RUN_LIMIT
from layerport.harness.compiler import compile_for_host
from layerport.harness.cuda_runs import CudaJob
from layerport.kernels import compilation
from layerport.kernels.compilation import BuiltKernel, Compilation
from layerport.kernels.cubin import Cubin
from layerport.kernels.cuda_source import CudaSource
from layerport.kernels.launch_rules import Geometry, LaunchRule, PointerArg


class HostLaunchDriver(LaunchDriver):
    """Runs what it has learnt: `learn` a compiled kernel, `know` the memory that its launches may use."""

    def __init__(self, architecture: str = "sm_90") -> None:
        super().__init__(architecture)
        # By image and symbol: two kernels of one source that are no templates are in one image.
        self.known: dict[tuple[str, str], tuple[CudaSource, str, LaunchRule, Cubin]] = {}
        self.kernels: dict[int, tuple[bytes, str]] = {}  # image and symbol
        self.memory: dict[int, int] = {}
        self.workspaces: set[int] = set()  # memory into which addresses may point

    def learn(self, compilation: Compilation, built: BuiltKernel) -> None:
        """What the source of a cubin is, which the driver itself has no need to know."""
        kernel, tensors = compilation.kernel, compilation.tensors or {}
        entries = kernel.entries(compilation.signature, compilation.dtypes, compilation.attributes, tensors)
        for source, entry, step in zip(kernel.sources, entries, built.steps, strict=True):
            assert isinstance(source, CudaSource)
            self.known[step.cubin.digest, step.cubin.symbol] = (source, entry, step.rule, step.cubin)

    def learn_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Learn every kernel that is compiled from here on."""
        build = compilation.build_kernels

        def learn(compilations: list[Compilation], **options: Any) -> Any:
            built = build(compilations, **options)
            for one, kernel in zip(compilations, built, strict=True):
                self.learn(one, kernel)
            return built

        monkeypatch.setattr(compilation, "build_kernels", learn)

    def cuLibraryGetKernel(self, library: int, symbol: bytes) -> Any:
        status, _ = super().cuLibraryGetKernel(library, symbol)
        kernel = self._handle()
        self.kernels[kernel] = (self.libraries[library], symbol.decode())
        return status, kernel

    def learnt(self, kernel: int) -> tuple[CudaSource, str, LaunchRule, Cubin]:
        """What was learnt of a kernel; of one that another driver loaded, by its image alone."""
        image, symbol = self.kernels.get(kernel) or (self.libraries[kernel], None)
        digest = hashlib.sha256(image).hexdigest()
        (found,) = [one for (image, name), one in self.known.items() if image == digest and symbol in (None, name)]
        return found

    def know(self, address: int, nbytes: int) -> None:
        """Memory at this address, as if it had been allocated on the GPU."""
        self.memory[address] = nbytes

    def workspace(self, nbytes: int) -> tuple[Any, int]:
        """Memory of this many bytes, full of garbage, and where it begins: a multiple of 256, or 0 for none."""
        memory = np.full(nbytes + 256, 0xA5, np.uint8)
        start = -(-memory.ctypes.data // 256) * 256 if nbytes else 0
        if nbytes:
            self.know(start, nbytes)
            self.workspaces.add(start)
        return memory, start

    def _bytes_at(self, address: int, others: Iterable[int]) -> int:
        """From an address to the end of its memory, or to the next of the addresses that lies in it."""
        if address in self.memory:
            start = address
        else:
            start = max((one for one in self.workspaces if one <= address < one + self.memory[one]), default=0)
        end = start + self.memory.get(start, 0)
        assert address < end or address in self.memory, f"{address:#x} is no memory that was allocated"
        return min([end, *(one for one in others if address < one < end)]) - address

    def cuLaunchKernel(
        self,
        kernel: int,
        gx: int,
        gy: int,
        gz: int,
        bx: int,
        by: int,
        bz: int,
        shared: int,
        stream: int,
        table: int,
        extra: int,
    ) -> Any:
        source, entry, rule, cubin = self.learnt(kernel)
        sizes = cubin.parameter_sizes
        places = (ctypes.c_void_p * len(sizes)).from_address(table)
        values: list[Any] = []
        args: list[Any] = []
        pointers: dict[str, int] = {}
        for place, size, arg in zip(places, sizes, rule.args, strict=True):
            raw = ctypes.string_at(place, size)
            number = int.from_bytes(raw, "little", signed=True)
            if isinstance(arg, PointerArg):
                name = f"at {number:#x}" if number else None
                if name is not None:
                    pointers[name] = number
                args.append(PointerArg(name))
                values.append(None)
                continue
            args.append(arg)
            values.append(struct.unpack("<f" if size == 4 else "<d", raw)[0] if arg.kind == "float" else number)
        geometry = Geometry((gx, gy, gz), (bx, by, bz), shared, tuple(values))
        buffers = {
            name: np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address) if nbytes else b"", np.uint8)
            for name, address in pointers.items()
            for nbytes in [self._bytes_at(address, pointers.values())]
        }
        offset = max((address % 16 for address in pointers.values()), default=0)
        launched = LaunchRule(rule.grid, rule.block, rule.shared, tuple(args))
        program = compile_for_host(source, entry, label=entry)
        job = CudaJob(launched, geometry, "forward", offset, entry, RUN_LIMIT, program=program)
        # All are outputs: who may write where is run_kernel's to check.
        for name, result in job.run({}, buffers, garbage=0xA5).items():
            if result.size:
                ctypes.memmove(pointers[name], result.ctypes.data, result.nbytes)
        self.launches.append((geometry.grid, geometry.block, shared, stream, values))
        return (Status.CUDA_SUCCESS,)
