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
from layerport.kernels.cuda_source import CudaSource
from layerport.kernels.declaration import Kernel
from layerport.kernels.launch_rules import LaunchRule, check_fit
from layerport.kernels.toolchains import triton as triton_compiler
from layerport.kernels.toolchains.cuda_job import CudaJob
from layerport.kernels.toolchains.nvrtc import compile_jobs as compile_cuda
from layerport.kernels.toolchains.triton import Job
from layerport.kernels.toolchains.triton_files import files_digest
from layerport.kernels.toolchains.triton_functions import find_function, place_of, require_triton
from layerport.kernels.toolchains.triton_signature import TritonCall
from layerport.kernels.tracing import Traced, trace
from layerport.kernels.triton_source import Specialisation, TritonSource
from layerport.kernels.workspace import Scratch
from layerport.parameters.signature import Attribute, Signature
from layerport.sizes.tensors import TensorType
from layerport.system.disk_cache import default_cache

if TYPE_CHECKING:
    from layerport.kernels.cubin import Cubin
    from layerport.kernels.toolchains import triton as triton_compiler
    from layerport.system.disk_cache import DiskCache


@dataclass(frozen=True, eq=False)
class Compilation:
    """One kernel to make, a cubin for each of its sources.  dtypes: by the layer's names.

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
class BuiltStep:
    """One compiled source with the rule that launches it: all that a `Launcher` needs."""

    cubin: Cubin
    rule: LaunchRule


@dataclass(frozen=True, eq=False)
class BuiltKernel:
    """A compiled kernel: its launches, one after the other, and the memory that they share."""

    steps: tuple[BuiltStep, ...]
    scratch: tuple[Scratch, ...] = ()


@dataclass(frozen=True, eq=False)
class _Part:
    """One source of a kernel, to be compiled.  traced: its kernel's launches, where it was asked for."""

    whole: Compilation
    place: int
    traced: Traced | None

    @property
    def source(self) -> CudaSource | TritonSource:
        return self.whole.kernel.sources[self.place]


def build_kernels(compilations: Sequence[Compilation], *, cache: DiskCache | None = None) -> tuple[BuiltKernel, ...]:
    """The kernels with their launch rules, in order, each rule checked against its cubin.

    Two architectures of one Triton kernel may differ in their rules: block, shared memory.  Otherwise as
    `compile_all`; raises PackError for a launch rule that is at fault.
    """
    if any(one.tensors is None for one in compilations):
        raise UsageError("a kernel is built without its tensors", "give Compilation(..., tensors=...)")
    every = [_traced(one) for one in compilations]
    made = iter(_compile([part for one in zip(compilations, every, strict=True) for part in _parts(*one)], cache))
    built = []
    for one, traced in zip(compilations, every, strict=True):
        steps = []
        for cubin, rule in (next(made) for _ in one.kernel.sources):
            assert rule is not None
            check_fit(rule, cubin, label=one.label)
            steps.append(BuiltStep(cubin, rule))
        built.append(BuiltKernel(tuple(steps), traced.launches.scratch))
    return tuple(built)


def compile_all(
    compilations: Sequence[Compilation], *, cache: DiskCache | None = None
) -> tuple[tuple[Cubin, ...], ...]:
    """The cubins of each, in order, one for each source; those that the disk cache lacks are compiled side by side.

    Hand over everything that a build needs in one call: each call with a miss starts compiler processes.
    Raises BuildError with layer, kernel, file, line, options and architecture.
    """
    parts = [part for one in compilations for part in _parts(one, None if one.kernel.in_cuda else _traced(one))]
    made = iter(_compile(parts, cache))
    return tuple(tuple(next(made)[0] for _ in one.kernel.sources) for one in compilations)


def _traced(one: Compilation) -> Traced:
    if one.tensors is None:
        raise UsageError(
            f"{one.label} is written in Triton and compiled without its tensors", "give Compilation(..., tensors=...)"
        )
    return trace(one.kernel, one.signature, one.tensors, one.attributes, layer=one.layer)


