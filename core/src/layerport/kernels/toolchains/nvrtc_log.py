"""From a log of NVRTC to an error that says file, line and what to do.  `nvrtc` imports it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerport.errors import BuildError
from layerport.kernels.toolchains.cuda_includes import include_repair
from layerport.kernels.toolchains.cuda_job import CudaJob

_ERROR = re.compile(r"^(?P<file>[^\n(]+)\((?P<line>\d+)\): (?:catastrophic )?error: (?P<text>[^\n]+)", re.MULTILINE)
_ENTRY_UNIT = "__nv_name_map"  # the file in which NVRTC looks up name expressions
_SHOWN = 5
_KERNEL = re.compile(r"__global__\b[^;{}]*?\b(\w+)\s*\((?=[^;{]*[;{])")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_HOST_HEADER = re.compile(r"[a-z_]+|std(?:int|def|io|lib|bool)\.h|(?:math|string|assert|limits|float)\.h")


def kernel_names(text: str) -> tuple[str, ...]:
    """The names of the `__global__` functions in a source, in order, as far as reading the text can tell."""
    plain = re.sub(r"__launch_bounds__\s*\([^()]*(?:\([^()]*\)[^()]*)*\)", "", _COMMENT.sub(" ", text))
    return tuple(dict.fromkeys(_KERNEL.findall(plain)))


def explain(answer: dict[str, Any], job: CudaJob, toolkit: Sequence[str]) -> BuildError:
    """The error for a compilation that failed.  answer: the child's; toolkit: folders of CUDA's headers."""
    log: str = answer["log"]
    errors = [(match["file"], int(match["line"]), match["text"]) for match in _ERROR.finditer(log)]
    how = f"compiled for {job.architecture} as {job.entry} with {' '.join(job.compiler_options)}"
    if not errors:
        return _not_compiled(answer, job, how)
    in_entry = [text for name, _, text in errors if name == _ENTRY_UNIT]
    errors = [error for error in errors if error[0] != _ENTRY_UNIT]
    if not errors:
        return _no_such_entry(job, in_entry, how)
    file, line, text = errors[0]
    faults = [f"{_place(job, name, number)}: {what}" for name, number, what in errors[1:_SHOWN]]
    if len(errors) > _SHOWN:
        faults.append(f"and {len(errors) - _SHOWN} more errors")
    repair = "correct the source there"
    missing = re.search(r'cannot open source file "([^"]+)"', text)
    include = include_repair(job.text, job.entry, log)
    if missing:
        folders = [job.folder, *job.include, *toolkit]
        faults.append(f"searched: {', '.join(folders)}")
        repair = _header_repair(missing[1], bool(toolkit))
    elif include:
        repair = include
    elif "excessive recursion" in text:
        repair = "end the recursion of the template, with a specialisation or if constexpr"
    source = _excerpt(log, file, line)
    return BuildError(f"{job.label}: {_place(job, file, line)}: {text}", repair, faults=[*source, *faults, how])


def _place(job: CudaJob, file: str, line: int) -> str:
    if not Path(job.folder, job.name).is_file() and file == job.name:
        return f"{file} (inline source), line {line}"
    return f"{Path(job.folder, file).resolve()}:{line}"


def _excerpt(log: str, file: str, line: int) -> list[str]:
    """The line at fault as NVRTC shows it, without the caret."""
    match = re.search(rf"^{re.escape(file)}\({line}\): [^\n]*\n  ([^\n]+)\n", log, re.MULTILINE)
    return [match[1].strip()] if match else []


def _not_compiled(answer: dict[str, Any], job: CudaJob, how: str) -> BuildError:
    log = answer["log"] or answer.get("status", "no log")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if "gpu-architecture" in log:
        known = ", ".join(f"sm_{number}" for number in answer.get("architectures", ()))
        return BuildError(
            f"{job.label}: this NVRTC does not compile for {job.architecture}",
            f"it compiles for {known}",
            faults=[how],
        )
    return BuildError(
        f"{job.label}: {job.name} does not compile: {lines[0]}",
        "correct the options in lp.cuda(..., options=(...)) or the source",
        faults=[*lines[1:_SHOWN], how],
    )


def _no_such_entry(job: CudaJob, texts: Sequence[str], how: str) -> BuildError:
    for text in texts:
        unknown = re.search(r'identifier "(\w+)" is undefined', text)
        if unknown and (include := include_repair(job.text, job.entry, text)):
            return BuildError(
                f"{job.label}: entry {job.entry!r} uses {unknown[1]}, which {job.name} does not know",
                include,
                faults=[how],
            )
    names = kernel_names(job.text)
    return BuildError(
        f"{job.label}: entry {job.entry!r} is no kernel of {_source(job)}: {texts[0]}",
        f"name one of its kernels in lp.cuda(source, entry), with template arguments where it is a template: "
        f"{', '.join(names) or 'it has none (a kernel is a __global__ function)'}",
        faults=[how],
    )


def _source(job: CudaJob) -> str:
    path = Path(job.folder, job.name)
    return str(path) if path.is_file() else "the inline source"


def _header_repair(header: str, toolkit: bool) -> str:
    if header.startswith(("cub/", "thrust/", "cuda/", "nv/")):
        return "pip install nvidia-cuda-cccl, which has this header of CUDA"
    if re.match(r"cuda_|cuda[A-Z]|cooperative_groups|device_|vector_|math_constants|mma\.h|curand|sm_\d", header):
        return "pip install nvidia-cuda-runtime, which has the headers of CUDA"
    if _HOST_HEADER.fullmatch(header):
        stem = header.removesuffix(".h")
        return f"NVRTC has no host headers: use <cuda/std/{'c' + stem if header.endswith('.h') else stem}>"
    advice = "put the header beside the source, or name its folder in lp.cuda(..., include=(...))"
    return advice if toolkit else f"{advice}; the headers of CUDA are in nvidia-cuda-runtime and nvidia-cuda-cccl"
