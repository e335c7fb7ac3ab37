"""Compiles a CUDA C++ kernel with the system's C++ compiler into a program that runs it on the CPU.

The header `cuda_host/cuda_host.h` gives the source its threads, barriers and intrinsics.  Used by `execution` only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from layerport.errors import BuildError, PackError, UsageError
from layerport.harness import host_symbols
from layerport.kernels.cuda_source import CudaSource
from layerport.kernels.toolchains.cuda_includes import include_repair, local_headers
from layerport.kernels.toolchains.nvrtc import toolchain
from layerport.system import processes
from layerport.system.disk_cache import cache_key, default_cache
from layerport.system.trust import own_temporary_folder

_HARNESS = Path(__file__).with_name("cuda_host")
# Programs are cached, so their line tables name headers that are not the author's without where these lie here.
_NOT_THE_AUTHORS = "/layerport"
# Kernels pun types through pointers, which the device compilers allow.
_FLAGS = (
    "-O1",
    "-g1",
    "-gdwarf-4",
    "-w",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fdata-sections",
    "-fstack-clash-protection",
)
# Every access calls the runtime, which looks up whose memory it is; none of the compiler's own runtimes is linked.
_WATCHED = ("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "--param=tsan-distinguish-volatile=1")
_MISALIGNED = ("-fsanitize=alignment", "-fno-sanitize-recover=alignment")
_SANITIZER_FLAGS = ("-fsanitize=address", "-fno-omit-frame-pointer")
# Pieces of shared memory are aligned to more than they may measure, so that nothing lies in the gaps between them.
_LINK_FLAGS = ("-Wl,--sort-section=alignment",)
_PRELUDE = "prelude.h"
_STATIC_SHARED_LIMIT = 48 * 1024
_ALIGNMENT = r"(?:__align__|alignas)\s*\([^()]*\)"
_DYNAMIC_SHARED = re.compile(
    rf"extern\s+(?:{_ALIGNMENT}\s*)*__shared__\s+(?:{_ALIGNMENT}\s*)*(?P<type>[\w:<>,\s]+?)\s*\b(?P<name>\w+)\s*\[\s*\]\s*;"
)
_ALIGNED_SHARED = re.compile(rf"__shared__\s+(?P<alignment>{_ALIGNMENT})")
_UNSUPPORTED = re.compile(r"layerport-unsupported: (?P<what>[^\n\"]+)")
_PLAIN_VARIANT = "give the tests a plain variant of it under #ifdef LAYERPORT_HOST"
_COMPILE_LIMIT = 300.0


@dataclass(frozen=True)
class HostProgram:
    """A kernel as a program.

    anchor: the address of the symbol from which the running program measures.  statics: name, distance from the anchor
    and bytes of each `__shared__` variable.  static_range: distance and bytes of where only they lie.
    """

    image: bytes
    anchor: int
    statics: tuple[tuple[str, int, int], ...]
    static_range: tuple[int, int]

    @classmethod
    def of(cls, metadata: Mapping[str, Any], image: bytes) -> HostProgram:
        """The program as the cache keeps it."""
        statics = tuple((str(name), int(at), int(size)) for name, at, size in metadata["statics"])
        begin, size = metadata["static_range"]
        return cls(image, int(metadata["anchor"]), statics, (int(begin), int(size)))

    def metadata(self) -> dict[str, Any]:
        """What the cache keeps beside the image."""
        return {"anchor": self.anchor, "statics": list(map(list, self.statics)), "static_range": [*self.static_range]}


def compile_for_host(source: CudaSource, entry: str, *, label: str, sanitize: bool = False) -> HostProgram:
    """The program of one kernel, from the disk cache where it is there.

    Raises UsageError without a C++ compiler, PackError for what the host cannot run, BuildError for other errors
    in the source.
    """
    text = source.read()
    path = source.path
    folder = os.path.abspath(source.folder or os.curdir if path is None else path.parent)
    include = tuple(os.path.abspath(os.path.join(source.folder or os.curdir, each)) for each in source.include)
    watched = (*_MISALIGNED, *(_SANITIZER_FLAGS if sanitize else _WATCHED))
    flags = (*_FLAGS, *watched, *_language_options(source.options))
    prelude, program = _prelude(text), _program(text, "inline.cu" if path is None else str(path), entry)
    headers = local_headers(text, folder, include)
    key = cache_key(
        {
            "format": 5,
            "prelude": prelude,
            "program": program,
            "flags": flags,
            "headers": headers,
            "tools": _tools(),
        }
    )
    store = default_cache("host")
    if headers is not None and (found := store.get(key)) is not None:
        metadata, image = found
        return HostProgram.of(metadata, image)
    made = _compile(prelude, program, (folder, *include), flags, label, sanitize)
    if headers is not None:
        store.put(key, made.metadata(), made.image)
    return made


def _prelude(text: str) -> str:
    """What stands before a source: of CUDA's types those that it includes; a header of the pack's may include any."""
    types = [kind for kind in ("fp16", "bf16", "fp8") if f"cuda_{kind}" in text or '#include "' in text]
    return "".join(f"#define LAYERPORT_{kind.upper()}\n" for kind in types) + '#include "cuda_host.h"\n'


def _program(text: str, name: str, entry: str) -> str:
    text = _DYNAMIC_SHARED.sub(_dynamic_shared, text)
    text = _ALIGNED_SHARED.sub(r"\g<alignment> __shared__", text)
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return (
        f'#line 1 "{quoted}"\n{text}\n#line 1 "layerport"\n#undef __CUDA_ARCH__\n'
        f"int main(int count, char** paths) {{ return ::cuda_host::run(count, paths, {entry}); }}\n"
    )


def _dynamic_shared(match: re.Match[str]) -> str:
    lines = "\n" * match[0].count("\n")  # so that errors keep their lines
    kind = " ".join(match["type"].split())
    return f"{kind}* const {match['name']} = reinterpret_cast<{kind}*>(::cuda_host::dynamic_shared);{lines}"


def _language_options(options: tuple[str, ...]) -> tuple[str, ...]:
    """The options that mean something to a host compiler: definitions and the language standard."""
    standard = "-std=gnu++17"
    kept = []
    for option in options:
        if match := re.fullmatch(r"-{1,2}std=c\+\+(\d+)", option):
            standard = f"-std=gnu++{match[1]}"
        elif option.startswith(("-D", "-U")):
            kept.append(option)
        elif match := re.fullmatch(r"--(define|undefine)-macro=(.+)", option):
            kept.append(f"-{match[1][0].upper()}{match[2]}")
    return (standard, *kept)


@cache
def _compiler() -> str:
    for name in (os.environ.get("CXX", ""), "g++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    raise UsageError(
        "no C++ compiler is here, which running a CUDA kernel on the CPU needs",
        "install g++ (apt install g++), or name one in the environment variable CXX",
    )


@cache
def _tools() -> tuple[str, ...]:
    """All that decides what the compiler makes of a source: its version, CUDA's headers, and the harness."""
    version = processes.run([_compiler(), "--version"], check=True).stdout
    harness = (file.read_text() for file in sorted(_HARNESS.glob("*.*")))
    return (version, toolchain().identity, *harness)


