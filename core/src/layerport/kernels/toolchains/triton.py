"""Triton functions to cubins, ahead of time: no GPU, no driver, the native part in processes that can be ended.

Two steps.  Here, the author's Python becomes Triton's own IR, a text that holds everything the kernel depends on
(helpers, globals, constexprs, types) and no path; its digest is the key of the disk cache.  In a child process
(`child`) the IR becomes a cubin.  `compilation` uses it; errors carry the label that a job came with.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerport.errors import BuildError, LayerportError
from layerport.foreign import triton_private
from layerport.kernels import prepared as prepared_kernels
from layerport.kernels.cubin import Cubin
from layerport.kernels.launch_rules import LaunchRule, PointerArg
from layerport.kernels.toolchains.process import Answer, run_jobs
from layerport.kernels.toolchains.triton_functions import find_function, require_triton
from layerport.kernels.toolchains.triton_signature import TritonCall
from layerport.kernels.triton_source import Specialisation, TritonSource
from layerport.sizes.expressions import Const
from layerport.system.disk_cache import DiskCache, cache_key, default_cache
from layerport.system.trust import own_temporary_folder

_FORMAT = 1
_GRACE = 60.0  # seconds for a child to start and to write
_WARP = 32
# What changes the compiler from outside; the same input must give the same cubin on every machine.
_ENVIRONMENT = ("TRITON_", "MLIR_", "LLVM_", "NVPTX_", "PTXAS_", "DISABLE_", "USE_IR_LOC", "PROTON_")
_DEPTH = 8  # of functions that call each other, in which an error is looked for
_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Job:
    """One cubin to make.

    call: what the function is called with.  label: what to call it in errors.  files: everything that decides what is
    made, told without Triton, by which a machine without it finds the kernel; None where that cannot be told.
    """

    source: TritonSource
    call: TritonCall
    made: Specialisation
    architecture: str
    label: str
    files: Mapping[str, Any] | None = None

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.made.num_warps, "num_stages": self.made.num_stages}


@dataclass(frozen=True, eq=False)
class TritonKernel:
    """A compiled kernel, and its launch rule as the driver wants it: block, shared memory, hidden arguments."""

    cubin: Cubin
    rule: LaunchRule


def compile_jobs(jobs: Sequence[Job], *, cache: DiskCache | None = None) -> tuple[TritonKernel, ...]:
    """The kernels of these jobs, in their order, from the disk cache where they are there.

    cache: the default cache where None.  Raises BuildError with label, file, line and architecture; PackError where
    the kernel wants what a launch does not give.
    """
    if not jobs:
        return ()
    store = default_cache() if cache is None else cache
    triton = require_triton(jobs[0].label)
    texts = [_lower(triton, job) for job in jobs]
    keys = [
        cache_key(
            {
                "format": _FORMAT,
                "compiler": f"Triton {triton.__version__}",
                "ir": hashlib.sha256(text.encode()).hexdigest(),
                "options": job.options,
                "architecture": job.architecture,
            }
        )
        for job, text in zip(jobs, texts, strict=True)
    ]
    found = {key: entry for key in dict.fromkeys(keys) if (entry := _cached(store, key)) is not None}
    missing = {key: index for index, key in enumerate(keys) if key not in found}
    answers = _compile(triton, [(jobs[index], texts[index]) for index in missing.values()])
    for key, answer in zip(missing, answers, strict=True):
        assert answer.head is not None
        found[key] = (answer.head["metadata"], answer.data)
        store.put(key, answer.head["metadata"], answer.data)
    kernels = tuple(_finish(job, *found[key]) for job, key in zip(jobs, keys, strict=True))
    for index, key in enumerate(keys):
        files = jobs[index].files
        if files is not None and key in missing:
            more = {"rule": kernels[index].rule.to_json()}
            prepared_kernels.remember(store, files, key, f"Triton {triton.__version__}", more)
    return kernels


def recall(store: DiskCache, files: Mapping[str, Any] | None) -> TritonKernel | None:
    """The kernel that these files were compiled to, without Triton; None where the cache has none."""
    found = prepared_kernels.recall(store, files)
    if found is None:
        return None
    try:
        return TritonKernel(Cubin.read(found[1], str(found[0].get("name"))), LaunchRule.from_json(found[0].get("rule")))
    except BuildError:
        return None


def _cached(store: DiskCache, key: str) -> tuple[dict[str, Any], bytes] | None:
    entry = store.get(key)
    if entry is None:
        return None
    metadata, image = entry
    try:
        Cubin.read(image, str(metadata.get("name")))
    except BuildError:
        return None
    return (metadata, image) if {"num_warps", "shared", "scratch"} <= set(metadata) else None


def _lower(triton: Any, job: Job) -> str:
    """The kernel in Triton's IR, as text."""
    from triton.backends.compiler import GPUTarget

    fn = find_function(job.source, job.label)
    call = job.call
    with _lock, triton.knobs.compilation.scope():
        # Lines of the author's file would put its path into the cubin.
        triton.knobs.compilation.disable_line_info = True
        try:
            target = GPUTarget("cuda", int(job.architecture[3:]), _WARP)
            return triton_private.lower(fn, call, target, job.options)
        except LayerportError:
            raise
        except Exception as error:
            raise _explain(error, fn, job.label, job.architecture) from error


