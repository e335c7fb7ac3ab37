"""A double of `cuda.bindings.driver` whose launches really run: by the host harness, on ordinary memory.

It reads the argument table as the driver would, so geometry, widths, pointers and results are tested without a GPU;
streams, concurrency and speed are not.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
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
        self.known: dict[str, tuple[CudaSource, str, LaunchRule, Cubin]] = {}
        self.memory: dict[int, int] = {}

    def learn(self, compilation: Compilation, built: BuiltKernel) -> None:
        """What the source of a cubin is, which the driver itself has no need to know."""
        kernel = compilation.kernel
        assert isinstance(kernel.source, CudaSource)
        entry = kernel.entry(
            compilation.signature, compilation.dtypes, compilation.attributes, compilation.tensors or {}
        )
        self.known[built.cubin.digest] = (kernel.source, entry, built.rule, built.cubin)

    def learn_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Learn every kernel that is compiled from here on."""
        build = compilation.build_kernels

        def learn(compilations: list[Compilation], **options: Any) -> Any:
            built = build(compilations, **options)
            for one, kernel in zip(compilations, built, strict=True):
                self.learn(one, kernel)
            return built

        monkeypatch.setattr(compilation, "build_kernels", learn)

    def know(self, address: int, nbytes: int) -> None:
        """Memory at this address, as if it had been allocated on the GPU."""
        self.memory[address] = nbytes

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
        source, entry, rule, cubin = self.known[hashlib.sha256(self.libraries[kernel]).hexdigest()]
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
                    assert number in self.memory, f"{arg}: {number:#x} is no memory that was allocated"
                    pointers[name] = number
                args.append(PointerArg(name))
                values.append(None)
                continue
            args.append(arg)
            values.append(struct.unpack("<f" if size == 4 else "<d", raw)[0] if arg.kind == "float" else number)
        geometry = Geometry((gx, gy, gz), (bx, by, bz), shared, tuple(values))
        buffers = {
            name: np.frombuffer(
                (ctypes.c_uint8 * self.memory[address]).from_address(address) if self.memory[address] else b"", np.uint8
            )
            for name, address in pointers.items()
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