@cache
def _runtime(sanitize: bool) -> bytes:
    """The object code of the runtime, which is the same for every kernel."""
    flags = (*_FLAGS, "-O2", *(_SANITIZER_FLAGS if sanitize else ()), "-std=gnu++17")
    key = cache_key({"format": 2, "runtime": flags, "tools": _tools()})
    store = default_cache("host")
    if (found := store.get(key)) is not None:
        return found[1]
    with own_temporary_folder("layerport-host-") as folder:
        made = folder / "runtime.o"
        done = _call_compiler(
            [*flags, *_folders(()), "-c", str(_HARNESS / "runtime.cpp"), "-o", str(made)], "runtime", folder
        )
        if done.returncode != 0:
            raise BuildError(
                f"the host runtime does not compile with {_compiler()}",
                "use g++ 11 or newer (environment variable CXX)",
                faults=done.stderr.splitlines()[:8],
            )
        code = made.read_bytes()
    store.put(key, {}, code)
    return code


@lru_cache(maxsize=4)
def _precompiled(prelude: str, flags: tuple[str, ...]) -> bytes | None:
    """What stands before a kernel, compiled with these flags, which takes most of the time of a small kernel.

    None where it is of no use: a compiler that is not GCC, or definitions of the author's own, of which there are many.
    """
    if "Free Software Foundation" not in _tools()[0] or any(flag.startswith(("-D", "-U")) for flag in flags):
        return None
    key = cache_key({"format": 1, "prelude": prelude, "flags": flags, "tools": _tools()})
    store = default_cache("host")
    if (found := store.get(key)) is not None:
        return zlib.decompress(found[1])
    with own_temporary_folder("layerport-host-") as folder:
        header, made = folder / _PRELUDE, folder / f"{_PRELUDE}.gch"
        header.write_text(prelude)
        done = _call_compiler(
            [*flags, *_folders(()), "-x", "c++-header", str(header), "-o", str(made)], "prelude", folder
        )
        if done.returncode != 0:
            return None  # the kernel is compiled with the text, which tells the fault
        code = made.read_bytes()
    store.put(key, {}, zlib.compress(code, 1))
    return code