def _compile(triton: Any, work: Sequence[tuple[Job, str]]) -> list[Answer]:
    if not work:
        return []
    path = str(Path(inspect.getfile(triton)).parents[1])
    jobs = [
        {
            "ttir": text,
            "architecture": job.architecture,
            "options": job.options,
            "path": path,
            "limit": job.source.time_limit,
        }
        for job, text in work
    ]
    with own_temporary_folder("layerport-triton-") as made:
        folder = str(made)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_ENVIRONMENT)}
        # Triton's own cache would be asked first, and nobody checks its digests.
        environment |= {"TRITON_CACHE_DIR": folder, "TMPDIR": folder}
        environment |= {"TRITON_STORE_BINARY_ONLY": "1", "TRITON_DISABLE_LINE_INFO": "1"}
        answers = run_jobs("triton", jobs, grace=_GRACE, environment=environment)
    for index, answer in answers.items():
        if not answer.ok:
            raise _failure(work[index][0], answer)
    return [answers[index] for index in range(len(work))]


def _failure(job: Job, answer: Answer) -> BuildError:
    name = f"{job.label}: {job.source.name}"
    if answer.head is not None:
        lines = [line.strip() for line in answer.head["log"].splitlines() if line.strip()]
        return BuildError(
            f"{name} does not compile for {job.architecture}: {answer.head['error']}",
            "use what this architecture has, or give it a kernel of its own with a predicate; "
            "smaller blocks need fewer registers and less shared memory",
            faults=[line for line in lines if not line.startswith("Repro command")][:8],
        )
    if answer.timed_out:
        return BuildError(
            f"{name} did not compile for {job.architecture} within {job.source.time_limit:g} s",
            "use smaller blocks and fewer unrolled steps; "
            "a kernel that needs longer says so with lp.triton(..., time_limit=seconds)",
        )
    return BuildError(
        f"{name}: the compiler process ended with status {answer.status} for {job.architecture}",
        "python -c 'import triton' shows whether Triton loads at all; "
        "a negative status is a crash inside it: cut the kernel down to find what it stumbles over",
        faults=answer.errors,
    )


def _finish(job: Job, metadata: Mapping[str, Any], image: bytes) -> TritonKernel:
    cubin = Cubin.read(image, metadata["name"])
    label = f"{job.label}: {job.source.name} for {job.architecture}"
    scratch = metadata["scratch"]
    if faults := [f"{name.replace('_', ' ')}: {size} bytes" for name, size in sorted(scratch.items()) if size]:
        raise BuildError(
            f"{label} needs memory beside its tensors, which a launch here does not give",
            "use plain pointers: tl.make_tensor_descriptor and device-side tools need it",
            faults=faults,
        )
    if metadata["num_ctas"] != 1 or metadata["launch_cooperative_grid"] or metadata["launch_pdl"]:
        raise BuildError(f"{label} needs a launch in clusters or as one group", "compile it without")
    args = job.call.args
    hidden = cubin.parameter_sizes[len(args) :]
    if len(hidden) != len(scratch) or any(size != 8 for size in hidden):
        raise BuildError(
            f"{label} takes {len(cubin.parameter_sizes)} arguments: {len(args)} of the function, {len(hidden)} hidden",
            f"Triton names {len(scratch)} hidden ones ({', '.join(sorted(scratch))}); "
            "this layerport does not know this version of Triton",
        )
    block = (Const(metadata["num_warps"] * _WARP), Const(1), Const(1))
    # None of the scratch memories is used, so each hidden pointer may be null.
    return TritonKernel(
        cubin,
        LaunchRule(job.call.rule.grid, block, Const(metadata["shared"]), (*args, *(PointerArg(None) for _ in hidden))),
    )


def _explain(error: BaseException, fn: Any, label: str, architecture: str) -> BuildError:
    """The error for a function that the front end refuses."""
    from triton.compiler.errors import CompilationError

    if not isinstance(error, CompilationError):
        return BuildError(
            f"{label}: {_place(fn, 1)[0]} does not compile for {architecture}: {type(error).__name__}: "
            f"{_first_line(error)}",
            "correct the function, or the types and constexprs that it gets",
        )
    shown: list[str] = []
    where, reason = _place(fn, 1)[0], ""
    at: BaseException | None = error
    # From the kernel inwards: each error says where the function was called that the next one is about.
    while isinstance(at, CompilationError):
        owner = _owner(at.src, fn)
        line = getattr(at.node, "lineno", None)
        if owner is not None and line is not None:
            where, text = _place(owner, line)
            shown += [f"at {where}: {text}"]
        reason = str(at.error_message or reason)
        at = at.__cause__
    if at is not None and not reason:
        reason = f"{type(at).__name__}: {_first_line(at)}"
    lines = [line.strip() for line in reason.splitlines() if line.strip()] or [type(error).__name__]
    return BuildError(
        f"{label}: {where} does not compile for {architecture}: {lines[0]}",
        "correct the function, or the types and constexprs that it gets",
        faults=[*lines[1:4], *shown],
    )


def _place(fn: Any, line: int) -> tuple[str, str]:
    """`file:line` of a line of a Triton function, counted from its `def`, and the text there."""
    file, start = triton_private.place(fn)
    lines = fn.src.splitlines()
    return f"{file}:{start + line - 1}", lines[line - 1].strip() if line <= len(lines) else ""


def _owner(text: str | None, fn: Any) -> Any:
    """The function of this source text: the kernel or what it calls, unless it is Triton's own."""
    seen: set[int] = set()
    level = [fn]
    for _ in range(_DEPTH):
        following = []
        for one in level:
            if one.src == text:
                return one
            values = inspect.getclosurevars(one.fn).nonlocals | one.fn.__globals__
            for value in values.values():
                is_function = hasattr(value, "src") and inspect.isfunction(getattr(value, "fn", None))
                if is_function and id(value) not in seen and not value.__module__.startswith("triton."):
                    seen.add(id(value))
                    following.append(value)
        level = following
    return None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
