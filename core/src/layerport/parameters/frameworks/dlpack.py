"""The conversion rule for any object that speaks DLPack: CuPy, JAX, TensorFlow and the like."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerport.errors import UsageError
from layerport.parameters.steps import Hop

_ON_HOST = frozenset({1, 3, 11})  # kDLCPU, kDLCUDAHost, kDLROCMHost


def from_dlpack(value: Any) -> Hop:
    """NumPy's view where it takes one, else by way of Torch."""
    device, _ = value.__dlpack_device__()
    on_host = int(device) in _ON_HOST
    if on_host:
        try:
            return Hop(np.from_dlpack(value), "view")
        except (BufferError, RuntimeError, TypeError):
            pass  # a dtype or a flag that NumPy refuses; Torch takes more of them
    try:
        import torch
    except ImportError:
        raise UsageError(
            f"a DLPack object on device type {int(device)} that NumPy cannot take",
            "copy it to a NumPy array first, or install torch",
        ) from None
    return Hop(torch.utils.dlpack.from_dlpack(value), "view")


def from_device_array(value: Any) -> Hop:
    """A copy of what a session left on a GPU (`engine.device_arrays.DeviceArray`)."""
    return Hop(value.numpy(), "copy")
