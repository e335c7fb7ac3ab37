"""Runs the kernels of one plugin spec: picks one by shape, evaluates its geometry, launches it.

The TensorRT plugin and the Torch CUDA operator both launch through this class.  Imports no framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from layerport.errors import BuildError, UsageError
from layerport.launcher import Launcher
from layerport.plugin_spec import PluginSpec


def fitting_architecture(available: Sequence[str], device: str) -> str | None:
    """The architecture whose cubin runs on a device: the same major version and at most its minor one."""
    wanted = int(device[3:])
    fitting = [name for name in available if int(name[3:]) // 10 == wanted // 10 and int(name[3:]) <= wanted]
    return max(fitting, key=lambda name: int(name[3:]), default=None)


class KernelRunner:
    """The kernels of a spec on one device.

    `set_shapes` once whenever shapes change, then `launch` as often as wanted: it only patches pointers.
    """

    def __init__(self, spec: PluginSpec, device: str, make_launcher: Callable[..., Any] = Launcher) -> None:
        architecture = fitting_architecture(spec.architectures, device)
        if architecture is None:
            raise BuildError(
                f"layer {spec.layer} has kernels for {', '.join(spec.architectures) or 'no architecture'}, "
                f"not for {device}",
                f"build with a target that includes {device}",
            )
        self.spec = spec
        self._launchers = [
            make_launcher(spec.images[kernel.images[architecture]], kernel.symbol, kernel.launch)
            for kernel in spec.kernels
        ]
        self._current: Any = None

    def set_shapes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Choose the kernel for these shapes (input name -> dims) and evaluate its launch geometry."""
        env = environment(shapes)
        for kernel, launcher in zip(self.spec.kernels, self._launchers, strict=True):
            if kernel.guard is None or kernel.guard.evaluate(env):
                launcher.resolve(env)
                self._current = launcher
                return
        raise UsageError(
            f"layer {self.spec.layer}: no kernel takes the shapes {dict(shapes)}",
            "give the layer a kernel without a predicate, or build with --decompose " + self.spec.layer,
        )

    def launch(self, pointers: Mapping[str, int], stream: int) -> None:
        """Launch on a CUDA stream; pointers: device addresses by input and output name."""
        self._current.launch(pointers, stream)


def environment(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The value of each dim symbol ("x.0") for given shapes."""
    return {f"{name}.{axis}": int(size) for name, dims in shapes.items() for axis, size in enumerate(dims)}
