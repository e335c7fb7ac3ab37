"""Runs the launches of the stand-in driver with the host harness: the kernel's source, on the CPU."""

from __future__ import annotations

import ctypes
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np

from host_driver import HostLaunchDriver
from layerport.bundle.plugin_spec import PluginSpec
from native.native_plugin import NativeLibrary, NativePlugin

_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_void_p, ctypes.c_void_p
)


class LaunchBridge:
    """Runs the launches of the stand-in driver with the host harness."""

    def __init__(self, library: NativeLibrary, specs: Sequence[PluginSpec], driver: HostLaunchDriver) -> None:
        self.driver = driver
        self.errors: list[str] = []
        images = {image for spec in specs for image in spec.images.values()}
        self._images = sorted(images, key=len)
        self._called = _LAUNCH(self._launch)
        library.cuda.stand_in_on_launch(self._called)

    def _launch(self, kernel: int, geometry: Any, stream: int, arguments: int) -> int:
        try:
            alike = [one for one in self._images if ctypes.string_at(kernel, 64) == one[:64]]
            (image,) = [one for one in alike if ctypes.string_at(kernel, len(one)) == one]
            self.driver.libraries[kernel] = image
            self.driver.cuLaunchKernel(kernel, *geometry[:7], stream, arguments, 0)
        except BaseException:
            self.errors.append(traceback.format_exc())
            return 999
        return 0

    def run(
        self,
        plugin: NativePlugin,
        inputs: Sequence[Any],
        outputs: Sequence[np.ndarray[Any, Any]],
    ) -> None:
        """One inference on host arrays, as TensorRT does it.  inputs: arrays of NumPy or Torch."""
        arrays = [_address(one) for one in (*inputs, *outputs)]
        for address, nbytes, _ in arrays:
            self.driver.know(address, nbytes)
        shapes = [shape for _, _, shape in arrays[: len(inputs)]]
        assert plugin.set_shapes(shapes), "the shapes were not taken"
        addresses = [address for address, _, _ in arrays]
        kept, start = self.driver.workspace(plugin.workspace(shapes))
        done = plugin.enqueue(addresses[: len(inputs)], addresses[len(inputs) :], workspace=start)
        assert done, self.errors[-1:]
        del kept


def _address(one: Any) -> tuple[int, int, tuple[int, ...]]:
    """TensorRT hands over dense tensors only."""
    if isinstance(one, np.ndarray):
        assert one.flags.c_contiguous
        return one.ctypes.data, one.nbytes, one.shape
    assert one.is_contiguous()
    return one.data_ptr(), one.numel() * one.element_size(), tuple(one.shape)
