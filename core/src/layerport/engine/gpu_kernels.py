"""One kernel of a plugin spec on a GPU, on host arrays: what the check of kernels runs where there is a GPU.

It launches through the code that an engine launches through.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from layerport.bundle.plugin_spec import PluginSpec
from layerport.engine.gpu import Gpu
from layerport.engine.runner import KernelRunner, fitting_architecture
from layerport.errors import BuildError, LayerportError, PackError
from layerport.kernels.launcher import Launcher
from layerport.kernels.workspace import WORKSPACE

Array = np.ndarray[Any, Any]


class GpuKernels:
    """Kernels on one GPU, one after the other.  `close` gives it back."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._lock = threading.Lock()
        self._broken: str | None = None

    def takes(self, spec: PluginSpec) -> bool:
        """Whether the spec holds code for this GPU."""
        return fitting_architecture(spec.architectures, self._gpu.architecture) is not None

    def run(self, job: GpuJob, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, Array]:
        """As `GpuJob.run`."""
        with self._lock:
            if self._broken is not None:
                raise BuildError(f"the GPU cannot be used any more: {self._broken}", "run it in a new process")
            try:
                with self._gpu.current():
                    return self._run(job, inputs, outputs)
            except BuildError as error:
                # After a stray access the whole context is lost, so the next kernel would be blamed for this one.
                self._broken = error.fault
                raise PackError(f"{job.label}: {error.fault}", "correct the kernel or its launch rule") from error

    def _run(self, job: GpuJob, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, Array]:
        gpu = self._gpu
        host = {name: np.array(array, order="C") for name, array in {**inputs, **outputs}.items()}
        addresses: dict[str, int] = {}
        stream = gpu.stream()
        make = partial(Launcher, driver=gpu.driver)
        runner = KernelRunner(job.spec, gpu.architecture, make)
        try:
            for name, array in host.items():
                addresses[name] = gpu.allocate(array.nbytes)
                gpu.copy_in(addresses[name], array.ctypes.data, array.nbytes, stream)
            runner.prefer(job.kernel)
            runner.set_shapes({slot.name: host[slot.name].shape for slot in job.spec.inputs})
            if runner.workspace:
                addresses[WORKSPACE] = gpu.allocate(runner.workspace)
            runner.launch(addresses, stream)
            for name, array in host.items():
                gpu.copy_out(array.ctypes.data, addresses[name], array.nbytes, stream)
            gpu.synchronize(stream)
        finally:
            # After a stray access every call fails, and only the first failure tells something.
            with suppress(BuildError):
                gpu.synchronize(stream)
            with suppress(BuildError):
                for address in addresses.values():
                    gpu.free(address)
                gpu.destroy_stream(stream)
                runner.close()
        for name, array in inputs.items():
            if host[name].tobytes() != np.ascontiguousarray(array).tobytes():
                raise PackError(f"{job.label} writes its input {name}", "a kernel writes its outputs only")
        return {name: host[name] for name in outputs}

    def close(self) -> None:
        """Give the GPU back."""
        self._gpu.close()


class GpuJob:
    """One run of a kernel of a spec, with the interface of a run on the CPU."""

    def __init__(self, kernels: GpuKernels, spec: PluginSpec, kernel: str) -> None:
        self._kernels = kernels
        self.spec = spec
        self.kernel = kernel
        self.label = f"layer {spec.layer}, kernel {kernel}"

    def run(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], *, garbage: int = 0) -> dict[str, Array]:
        """The outputs that the kernel writes, beginning with these.  Raises PackError for what it must not do.

        garbage: nothing here, since what lies in a GPU's other memory is not ours to say.
        """
        return self._kernels.run(self, inputs, outputs)

    def reversed(self) -> GpuJob:
        """Itself: the order of a GPU's threads is not ours to say."""
        return self


def open_gpu_kernels() -> GpuKernels | None:
    """The first GPU of this machine for kernels, None where there is none or no driver."""
    try:
        return GpuKernels(Gpu())
    except LayerportError:
        return None
