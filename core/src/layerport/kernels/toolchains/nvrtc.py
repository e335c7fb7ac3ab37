"""CUDA C++ to cubins with NVRTC: no GPU, no driver, in processes that can be ended.

Misses of the disk cache are dealt to child processes (`child`), one per core: NVRTC holds a lock of
its own, so threads gain nothing.  What reaches the compiler is made independent of where the source lies, so
that equal inputs give equal bytes.  `compilation` uses it; it knows nothing of layers, and errors carry the
label that a job came with.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from layerport.errors import BuildError
from layerport.kernels import prepared as prepared_kernels
from layerport.kernels.cubin import Cubin
from layerport.kernels.toolchains.cuda_includes import local_headers
from layerport.kernels.toolchains.cuda_job import CudaJob
from layerport.kernels.toolchains.nvrtc_log import explain
from layerport.kernels.toolchains.process import Answer, run_jobs
from layerport.system.disk_cache import DiskCache, cache_key, default_cache

_FORMAT = 2
_GRACE = 30.0  # seconds for a child to start and to write


@dataclass(frozen=True)
class Toolchain:
    """The compiler that is here.  version: such as "NVRTC 13.0"; identity: all that decides what it makes."""

    version: str
    identity: str
    include: tuple[str, ...]


@cache
def toolchain() -> Toolchain:
    """The NVRTC and CUDA headers of this environment.  Raises BuildError where NVRTC is missing."""
    install = "pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl"
    try:
        from cuda import pathfinder
    except ImportError as error:
        raise BuildError(
            f"the CUDA bindings cannot be imported: {error}", "pip install cuda-bindings nvidia-cuda-nvrtc"
        ) from error
    if not hasattr(pathfinder, "find_nvidia_header_directory"):
        raise BuildError(
            f"cuda-pathfinder {pathfinder.__version__} finds no headers of CUDA", "pip install 'cuda-pathfinder>=1.2.3'"
        )
    try:
        path = str(pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path)
    except RuntimeError as error:  # what cuda.pathfinder raises has this base
        raise BuildError(f"the CUDA compiler NVRTC is not here: {str(error).splitlines()[0]}", install) from error
    found = (pathfinder.find_nvidia_header_directory(name) for name in ("cudart", "cccl"))
    include = tuple(dict.fromkeys(str(path) for path in found if path))
    headers = hashlib.sha256()
    for folder in include:
        # These two state the exact version of what lies beside them.
        for header in ("cuda_runtime_api.h", "cuda/std/__cccl/version.h"):
            with contextlib.suppress(OSError):
                headers.update(Path(folder, header).read_bytes())
    version = _version(path)
    # The size tells builds of one version apart.
    identity = f"{version} {os.stat(os.path.realpath(path)).st_size} {headers.hexdigest()}"
    return Toolchain(version, identity, include)


def _version(path: str) -> str:
    """What the library itself says, whatever package it is said to come from."""
    numbers = ctypes.c_int(), ctypes.c_int()
    status = ctypes.CDLL(path).nvrtcVersion(*map(ctypes.byref, numbers))
    if status:
        raise BuildError(f"nvrtcVersion of {path} failed with status {status}", "install NVRTC again")
    return f"NVRTC {numbers[0].value}.{numbers[1].value}"


def compile_jobs(jobs: Sequence[CudaJob], *, cache: DiskCache | None = None) -> tuple[Cubin, ...]:
    """The cubins of these jobs, in their order, from the disk cache where they are there.

    cache: the default cache where None.  Raises BuildError with label, file, line, options and architecture.
    """
    store = default_cache() if cache is None else cache
    sources = [_source(job) for job in jobs]
    results: list[Cubin | None] = [None] * len(jobs)
    if prepared_kernels.is_marked(store):
        results = [_read(prepared_kernels.recall(store, source)) for source in sources]
    if None not in results:
        return tuple(result for result in results if result is not None)
    try:
        tools = toolchain()
    except BuildError as error:
        return _without_compiler(store, jobs, sources, results, error)
    keys = [None if source is None else cache_key({**source, "compiler": tools.identity}) for source in sources]
    results = [
        result if result is not None or key is None else _read(store.get(key))
        for result, key in zip(results, keys, strict=True)
    ]
    # Two jobs with one key are one compilation.
    missing = {keys[index] or str(index): index for index, result in enumerate(results) if result is None}
    made = dict(zip(missing, _compile([jobs[index] for index in missing.values()], tools), strict=True))
    for name, index in missing.items():
        source = sources[index]
        if source is not None:
            store.put(name, {"symbol": made[name].symbol}, made[name].image)
            prepared_kernels.remember(store, source, name, tools.version)
    return tuple(
        made[key or str(index)] if result is None else result
        for index, (key, result) in enumerate(zip(keys, results, strict=True))
    )


def _without_compiler(
    store: DiskCache,
    jobs: Sequence[CudaJob],
    sources: Sequence[dict[str, Any] | None],
    results: Sequence[Cubin | None],
    missing: BuildError,
) -> tuple[Cubin, ...]:
    """The cubins from the cache, whichever compiler made them.  Raises BuildError that names those it lacks."""
    found = [
        _read(prepared_kernels.recall(store, source)) if result is None else result
        for result, source in zip(results, sources, strict=True)
    ]
    lacking = [f"{job.label} for {job.architecture}" for job, one in zip(jobs, found, strict=True) if one is None]
    if lacking:
        raise BuildError(
            f"{missing.fault}; and the kernel cache {store.folder} lacks {len(lacking)} kernels",
            f"{missing.repair}; or bring a cache that was filled for this architecture elsewhere",
            faults=[*lacking[:8], *missing.faults],
        ) from missing
    return tuple(one for one in found if one is not None)


def _source(job: CudaJob) -> dict[str, Any] | None:
    """Everything that decides what is made of a job, but the compiler; None where its headers cannot be told."""
    headers = local_headers(job.text, job.folder, job.include)
    if headers is None:
        return None
    return {
        "format": _FORMAT,
        "text": hashlib.sha256(job.text.encode()).hexdigest(),
        "headers": headers,
        "name": job.name,  # __FILE__ and assert() put it into the cubin
        "options": job.compiler_options,
        "entry": job.entry,
    }


def _read(entry: tuple[dict[str, Any], bytes] | None) -> Cubin | None:
    if entry is None or not isinstance(entry[0].get("symbol"), str):
        return None
    try:
        return Cubin.read(entry[1], entry[0]["symbol"])
    except BuildError:
        return None


def _compile(jobs: Sequence[CudaJob], tools: Toolchain) -> list[Cubin]:
    """Compile in child processes.  Raises BuildError for the first job that failed."""
    work = [
        {
            "text": job.text,
            "name": job.name,
            "folder": job.folder,
            "options": [*job.compiler_options, *(f"-I{path}" for path in tools.include)],
            "entry": job.entry,
            "limit": job.time_limit,
        }
        for job in jobs
    ]
    cubins: dict[int, Cubin] = {}
    for index, answer in run_jobs("nvrtc", work, grace=_GRACE).items():
        if answer.head is None:
            raise _stopped(jobs[index], answer)
        if not answer.ok:
            raise explain(answer.head, jobs[index], tools.include)
        cubins[index] = Cubin.read(answer.data, answer.head["symbol"])
    return [cubins[index] for index in range(len(jobs))]


def _stopped(job: CudaJob, answer: Answer) -> BuildError:
    if answer.timed_out:
        return BuildError(
            f"{job.label}: {job.name} did not compile for {job.architecture} within {job.time_limit:g} s",
            "look for templates or constexpr loops that expand without end; "
            "a kernel that needs longer says so with lp.cuda(..., time_limit=seconds)",
        )
    return BuildError(
        f"{job.label}: the compiler process ended with status {answer.status} at {job.name} for {job.architecture}",
        "python -c 'import cuda.bindings.nvrtc' shows whether the compiler loads at all; "
        "a negative status is a crash inside NVRTC: cut the kernel down to find what it stumbles over",
        faults=answer.errors,
    )
