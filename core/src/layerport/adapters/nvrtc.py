"""CUDA C++ to cubins with NVRTC: no GPU, no driver, in processes that can be ended.

Misses of the disk cache are dealt to child processes (`nvrtc_child.py`), one per core: NVRTC holds a lock of
its own, so threads gain nothing.  What reaches the compiler is made independent of where the source lies, so
that equal inputs give equal bytes.  `compilation` uses it; it knows nothing of layers, and errors carry the
label that a job came with.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from layerport.adapters.compiler_process import Answer, run_jobs
from layerport.adapters.cubin import Cubin
from layerport.adapters.cuda_includes import local_headers
from layerport.adapters.nvrtc_log import explain
from layerport.cache import KernelCache, cache_key, default_cache
from layerport.errors import BuildError

_CHILD = Path(__file__).with_name("nvrtc_child.py")
_FORMAT = 1
_GRACE = 30.0  # seconds for a child to start and to write
_DEFAULT_STANDARD = "--std=c++17"


@dataclass(frozen=True)
class Job:
    """One cubin to make.

    text: the source.  name: of the file, without folders.  folder: where the file lies; quoted includes start
    there. include: more include folders, absolute.  entry: a name expression, such as "scaled_swish<float>".
    label: what to call it in errors.  time_limit: seconds.
    """

    text: str
    name: str
    folder: str
    entry: str
    architecture: str
    label: str
    options: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    time_limit: float = 120.0

    @property
    def compiler_options(self) -> tuple[str, ...]:
        """The options as NVRTC gets them, without the folders of the CUDA headers."""
        chosen = any(option.startswith(("--std", "-std")) for option in self.options)
        folders = (f"-I{os.path.relpath(path, self.folder)}" for path in (self.folder, *self.include))
        return (
            f"-arch={self.architecture}",
            *(() if chosen else (_DEFAULT_STANDARD,)),
            *self.options,
            *folders,
        )


@dataclass(frozen=True)
class Toolchain:
    """The compiler that is installed.  version: for people; identity: all that decides what it makes."""

    version: str
    identity: str
    include: tuple[str, ...]


@cache
def toolchain() -> Toolchain:
    """The NVRTC and CUDA headers of this environment.  Raises BuildError where NVRTC is missing."""
    try:
        from cuda import pathfinder
    except ImportError as error:
        raise BuildError(
            f"the CUDA bindings cannot be imported: {error}", "pip install cuda-bindings nvidia-cuda-nvrtc"
        ) from error
    try:
        library = Path(os.path.realpath(str(pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path)))
    except (pathfinder.DynamicLibNotFoundError, RuntimeError) as error:
        raise BuildError(
            f"the CUDA compiler NVRTC is not here: {str(error).splitlines()[0]}",
            "pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-cccl",
        ) from error
    found = (pathfinder.find_nvidia_header_directory(name) for name in ("cudart", "cccl"))
    include = tuple(dict.fromkeys(str(path) for path in found if path))
    headers = hashlib.sha256()
    for folder in include:
        # These two state the exact version of what lies beside them.
        for header in ("cuda_runtime_api.h", "cuda/std/__cccl/version.h"):
            with contextlib.suppress(OSError):
                headers.update(Path(folder, header).read_bytes())
    version = _distribution_version() or library.name
    identity = f"{version} {library.stat().st_size} {headers.hexdigest()}"
    return Toolchain(version, identity, include)


def _distribution_version() -> str | None:
    from importlib import metadata

    for name in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu13", "nvidia-cuda-nvrtc-cu12"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"NVRTC {metadata.version(name)}"
    return None


def compile_jobs(jobs: Sequence[Job], *, cache: KernelCache | None = None) -> tuple[Cubin, ...]:
    """The cubins of these jobs, in their order, from the disk cache where they are there.

    cache: the default cache where None.  Raises BuildError with label, file, line, options and architecture.
    """
    store = default_cache() if cache is None else cache
    tools = toolchain()
    keys = [_key(job, tools) for job in jobs]
    results: list[Cubin | None] = [None if key is None else _cached(store, key) for key in keys]
    # Two jobs with one key are one compilation.
    missing = {keys[index] or str(index): index for index, result in enumerate(results) if result is None}
    made = dict(zip(missing, _compile([jobs[index] for index in missing.values()], tools), strict=True))
    for name, index in missing.items():
        if keys[index] is not None:
            store.put(name, {"symbol": made[name].symbol}, made[name].image)
    return tuple(
        made[key or str(index)] if result is None else result
        for index, (key, result) in enumerate(zip(keys, results, strict=True))
    )


def _key(job: Job, tools: Toolchain) -> str | None:
    headers = local_headers(job.text, job.folder, job.include)
    if headers is None:
        return None
    return cache_key(
        {
            "format": _FORMAT,
            "compiler": tools.identity,
            "text": hashlib.sha256(job.text.encode()).hexdigest(),
            "headers": headers,
            "name": job.name,  # __FILE__ and assert() put it into the cubin
            "options": job.compiler_options,
            "entry": job.entry,
        }
    )


def _cached(store: KernelCache, key: str) -> Cubin | None:
    entry = store.get(key)
    if entry is None or not isinstance(entry[0].get("symbol"), str):
        return None
    try:
        return Cubin.read(entry[1], entry[0]["symbol"])
    except BuildError:
        return None


def _compile(jobs: Sequence[Job], tools: Toolchain) -> list[Cubin]:
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
    for index, answer in run_jobs(_CHILD, work, grace=_GRACE).items():
        if answer.head is None:
            raise _stopped(jobs[index], answer)
        if not answer.ok:
            raise explain(answer.head, jobs[index], tools.include)
        cubins[index] = Cubin.read(answer.data, answer.head["symbol"])
    return [cubins[index] for index in range(len(jobs))]


def _stopped(job: Job, answer: Answer) -> BuildError:
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