def _parts(one: Compilation, traced: Traced | None) -> list[_Part]:
    return [_Part(one, place, traced) for place in range(len(one.kernel.sources))]


def _compile(parts: Sequence[_Part], cache: DiskCache | None) -> list[tuple[Cubin, LaunchRule | None]]:
    """Each cubin with its launch rule, where it was traced."""
    triton = [place for place, one in enumerate(parts) if isinstance(one.source, TritonSource)]
    others = [place for place, one in enumerate(parts) if not isinstance(one.source, TritonSource)]
    made: dict[int, tuple[Cubin, LaunchRule | None]] = {}
    if triton:
        kernels = _triton_kernels([parts[place] for place in triton], cache)
        made |= {place: (kernel.cubin, kernel.rule) for place, kernel in zip(triton, kernels, strict=True)}
    if others:
        cubins = compile_cuda([_cuda_job(parts[place]) for place in others], cache=cache)
        for place, cubin in zip(others, cubins, strict=True):
            traced = parts[place].traced
            made[place] = cubin, None if traced is None else traced.launches.rules[parts[place].place]
    return [made[place] for place in range(len(parts))]


def _triton_kernels(parts: Sequence[_Part], cache: DiskCache | None) -> list[triton_compiler.TritonKernel]:
    """The kernels, from a prepared cache or, where there is no Triton, from any cache that has them."""
    store = default_cache() if cache is None else cache
    files = [_triton_files(one) for one in parts]
    found: list[triton_compiler.TritonKernel | None] = [None] * len(parts)
    if prepared_kernels.is_marked(store):
        found = [triton_compiler.recall(store, one) for one in files]
    missing = [place for place, one in enumerate(found) if one is None]
    if missing:
        try:
            require_triton(parts[missing[0]].whole.label)
        except BuildError:
            found = [one or triton_compiler.recall(store, files[place]) for place, one in enumerate(found)]
            if None in found:
                raise
            missing = []
    jobs = [_triton_job(parts[place], files[place]) for place in missing]
    for place, kernel in zip(missing, triton_compiler.compile_jobs(jobs, cache=store), strict=True):
        found[place] = kernel
    return [kernel for kernel in found if kernel is not None]


def _specialised(one: _Part) -> tuple[TritonSource, Specialisation, LaunchRule, dict[str, TensorType | None]]:
    """What decides a Triton kernel: its function, its constants, its rule, and all tensors that the rule may name."""
    assert isinstance(one.source, TritonSource) and one.traced is not None and one.whole.tensors is not None
    made = one.traced.made[one.place]
    assert made is not None
    return one.source, made, one.traced.launches.rules[one.place], {**one.whole.tensors, **one.traced.scratch}


def _triton_files(one: _Part) -> dict[str, object] | None:
    """Everything that decides what is made of a kernel, told without Triton."""
    source, made, rule, tensors = _specialised(one)
    try:
        digest = files_digest(place_of(source, one.whole.label))
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
            for name, tensor in tensors.items()
        },
        "architecture": one.whole.architecture,
    }


def _triton_job(one: _Part, files: Mapping[str, object] | None) -> triton_compiler.Job:
    source, made, rule, tensors = _specialised(one)
    fn = find_function(source, one.whole.label)
    call = TritonCall.of(fn, source, rule, made, tensors, one.whole.label)
    return Job(source, call, made, one.whole.architecture, one.whole.label, files)


def _cuda_job(part: _Part) -> CudaJob:
    import os

    source, one = part.source, part.whole
    assert not isinstance(source, TritonSource)
    base = source.folder or os.getcwd()
    path = source.path
    return CudaJob(
        text=source.read(),
        name="inline.cu" if path is None else path.name,
        folder=os.path.abspath(base if path is None else path.parent),
        entry=one.kernel.entries(one.signature, one.dtypes, one.attributes, one.tensors or {})[part.place],
        architecture=one.architecture,
        label=one.label,
        options=source.options,
        include=tuple(os.path.abspath(os.path.join(base, folder)) for folder in source.include),
        time_limit=source.time_limit,
    )