def source_line(program: Path, address: int) -> str | None:
    """`file:line` of an address of a program, measured from the program's anchor; None where no source is known."""
    return host_symbols.source_line(program, address, _NOT_THE_AUTHORS, _environment())


def _folders(include: tuple[str, ...]) -> list[str]:
    cuda = toolchain().include
    return [
        *(f"-I{path}" for path in (_HARNESS, _HARNESS / "unsupported", *include, *cuda)),
        *(f"-ffile-prefix-map={path}={_NOT_THE_AUTHORS}" for path in (_HARNESS, *cuda)),
    ]


def _call_compiler(arguments: list[str], label: str, folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return processes.run(
            [_compiler(), *arguments], timeout=_COMPILE_LIMIT, env=_environment() | {"TMPDIR": str(folder)}
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(
            f"{label}: the C++ compiler ran for more than {_COMPILE_LIMIT:.0f} s", "look for templates that never end"
        ) from error


def _environment() -> dict[str, str]:
    # Errors are read, so they must be in English and plain.
    return os.environ | {"LC_ALL": "C", "GCC_COLORS": ""}


def _compile(
    prelude: str, program: str, include: tuple[str, ...], flags: tuple[str, ...], label: str, sanitize: bool
) -> HostProgram:
    with own_temporary_folder("layerport-host-") as folder:
        source, code, library, binary = (
            Path(folder, name) for name in ("program.cpp", "program.o", "runtime.o", "program")
        )
        source.write_text(program)
        library.write_bytes(_runtime(sanitize))
        header = folder / _PRELUDE
        header.write_text(prelude)
        if (compiled := _precompiled(prelude, flags)) is not None:
            header.with_name(f"{_PRELUDE}.gch").write_bytes(compiled)
        before = ("-include", str(header))
        done = _call_compiler([*flags, *_folders(include), *before, "-c", str(source), "-o", str(code)], label, folder)
        if done.returncode == 0:
            link = (*_LINK_FLAGS, *(_SANITIZER_FLAGS if sanitize else ()))
            done = _call_compiler([str(code), str(library), *link, "-o", str(binary)], label, folder)
        if done.returncode != 0:
            raise _compile_error(done.stderr, label, program)
        anchor, statics, static_range = host_symbols.shared_variables(binary, program, _environment())
        if large := [f"{name} has {size} bytes" for name, _, size in statics if size > _STATIC_SHARED_LIMIT]:
            raise PackError(
                f"{label} has a __shared__ variable of more than {_STATIC_SHARED_LIMIT} bytes",
                "declare it as extern __shared__ and ask for its size with shared= in the launch rule",
                faults=large,
            )
        return HostProgram(binary.read_bytes(), anchor, statics, static_range)


def _compile_error(log: str, label: str, program: str) -> Exception:
    if "layerport_unsupported_inline_ptx" in log:
        return PackError(f"{label} has inline PTX, which cannot run on the CPU", _PLAIN_VARIANT)
    if match := _UNSUPPORTED.search(log):
        return PackError(f"{label} uses {match['what'].strip()}, which cannot run on the CPU", _PLAIN_VARIANT)
    errors = [line for line in log.splitlines() if " error: " in line or "undefined reference" in line]
    return BuildError(
        f"{label} does not compile for the CPU",
        include_repair(program, program.rpartition("run(")[2], log)
        or f"correct the source; for what only a GPU has, {_PLAIN_VARIANT}",
        faults=errors[:8] or log.splitlines()[-8:],
    )
