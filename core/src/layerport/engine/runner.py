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

from layerport.bundle.plugin_spec import PluginSpec
from layerport.errors import BuildError, UsageError
from layerport.kernels.launch_rules import LaunchRule
from layerport.kernels.launcher import Launcher
from layerport.sizes.tensors import sizes_of

Launch = Callable[[Mapping[str, int], int], None]

_loading = threading.Lock()
_loaded: weakref.WeakValueDictionary[tuple[str, str, str], Launcher] = weakref.WeakValueDictionary()


class SharedLauncher:
    """A kernel that the process loads once, however many layers and contexts use it, with the geometry of one user.

    It is unloaded when its last user is gone.
    """

    def __init__(self, image: bytes, symbol: str, rule: LaunchRule) -> None:
        key = (hashlib.sha256(image).hexdigest(), symbol, json.dumps(rule.to_json()))
        with _loading:
            found = _loaded.get(key)
            if found is None:
                found = _loaded[key] = Launcher(image, symbol, rule)
        self._launcher = found
        # Attributes, so that a call goes straight to the driver's arguments.
        self.launch: Launch = self._unresolved

    def resolve(self, sizes: Mapping[str, int]) -> None:
        """Evaluate geometry and scalars for `launch`."""
        self.launch = self._launcher.prepare(sizes).launch

    def _unresolved(self, pointers: Mapping[str, int], stream: int) -> None:
        raise UsageError(f"{self._launcher.label} is launched before resolve", "call resolve(sizes) first")


def fitting_architecture(available: Sequence[str], device: str) -> str | None:
    """The architecture whose cubin runs on a device: the same major version and at most its minor one."""
    wanted = int(device[3:])
    fitting = [name for name in available if int(name[3:]) // 10 == wanted // 10 and int(name[3:]) <= wanted]
    return max(fitting, key=lambda name: int(name[3:]), default=None)


class KernelRunner:
    """The kernels of a spec on one device.

    `set_shapes` once whenever shapes change, then `launch(pointers, stream)` as often as wanted: it only patches the
    device addresses by input and output name.
    """

    def __init__(self, spec: PluginSpec, device: str, make_launcher: Callable[..., Any] = SharedLauncher) -> None:
        architecture = fitting_architecture(spec.architectures, device)
        if architecture is None:
            raise BuildError(
                f"layer {spec.layer} has kernels for {', '.join(spec.architectures) or 'no architecture'}, "
                f"not for {device}",
                f"build with a target that includes {device}",
            )
        self.spec = spec
        self._launchers = [
            (kernel, make_launcher(spec.images[kernel.images[architecture]], kernel.symbol, kernel.launch))
            for kernel in spec.kernels
            if architecture in kernel.images
        ]
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
        for kernel, launcher in sorted(self._launchers, key=lambda one: one[0].name != self._preferred):
            if kernel.guard is None or kernel.guard.evaluate(sizes):
                launcher.resolve(sizes)
                self.launch = launcher.launch
                return
        raise UsageError(
            f"layer {self.spec.layer}: no kernel takes the shapes {dict(shapes)}",
            "give the layer a kernel without a predicate, or build with --decompose " + self.spec.layer,
        )

    def close(self) -> None:
        """Unload the kernels that only this runner has; shared ones go with their last user."""
        for _, launcher in self._launchers:
            if hasattr(launcher, "close"):
                launcher.close()

    def _unresolved(self, pointers: Mapping[str, int], stream: int) -> None:
        raise UsageError(f"layer {self.spec.layer} is launched before its shapes are set", "call set_shapes first")
