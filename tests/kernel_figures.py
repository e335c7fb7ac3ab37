"""What kernels compile to, as the benchmark of kernel resources reads it, for the tests that hold them to it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from layerport import Layer

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")

sys.path.append(BENCHMARKS)
try:
    import kernel_resources
finally:
    sys.path.remove(BENCHMARKS)

ARCHITECTURES: tuple[str, ...] = kernel_resources.ARCHITECTURES


def has_disassembler() -> bool:
    return kernel_resources.cuobjdump() is not None


def compiled(layers: Iterable[Layer], architectures: tuple[str, ...], *, every: bool) -> list[dict[str, Any]]:
    """An entry for each kernel and its dtypes, with its figures by architecture.

    every: all dtypes of a kernel.  Compiling takes the time: otherwise one, another one for the next kernel and for
    another choice of architectures.
    """
    found = [entry for layer in layers for entry in kernel_resources.entries_of(layer, architectures)]
    if not every:
        by_kernel: dict[tuple[str, str], list[Any]] = {}
        for entry in found:
            by_kernel.setdefault((entry["layer"], entry["kernel"]), []).append(entry)
        first = ARCHITECTURES.index(architectures[0])
        found = [some[(first + place) % len(some)] for place, some in enumerate(by_kernel.values())]
    kernel_resources.read_all(found)
    return found
