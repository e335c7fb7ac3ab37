"""Runs the kernels of one plugin spec: picks one by shape, evaluates its geometry, launches it.

Like the Torch CUDA operator, it launches through `launcher`.  Imports no framework.
"""

from __future__ import annotations

import hashlib
import json
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from layerport.bundle.kernel_code import KernelCode
from layerport.bundle.plugin_spec import PluginSpec
from layerport.errors import BuildError, UsageError
from layerport.kernels.launch_rules import LaunchRule
from layerport.kernels.launcher import Launcher
from layerport.kernels.steps import Launch, Steps
from layerport.kernels.workspace import lay_out
from layerport.sizes.tensors import sizes_of

_loading = threading.Lock()
_loaded: weakref.WeakValueDictionary[tuple[str, str, str], Launcher] = weakref.WeakValueDictionary()


def shared_launcher(image: bytes, symbol: str, rule: LaunchRule) -> Launcher:
    """A kernel that the process loads once, however many layers and contexts use it, until its last user is gone."""
    key = (hashlib.sha256(image).hexdigest(), symbol, json.dumps(rule.to_json()))
    with _loading:
        found = _loaded.get(key)
        if found is None:
            found = _loaded[key] = Launcher(image, symbol, rule)
    return found


def fitting_architecture(available: Sequence[str], device: str) -> str | None:
    """The architecture whose cubin runs on a device: the same major version and at most its minor one."""
    wanted = int(device[3:])
    fitting = [name for name in available if int(name[3:]) // 10 == wanted // 10 and int(name[3:]) <= wanted]
    return max(fitting, key=lambda name: int(name[3:]), default=None)


def greatest_workspace(spec: PluginSpec, most: Mapping[str, Sequence[int]]) -> int:
    """The bytes of workspace that suffice for all shapes up to these (input name -> greatest dims).

    Scratch memory never falls where a size grows, and any of the kernels may run.
    """
    sizes = sizes_of(most)
    return max((lay_out(kernel.scratch, sizes)[1] for kernel in spec.kernels if kernel.scratch), default=0)


class KernelRunner:
    """The kernels of a spec on one device.

    `set_shapes` once whenever shapes change, then `launch(pointers, stream)` as often as wanted: it only patches the
    device addresses by input and output name.  `workspace` is the bytes that a launch for these shapes needs beside;
    the pointers name their address as WORKSPACE.
    """

    def __init__(self, spec: PluginSpec, device: str, make_launcher: Callable[..., Any] = shared_launcher) -> None:
        architecture = fitting_architecture(spec.architectures, device)
        if architecture is None:
            raise BuildError(
                f"layer {spec.layer} has kernels for {', '.join(spec.architectures) or 'no architecture'}, "
                f"not for {device}",
                f"build with a target that includes {device}",
            )
        self.spec = spec
        self._kernels = [
            (kernel, self._steps(kernel, architecture, make_launcher))
            for kernel in spec.kernels
            if architecture in kernel.architectures
        ]
        self.workspace = 0
        self._shapes: Mapping[str, Sequence[int]] | None = None
        self._preferred: str | None = None
        self.launch: Launch = self._unresolved

    def set_shapes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Choose the kernel for these shapes (input name -> dims) and evaluate its launch geometry."""
        self._shapes = shapes
        self._choose(shapes)

    def prefer(self, name: str | None) -> None:
        """Take the kernel of this name wherever its predicate holds; None takes the layer's own order."""
        self._preferred = name
        if self._shapes is not None:
            self._choose(self._shapes)

    def _choose(self, shapes: Mapping[str, Sequence[int]]) -> None:
        sizes = sizes_of(shapes)
        for kernel, steps in sorted(self._kernels, key=lambda one: one[0].name != self._preferred):
            if kernel.guard is None or kernel.guard.evaluate(sizes):
                self.launch, self.workspace = steps.prepare(sizes)
                return
        raise UsageError(
            f"layer {self.spec.layer}: no kernel takes the shapes {dict(shapes)}",
            "give the layer a kernel without a predicate, or build with --decompose " + self.spec.layer,
        )

    def close(self) -> None:
        """Let go of the kernels; each is unloaded with its last user."""
        self._kernels, self.launch = [], self._unresolved

    def _steps(self, kernel: KernelCode, architecture: str, make: Callable[..., Any]) -> Steps:
        images = self.spec.images
        launchers = [make(images[step.images[architecture]], step.symbol, step.launch) for step in kernel.steps]
        return Steps(launchers, kernel.scratch)

    def _unresolved(self, pointers: Mapping[str, int], stream: int) -> None:
        raise UsageError(f"layer {self.spec.layer} is launched before its shapes are set", "call set_shapes first")
