"""From kernels to cubins, whatever their toolchain.  Used where plugin specs are made and by the Torch
operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerport.dtypes import DType
from layerport.kernels import Kernel
from layerport.signature import Attribute, Signature

if TYPE_CHECKING:
    from layerport.adapters.cubin import Cubin
    from layerport.adapters.nvrtc import Job
    from layerport.cache import KernelCache


@dataclass(frozen=True, eq=False)
class Compilation:
    """One cubin to make: a kernel for dtypes (by the layer's names), attributes and an architecture."""

    kernel: Kernel
    signature: Signature
    dtypes: Mapping[str, DType]
    attributes: Mapping[str, Attribute]
    architecture: str
    layer: str = ""


def compile_all(compilations: Sequence[Compilation], *, cache: KernelCache | None = None) -> tuple[Cubin, ...]:
    """The cubins, in order; those that the disk cache lacks are compiled side by side.

    Hand over everything that a build needs in one call: each call with a miss starts compiler processes.
    Raises BuildError with layer, kernel, file, line, options and architecture.
    """
    from layerport.adapters.nvrtc import compile_jobs

    return compile_jobs([_job(compilation) for compilation in compilations], cache=cache)


def compile_for(
    kernel: Kernel,
    signature: Signature,
    dtypes: Mapping[str, DType],
    attributes: Mapping[str, Attribute],
    architectures: Iterable[str],
    *,
    layer: str = "",
    cache: KernelCache | None = None,
) -> dict[str, Cubin]:
    """The cubins of one kernel by architecture; as `compile_all`."""
    names = list(dict.fromkeys(architectures))
    wanted = [Compilation(kernel, signature, dtypes, attributes, name, layer) for name in names]
    return dict(zip(names, compile_all(wanted, cache=cache), strict=True))


def _job(one: Compilation) -> Job:
    import os

    from layerport.adapters.nvrtc import Job

    source = one.kernel.source
    base = source.folder or os.getcwd()
    path = source.path
    return Job(
        text=source.read(),
        name="inline.cu" if path is None else path.name,
        folder=os.path.abspath(base if path is None else path.parent),
        entry=one.kernel.entry(one.signature, one.dtypes, one.attributes),
        architecture=one.architecture,
        label=f"layer {one.layer}, kernel {one.kernel.name}" if one.layer else f"kernel {one.kernel.name}",
        options=source.options,
        include=tuple(os.path.abspath(os.path.join(base, folder)) for folder in source.include),
        time_limit=source.time_limit,
    )
