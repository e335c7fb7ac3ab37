"""From kernels to cubins, whatever their toolchain.  Used where plugin specs are made and by the Torch
operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerport.dtypes import DType
from layerport.errors import BuildError, PackError, UsageError
from layerport.kernels import prepared as prepared_kernels
from layerport.kernels.declaration import Kernel
from layerport.kernels.launch_rules import LaunchRule, check_fit
from layerport.kernels.toolchains import triton as triton_compiler
from layerport.kernels.toolchains.cuda_job import CudaJob
from layerport.kernels.toolchains.nvrtc import compile_jobs as compile_cuda
from layerport.kernels.toolchains.triton import Job
from layerport.kernels.toolchains.triton_files import files_digest
from layerport.kernels.toolchains.triton_functions import find_function, place_of, require_triton
from layerport.kernels.toolchains.triton_signature import TritonCall
from layerport.kernels.tracing import specialise, trace
from layerport.kernels.triton_source import Specialisation, TritonSource
from layerport.parameters.signature import Attribute, Signature
from layerport.sizes.tensors import TensorType
from layerport.system.disk_cache import default_cache

if TYPE_CHECKING:
    from layerport.kernels.cubin import Cubin
    from layerport.kernels.toolchains import triton as triton_compiler
    from layerport.system.disk_cache import DiskCache


@dataclass(frozen=True, eq=False)
class Compilation:
    """One cubin to make: a kernel for dtypes (by the layer's names), attributes and an architecture.

    tensors: as in `tracing.trace`.  `build_kernels` needs them, and so does every Triton kernel: their known sizes
    decide the constexprs.
    """

    kernel: Kernel
    signature: Signature
    dtypes: Mapping[str, DType]
    attributes: Mapping[str, Attribute]
    architecture: str
    layer: str = ""
    tensors: Mapping[str, TensorType | None] | None = None

    @property
    def label(self) -> str:
        """The kernel in errors."""
        return f"layer {self.layer}, kernel {self.kernel.name}" if self.layer else f"kernel {self.kernel.name}"


@dataclass(frozen=True, eq=False)
class BuiltKernel:
    """A compiled kernel with the rule that launches it: all that a `Launcher` needs."""

    cubin: Cubin
    rule: LaunchRule


def build_kernels(compilations: Sequence[Compilation], *, cache: DiskCache | None = None) -> tuple[BuiltKernel, ...]:
    """The kernels with their launch rules, in order, each rule checked against its cubin.

    Two architectures of one Triton kernel may differ in their rules: block, shared memory.  Otherwise as
    `compile_all`; raises PackError for a launch rule that is at fault.
    """
    if any(one.tensors is None for one in compilations):
        raise UsageError("a kernel is built without its tensors", "give Compilation(..., tensors=...)")
    rules = [
        None
        if isinstance(one.kernel.source, TritonSource)
        else trace(one.kernel, one.signature, one.tensors or {}, one.attributes, layer=one.layer)
        for one in compilations
    ]
    built = []
    for one, rule, (cubin, own) in zip(compilations, rules, _compile(compilations, cache), strict=True):
        final = own if own is not None else rule
        assert final is not None
        check_fit(final, cubin, label=one.label)
        built.append(BuiltKernel(cubin, final))
    return tuple(built)


def compile_all(compilations: Sequence[Compilation], *, cache: DiskCache | None = None) -> tuple[Cubin, ...]:
    """The cubins, in order; those that the disk cache lacks are compiled side by side.

    Hand over everything that a build needs in one call: each call with a miss starts compiler processes.
    Raises BuildError with layer, kernel, file, line, options and architecture.
    """
    return tuple(cubin for cubin, _ in _compile(compilations, cache))


def _compile(compilations: Sequence[Compilation], cache: DiskCache | None) -> list[tuple[Cubin, LaunchRule | None]]:
    """Each cubin, with the launch rule where the compiler had a say in it."""
    triton = {place for place, one in enumerate(compilations) if isinstance(one.kernel.source, TritonSource)}
    others = [place for place in range(len(compilations)) if place not in triton]
    made: dict[int, tuple[Cubin, LaunchRule | None]] = {}
    if triton:
        places = sorted(triton)
        kernels = _triton_kernels([compilations[place] for place in places], cache)
        made |= {place: (kernel.cubin, kernel.rule) for place, kernel in zip(places, kernels, strict=True)}
    if others:
        cubins = compile_cuda([_cuda_job(compilations[place]) for place in others], cache=cache)
        made |= {place: (cubin, None) for place, cubin in zip(others, cubins, strict=True)}
    return [made[place] for place in range(len(compilations))]


def _triton_kernels(compilations: Sequence[Compilation], cache: DiskCache | None) -> list[triton_compiler.TritonKernel]:
    """The kernels, from a prepared cache or, where there is no Triton, from any cache that has them."""
    store = default_cache() if cache is None else cache
    specialised = [_specialised(one) for one in compilations]
    files = [_triton_files(one, made, rule) for one, (made, rule) in zip(compilations, specialised, strict=True)]
    found: list[triton_compiler.TritonKernel | None] = [None] * len(compilations)
    if prepared_kernels.is_marked(store):
        found = [triton_compiler.recall(store, one) for one in files]
    missing = [place for place, one in enumerate(found) if one is None]
    if missing:
        try:
            require_triton(compilations[missing[0]].label)
        except BuildError:
            found = [one or triton_compiler.recall(store, files[place]) for place, one in enumerate(found)]
            if None in found:
                raise
            missing = []
    jobs = [_triton_job(compilations[place], *specialised[place], files[place]) for place in missing]
    for place, kernel in zip(missing, triton_compiler.compile_jobs(jobs, cache=store), strict=True):
        found[place] = kernel
    return [kernel for kernel in found if kernel is not None]


def _specialised(one: Compilation) -> tuple[Specialisation, LaunchRule]:
    if one.tensors is None:
        raise UsageError(
            f"{one.label} is written in Triton and compiled without its tensors", "give Compilation(..., tensors=...)"
        )
    made = specialise(one.kernel, one.signature, one.tensors, one.attributes, layer=one.layer)
    return made, trace(one.kernel, one.signature, one.tensors, one.attributes, layer=one.layer)


def _triton_files(one: Compilation, made: Specialisation, rule: LaunchRule) -> dict[str, object] | None:
    """Everything that decides what is made of a kernel, told without Triton."""
    source = one.kernel.source
    assert isinstance(source, TritonSource) and one.tensors is not None
    try:
        digest = files_digest(place_of(source, one.label))
    except PackError:
        return None  # a function that no other process finds
    if digest is None:
        return None
    return {
        "files": digest,
        "function": source.name,
        "alignment": source.alignment,
        "warps": made.num_warps,
        "stages": made.num_stages,
        "constexprs": {name: f"{type(value).__name__} {value!r}" for name, value in made.constexprs.items()},
        "rule": rule.to_json(),
        "tensors": {
            name: None if tensor is None else [tensor.dtype.value, *map(str, tensor.shape)]
            for name, tensor in one.tensors.items()
        },
        "architecture": one.architecture,
    }


def _triton_job(
    one: Compilation, made: Specialisation, rule: LaunchRule, files: Mapping[str, object] | None
) -> triton_compiler.Job:
    source = one.kernel.source
    assert isinstance(source, TritonSource) and one.tensors is not None
    fn = find_function(source, one.label)
    call = TritonCall.of(fn, source, rule, made, one.tensors, one.label)
    return Job(source, call, made, one.architecture, one.label, files)


def _cuda_job(one: Compilation) -> CudaJob:
    import os

    source = one.kernel.source
    assert not isinstance(source, TritonSource)
    base = source.folder or os.getcwd()
    path = source.path
    return CudaJob(
        text=source.read(),
        name="inline.cu" if path is None else path.name,
        folder=os.path.abspath(base if path is None else path.parent),
        entry=one.kernel.entry(one.signature, one.dtypes, one.attributes, one.tensors or {}),
        architecture=one.architecture,
        label=one.label,
        options=source.options,
        include=tuple(os.path.abspath(os.path.join(base, folder)) for folder in source.include),
        time_limit=source.time_limit,
    )
