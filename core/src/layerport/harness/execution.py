"""Runs a kernel on the CPU and checks that it writes every element of its outputs, and nothing else.

The check of a build and `layerport.testing.run_kernel` use it, each with a launch rule of its own: that of the plugin
spec, and the one traced from the author's function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from layerport import harness as host
from layerport.dtypes import DType
from layerport.errors import PackError
from layerport.harness import GARBAGE, OUTPUT_GARBAGE, Offset
from layerport.harness.compiler import compile_for_host
from layerport.harness.cpu_job import Array, CpuJob
from layerport.harness.cuda_runs import CudaJob
from layerport.harness.triton_interpreter import TritonJob
from layerport.kernels.choice import dtypes_for
from layerport.kernels.cuda_source import CudaSource
from layerport.kernels.declaration import Kernel
from layerport.kernels.launch_rules import LaunchSequence
from layerport.kernels.tracing import specialise
from layerport.kernels.workspace import Scratch, scratch_name
from layerport.layers.layer import Layer
from layerport.parameters.comparison import KERNEL_TOLERANCES, errors_within
from layerport.sizes.tensors import TensorType


@dataclass(frozen=True)
class Outputs:
    """What a kernel writes: its outputs, and the greatest value of each size that depends on data.

    tensors: their dims are over `sizes` and the data-dependent sizes, which the kernel writes as int64 after them.
    """

    tensors: Sequence[TensorType]
    most: Mapping[str, int]
    sizes: Mapping[str, int]

    def largest(self) -> dict[str, TensorType]:
        """All that is written, sizes that depend on data at their greatest."""
        env = {**self.sizes, **self.most}
        made = [TensorType(one.name, one.dtype, one.resolve(env)) for one in self.tensors]
        made += [TensorType(name, DType.INT64, ()) for name in self.most]
        return {one.name: one for one in made}

    def empty(self, poison: int) -> dict[str, Array]:
        """Memory for all of them, every byte the poison."""
        made = {}
        for name, tensor in self.largest().items():
            made[name] = array = np.empty(tensor.resolve({}), tensor.dtype.to_numpy())
            array.reshape(-1).view(np.uint8)[...] = poison
        return made

    def cut(self, written: Mapping[str, Array], label: str) -> dict[str, Array]:
        """The outputs with the sizes that the kernel wrote, without those sizes themselves.  Raises PackError."""
        if not self.most:
            return dict(written)
        sizes = {name: int(written[name]) for name in self.most}
        if wrong := [
            f"{name} is {size}, allowed are 0 to {self.most[name]}"
            for name, size in sizes.items()
            if not 0 <= size <= self.most[name]
        ]:
            raise PackError(
                f"{label} writes no possible size",
                "write each size once, from one thread; unwritten, it is arbitrary",
                faults=wrong,
            )
        answer = {}
        for one in self.tensors:
            shape = one.resolve({**self.sizes, **sizes})
            answer[one.name] = written[one.name].reshape(-1)[: math.prod(shape)].reshape(shape)
        return answer


def make_job(
    layer: Layer,
    kernel: Kernel,
    launches: LaunchSequence,
    sizes: Mapping[str, int],
    tensors: Mapping[str, TensorType | None],
    attributes: Mapping[str, Any],
    *,
    order: str | int = "forward",
    offset: Offset = 0,
    sanitize: bool = False,
    strict: bool = True,
    once: bool = False,
    time_limit: float | None = None,
) -> Job | None:
    """A run of a kernel that is ready to go, compiled where it is CUDA C++; None where it has nothing to launch.

    sizes: of all tensors, for the launches.  tensors: every tensor argument and output by the layer's names, with known
    sizes.  Raises UsageError for sizes that break a limit, PackError for constexprs that are at fault, and as
    `compile_for_host`.
    """
    label = f"layer {layer.name}, kernel {kernel.name}"
    geometries = launches.resolve(sizes, label=label)
    if not any(geometries):
        return None
    limit = host.RUN_LIMIT if time_limit is None else time_limit
    dtypes = dtypes_for(kernel, layer.signature, tensors)
    assert dtypes is not None, "the kernel was chosen for these tensors"
    entries = kernel.entries(layer.signature, dtypes, attributes, tensors)
    constants = specialise(kernel, layer.signature, tensors, attributes, layer=layer.name)
    if launches.scratch and isinstance(offset, int):
        offset = dict.fromkeys(tensors, offset)  # a workspace lies where we want
    jobs: list[CpuJob] = []
    for source, entry, made, rule, geometry in zip(
        kernel.sources, entries, constants, launches.rules, geometries, strict=True
    ):
        if geometry is None:
            continue
        told = (rule, geometry, order, offset, label, limit, strict, once)
        if isinstance(source, CudaSource):
            program = compile_for_host(source, entry, label=label, sanitize=sanitize)
            jobs.append(CudaJob(*told, program=program))
        else:
            assert made is not None
            jobs.append(TritonJob(*told, source=source, made=made))
    if len(jobs) == 1 and not launches.scratch:
        return jobs[0]
    return StepsJob(tuple(jobs), {scratch_name(place): one for place, one in enumerate(launches.scratch)}, sizes)


@dataclass(frozen=True)
class StepsJob:
    """The launches of one kernel, one after the other; what they share begins as garbage."""

    jobs: tuple[CpuJob, ...]
    scratch: Mapping[str, Scratch]
    sizes: Mapping[str, int]

    @property
    def label(self) -> str:
        return self.jobs[0].label

    def run(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], *, garbage: int) -> dict[str, Array]:
        """See `Job.run`."""
        shared: dict[str, Array] = {}
        for name, one in self.scratch.items():
            raw = np.full(one.nbytes.evaluate(self.sizes), garbage, np.uint8)
            shared[name] = raw.view(one.dtype.to_numpy())
        buffers = {**outputs, **shared}
        for job in self.jobs:
            buffers |= job.run(inputs, buffers, garbage=garbage)
        return {name: buffers[name] for name in outputs}

    def reversed(self) -> StepsJob:
        """Each launch with its threads in the opposite order."""
        return replace(self, jobs=tuple(job.reversed() for job in self.jobs))


class Job(Protocol):
    """One run of a kernel, wherever it runs."""

    @property
    def label(self) -> str:
        """The kernel in errors."""

    def run(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], *, garbage: int) -> dict[str, Array]:
        """What the kernel leaves in the outputs, which begin with these values.  Raises PackError.

        garbage: the byte of all other memory that nothing has written.
        """

    def reversed(self) -> Job:
        """The same run with the threads in the opposite order, where it can be told."""


def execute(job: Job, inputs: Mapping[str, Array], outputs: Outputs, *, strict: bool = False) -> dict[str, Array]:
    """The outputs by name.  Raises PackError for what a kernel must not do, TimeUp where it does not end.

    strict: a second run over other garbage must give the same, of a CUDA kernel with its threads in the opposite order.
    """

    def run(job: Job, time: int) -> dict[str, Array]:
        return outputs.cut(job.run(inputs, outputs.empty(OUTPUT_GARBAGE[time]), garbage=GARBAGE[time]), job.label)

    written = run(job, 0)
    other = job.reversed() if strict else job
    if other is job and not any(_poisoned(array, OUTPUT_GARBAGE[0]).any() for array in written.values()):
        return written
    # A result may look like the garbage; an element that keeps two different kinds of it was never written.
    again = run(other, 1)
    _check_written(written, again, job.label)
    if strict and (different := _differences(written, again)):
        same_order = different if other is job else _differences(written, run(job, 1))
        raise _not_the_same(job.label, same_order or different, garbage=bool(same_order))
    return written


def _not_the_same(label: str, faults: list[str], *, garbage: bool) -> PackError:
    if garbage:
        return PackError(
            f"{label} gives results that depend on memory that nothing has written",
            "write shared memory and outputs before they are read, with a barrier between where another thread reads",
            faults=faults,
        )
    return PackError(
        f"{label} gives other results when its threads and blocks run in the opposite order",
        "look for a missing barrier, or for two threads that write one element",
        faults=faults,
    )


def _differences(first: Mapping[str, Array], second: Mapping[str, Array]) -> list[str]:
    """Where two runs differ by more than sums in another order do."""
    faults = []
    for name, one in first.items():
        two = second[name]
        if one.tobytes() == two.tobytes():
            continue
        if one.shape != two.shape:
            faults.append(f"{name}: {list(one.shape)} and {list(two.shape)}")
            continue
        near = np.asarray(one == two)
        if DType.from_numpy(one.dtype).is_floating:
            wide = one.astype(np.float64), two.astype(np.float64)
            near, _ = errors_within(*wide, one.dtype.name, KERNEL_TOLERANCES)
        if not near.all():
            place = tuple(int(index) for index in np.argwhere(~near)[0])
            faults.append(
                f"{name}: {int((~near).sum())} of {one.size} elements, the first at {list(place)}: "
                f"{float(one[place]):.6g} and {float(two[place]):.6g}"
            )
    return faults


def _poisoned(array: Array, poison: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """For each element whether all of its bytes are the poison."""
    raw = array.reshape(-1).view(np.uint8).reshape(array.size, array.itemsize)
    return np.asarray((raw == poison).all(axis=1)).reshape(array.shape)


def _check_written(first: Mapping[str, Array], second: Mapping[str, Array], label: str) -> None:
    faults = []
    for name, array in first.items():
        unwritten = _poisoned(array, OUTPUT_GARBAGE[0]) & _poisoned(second[name], OUTPUT_GARBAGE[1])
        if unwritten.any():
            place = tuple(int(index) for index in np.argwhere(unwritten)[0])
            faults.append(f"{name}: {int(unwritten.sum())} of {array.size} elements, the first at {list(place)}")
    if faults:
        raise PackError(
            f"{label} leaves elements of its outputs unwritten",
            "check the grid and the kernel's tail; an output begins with garbage, so nothing can be added to it",
            faults=faults,
        )
