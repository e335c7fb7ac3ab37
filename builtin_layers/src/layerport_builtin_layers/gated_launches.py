"""How the kernels of `gated.h` are launched."""

from __future__ import annotations

import layerport as lp

_THREADS = 256
_BYTES_OF_BLOCK = _THREADS * 2 * 16  # as in gated.h: 2 packs of 16 bytes for each thread


def launch_gated(gate: lp.TensorType, up: lp.TensorType, y: lp.TensorType) -> lp.Launch:
    """For `multiply_gated`, with its arguments."""
    count = gate.numel()
    return lp.Launch(grid=lp.cdiv(count, _BYTES_OF_BLOCK // gate.itemsize), block=_THREADS, args=(gate, up, y, count))
