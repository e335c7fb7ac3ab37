"""CUDA C++ to cubins: equal bytes from anywhere, a cache that notices changes, errors that say where."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerport.errors import BuildError
from layerport.kernels.cubin import Cubin
from layerport.kernels.toolchains import nvrtc, process
from layerport.kernels.toolchains.cuda_includes import local_headers
from layerport.kernels.toolchains.cuda_job import CudaJob
from layerport.kernels.toolchains.nvrtc import compile_jobs, toolchain
from layerport.kernels.toolchains.nvrtc_log import kernel_names
from layerport.system.disk_cache import DiskCache

SCALE = """#include <cuda_fp16.h>
#include "parts/load.h"
template <class T> __global__ void scale(const T* x, T* y, long long n) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < n) y[i] = (T)(load(x + i) * FACTOR);
}
"""
LOAD = """#pragma once
#include "factor.h"
template <class T> __device__ float load(const T* x) { return (float)*x; }
__device__ const char* where() { return __FILE__; }
"""


@pytest.fixture
def store(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache")


@pytest.fixture
def forbid_compiling(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("a compiler process was started")

        monkeypatch.setattr(subprocess, "Popen", refuse)

    return forbid


def lay_out(folder: Path, factor: str = "2.0f") -> CudaJob:
    (folder / "parts").mkdir(parents=True)
    (folder / "scale.cu").write_text(SCALE)
    (folder / "parts" / "load.h").write_text(LOAD)
    (folder / "parts" / "factor.h").write_text(f"#define FACTOR {factor}\n")
    return CudaJob(SCALE, "scale.cu", str(folder), "scale<__half>", "sm_89", "layer p::scale, kernel scale_0")


def inline(text: str, entry: str = "k", **fields: Any) -> CudaJob:
    return CudaJob(text, "inline.cu", os.curdir, entry, "sm_89", "layer p::l, kernel l_0", **fields)


def entry_of(store: DiskCache) -> Path:
    """The one entry that holds machine code; another one names it by its source."""
    return max((one for one in store.folder.rglob("*") if one.is_file()), key=lambda one: one.stat().st_size)


def failure(job: CudaJob, store: DiskCache) -> str:
    with pytest.raises(BuildError) as caught:
        compile_jobs([job], cache=store)
    return str(caught.value)


def test_the_same_input_gives_the_same_bytes_from_any_folder(tmp_path: Path) -> None:
    text = SCALE.replace("y[i] =", 'if (i == 7) printf("%s %s", where(), __FILE__); y[i] =')
    images = []
    for name in ("a", "some/where/else"):
        job = replace(lay_out(tmp_path / name), text=text)
        (cubin,) = compile_jobs([job], cache=DiskCache(tmp_path / name / "cache"))
        images.append(cubin.image)
    assert images[0] == images[1]
    assert b"parts/load.h\0" in images[0]
    assert os.fsencode(tmp_path) not in images[0]


def test_the_second_time_nothing_is_compiled(
    tmp_path: Path, store: DiskCache, forbid_compiling: Callable[[], None]
) -> None:
    job = lay_out(tmp_path / "a")
    first = compile_jobs([job], cache=store)
    forbid_compiling()
    assert compile_jobs([job], cache=store) == first
    # The same files elsewhere are the same kernel.
    assert compile_jobs([lay_out(tmp_path / "b")], cache=store) == first
    for changed in (
        replace(job, architecture="sm_90"),
        replace(job, entry="scale<float>"),
        replace(job, options=("-use_fast_math",)),
        replace(job, text=job.text + " "),
        lay_out(tmp_path / "c", factor="3.0f"),
    ):
        with pytest.raises(AssertionError, match="a compiler process was started"):
            compile_jobs([changed], cache=store)


def test_a_changed_header_of_a_header_is_noticed(tmp_path: Path, store: DiskCache) -> None:
    job = lay_out(tmp_path / "a")
    (before,) = compile_jobs([job], cache=store)
    (tmp_path / "a" / "parts" / "factor.h").write_text("#define FACTOR 3.0f\n")
    (after,) = compile_jobs([job], cache=store)
    assert before.image != after.image


def test_another_compiler_is_another_key(
    tmp_path: Path, store: DiskCache, monkeypatch: pytest.MonkeyPatch, forbid_compiling: Callable[[], None]
) -> None:
    job = lay_out(tmp_path / "a")
    compile_jobs([job], cache=store)
    other = replace(toolchain(), identity="another NVRTC")
    monkeypatch.setattr(nvrtc, "toolchain", lambda: other)
    forbid_compiling()
    with pytest.raises(AssertionError, match="a compiler process was started"):
        compile_jobs([job], cache=store)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('#include "parts/load.h"', ["parts/factor.h", "parts/load.h"]),
        ("# include <parts/load.h>", ["parts/factor.h", "parts/load.h"]),
        ('#include \\\n "parts/factor.h"', ["parts/factor.h"]),
        ('#if 0\r\n#include "parts/factor.h"\r\n#endif', ["parts/factor.h"]),
        ('#if __has_include("parts/factor.h")', ["parts/factor.h"]),
        ("#include <cuda_fp16.h>", []),
        ('#include "extra.h"', ["../more/extra.h"]),
        ("#include HEADER", None),
    ],
)
def test_finds_local_headers(tmp_path: Path, text: str, found: list[str] | None) -> None:
    lay_out(tmp_path / "a")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "extra.h").write_text("")
    headers = local_headers(text, str(tmp_path / "a"), [str(tmp_path / "more")])
    assert (headers if headers is None else [path for path, _ in headers]) == found


def test_headers_that_include_each_other_end(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text('#include "b.h"')
    (tmp_path / "b.h").write_text('#include "a.h"')
    headers = local_headers('#include "a.h"', str(tmp_path), [])
    assert headers is not None
    assert [path for path, _ in headers] == ["a.h", "b.h"]


def test_a_header_named_by_a_macro_is_compiled_each_time(tmp_path: Path, store: DiskCache) -> None:
    text = '#define HEADER "v.h"\n#include HEADER\n__global__ void k(int* x) { *x = V; }\n'
    images = []
    for value in (1, 2):
        (tmp_path / "v.h").write_text(f"#define V {value}\n")
        (cubin,) = compile_jobs([replace(inline(text), folder=str(tmp_path))], cache=store)
        images.append(cubin.image)
    assert images[0] != images[1]
    assert not store.folder.exists()


def test_many_jobs_come_back_in_order(store: DiskCache) -> None:
    text = "template <int N> __global__ void k(int* x) { *x = N; }\n"
    jobs = [inline(text, f"k<{number}>") for number in (5, 1, 5, 3, 2)]
    cubins = compile_jobs(jobs, cache=store)
    assert [cubin.symbol for cubin in cubins] == [f"_Z1kILi{number}EEvPi" for number in (5, 1, 5, 3, 2)]
    assert cubins[0] is cubins[2]
    assert compile_jobs(jobs, cache=store) == cubins
    assert compile_jobs([], cache=store) == ()


@pytest.mark.parametrize("damage", ["truncated", "foreign", "poisoned"])
def test_a_cache_entry_that_is_not_ours_is_made_again(tmp_path: Path, store: DiskCache, damage: str) -> None:
    job = lay_out(tmp_path / "a")
    (good,) = compile_jobs([job], cache=store)
    path = entry_of(store)
    (other,) = compile_jobs([replace(job, entry="scale<float>")], cache=DiskCache(tmp_path / "other"))
    entry = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(entry[:-500])
    elif damage == "foreign":
        path.write_bytes(entry_of(DiskCache(tmp_path / "other")).read_bytes())
    else:
        path.write_bytes(entry.replace(good.image, other.image))
        assert other.image in path.read_bytes()
    assert compile_jobs([job], cache=store) == (good,)
    assert path.read_bytes() == entry


def test_an_entry_that_is_whole_but_no_cubin_is_made_again(tmp_path: Path, store: DiskCache) -> None:
    job = lay_out(tmp_path / "a")
    (good,) = compile_jobs([job], cache=store)
    path = entry_of(store)
    store.put(path.name, {"symbol": good.symbol}, b"no cubin")
    assert compile_jobs([job], cache=store) == (good,)
    assert store.get(path.name) == ({"symbol": good.symbol}, good.image)


def test_a_folder_that_cannot_be_written_does_not_stop_compiling(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    job = lay_out(tmp_path / "a")
    with pytest.warns(RuntimeWarning, match="nothing is kept") as caught:
        cubins = [compile_jobs([job], cache=DiskCache(tmp_path / "file"))[0] for _ in range(2)]
    assert len(caught) == 1
    assert cubins[0] == cubins[1]


_COMPILE = """
import sys
from pathlib import Path
from layerport.kernels.toolchains.cuda_job import CudaJob
from layerport.kernels.toolchains.nvrtc import compile_jobs
from layerport.system.disk_cache import DiskCache
folder = Path(sys.argv[1])
text = (folder / "scale.cu").read_text()
jobs = [CudaJob(text, "scale.cu", str(folder), f"scale<{t}>", "sm_89", "test") for t in ("float", "__half")]
for cubin in compile_jobs(jobs, cache=DiskCache(folder / "cache")):
    print(cubin.digest)
"""


def test_two_processes_on_one_cache(tmp_path: Path) -> None:
    job = lay_out(tmp_path / "a")
    environment = os.environ | {"PYTHONPATH": str(Path(nvrtc.__file__).parents[2])}
    command = [sys.executable, "-c", _COMPILE, job.folder]
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in both]
    assert answers[0] == answers[1]
    assert answers[0][1] == ""
    assert answers[0][0].split()[1] == compile_jobs([job], cache=DiskCache(tmp_path / "new"))[0].digest


def test_an_error_shows_file_line_options_architecture_and_layer(tmp_path: Path, store: DiskCache) -> None:
    job = lay_out(tmp_path / "a")
    bad = replace(job, text=SCALE + "\n__device__ int f() { return zap + zip; }\n", options=("-DX=1",))
    text = failure(bad, store)
    assert text.startswith(f'layer p::scale, kernel scale_0: {tmp_path}/a/scale.cu:8: identifier "zap" is undefined\n')
    assert "__device__ int f() { return zap + zip; }" in text
    assert f'{tmp_path}/a/scale.cu:8: identifier "zip" is undefined' in text
    assert "compiled for sm_89 as scale<__half> with -arch=sm_89 --std=c++17 -DX=1 -I." in text
    assert not store.folder.exists()


def test_an_error_in_a_header_shows_the_header(tmp_path: Path, store: DiskCache) -> None:
    job = lay_out(tmp_path / "a", factor="2.0f\n#error no such factor")
    assert f"{tmp_path}/a/parts/factor.h:2: #error directive: no such factor" in failure(job, store)


def test_an_error_in_inline_code_says_its_line(store: DiskCache) -> None:
    text = failure(inline("\n\n__global__ void k(int* x) { *x = y; }\n"), store)
    assert 'inline.cu (inline source), line 3: identifier "y" is undefined' in text


def test_many_errors_are_cut(store: DiskCache) -> None:
    lines = "\n".join(f"int v{number} = u{number};" for number in range(9))
    assert "and 4 more errors" in failure(inline(f"__device__ void f() {{\n{lines}\n}}\n"), store)


@pytest.mark.parametrize(
    ("header", "repair"),
    [
        ('"mine.h"', "put the header beside the source, or name its folder in lp.cuda(..., include=(...))"),
        ("<cassert>", "NVRTC has no host headers: use <cuda/std/cassert>"),
        ("<stdint.h>", "NVRTC has no host headers: use <cuda/std/cstdint>"),
        ("<cuda_nothere.h>", "pip install nvidia-cuda-runtime"),
        ("<cub/nothere.cuh>", "pip install nvidia-cuda-cccl"),
    ],
)
def test_a_missing_header_says_where_it_was_sought(tmp_path: Path, store: DiskCache, header: str, repair: str) -> None:
    job = inline(f"#include {header}\n__global__ void k() {{}}\n", include=(str(tmp_path / "more"),))
    text = failure(replace(job, folder=str(tmp_path)), store)
    assert f'line 1: cannot open source file "{header[1:-1]}"' in text
    assert f"searched: {tmp_path}, {tmp_path / 'more'}, {', '.join(toolchain().include)}" in text
    assert f"to repair: {repair}" in text


def test_an_entry_that_is_not_there_lists_the_kernels(store: DiskCache) -> None:
    source = """// __global__ void not_this(int*);
    template <class T> __global__ void __launch_bounds__(256) first(T* x) {}
    extern "C" __global__ void second(int* x) {}
    static __device__ int helper(int x) { return x; }
    """
    text = failure(inline(source, "frist<float>"), store)
    assert "entry 'frist<float>' is no kernel of the inline source: identifier \"frist\" is undefined" in text
    assert "with template arguments where it is a template: first, second" in text
    assert "it has none" in failure(inline("__device__ int f();\n"), store)


def test_an_entry_with_a_type_that_is_not_included(store: DiskCache) -> None:
    text = failure(inline("template <class T> __global__ void k(T* x) {}\n", "k<__nv_bfloat16>"), store)
    assert "entry 'k<__nv_bfloat16>' uses __nv_bfloat16, which inline.cu does not know" in text
    assert "add #include <cuda_bf16.h> to the source" in text


def test_kernel_names_sees_declarations_only_once() -> None:
    text = "__global__ void a(int);\n__global__ void a(int) {}\n__global__ static void b() {}\n"
    assert kernel_names(text) == ("a", "b")


def test_an_unknown_option(store: DiskCache) -> None:
    text = failure(inline("__global__ void k() {}\n", options=("--no-such-option",)), store)
    assert "inline.cu does not compile: nvrtc: error: unrecognized option --no-such-option found" in text
    assert "correct the options in lp.cuda(..., options=(...))" in text


def test_an_unknown_architecture_lists_the_known_ones(store: DiskCache) -> None:
    text = failure(replace(inline("__global__ void k() {}\n"), architecture="sm_55"), store)
    assert "this NVRTC does not compile for sm_55" in text
    assert "it compiles for sm_75, sm_80" in text


def test_recursion_of_templates_without_end(store: DiskCache) -> None:
    source = """template <int N> struct A { static constexpr int v = A<N + 1>::v + 1; };
    __global__ void k(int* x) { *x = A<0>::v; }
    """
    text = failure(inline(source), store)
    assert "line 1: excessive recursion at instantiation of class" in text
    assert "end the recursion of the template" in text


BOMB = """template <int N, long M> struct A {
  static constexpr long v = A<N - 1, 2 * M>::v + A<N - 1, 2 * M + 1>::v;
};
template <long M> struct A<0, M> { static constexpr long v = M; };
__global__ void k(long* x) { *x = A<40, 0>::v; }
"""


def test_a_compilation_without_end_is_ended(store: DiskCache) -> None:
    text = failure(inline(BOMB, time_limit=1.0), store)
    assert "inline.cu did not compile for sm_89 within 1 s" in text
    assert "lp.cuda(..., time_limit=seconds)" in text


def test_a_compilation_without_end_is_ended_where_there_is_no_interval_timer(
    store: DiskCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child = tmp_path / "child.py"
    child.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(process, "_CHILD", child)
    monkeypatch.setattr(nvrtc, "_GRACE", 0.0)
    assert "did not compile for sm_89 within 0.5 s" in failure(inline(BOMB, time_limit=0.5), store)


def test_a_compiler_that_dies_is_an_error(store: DiskCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    death = "print('out of luck', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)\n"
    child.write_text(f"import os, sys\n{death}")
    monkeypatch.setattr(process, "_CHILD", child)
    text = failure(inline("__global__ void k() {}\n"), store)
    assert "the compiler process ended with status -9 at inline.cu for sm_89" in text
    assert "out of luck" in text


def test_no_compiler_process_is_left(store: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    real = subprocess.Popen

    def note(*args: Any, **kwargs: Any) -> Any:
        started.append(real(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", note)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    jobs = [inline("__global__ void k() { error }\n"), inline(BOMB, time_limit=60.0)]
    with pytest.raises(BuildError, match='identifier "error" is undefined'):
        compile_jobs(jobs, cache=store)
    assert len(started) == 4  # each with its guard
    assert all(process.returncode is not None for process in started)


def test_without_nvrtc_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda import pathfinder

    def missing(name: str) -> None:
        raise pathfinder.DynamicLibNotFoundError(f"no {name}\nsecond line")

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", missing)
    with pytest.raises(BuildError, match=r"NVRTC is not here: no nvrtc\n.*pip install nvidia-cuda-nvrtc"):
        toolchain.__wrapped__()


def test_symbols_are_read_back(tmp_path: Path, store: DiskCache) -> None:
    (cubin,) = compile_jobs([lay_out(tmp_path / "a")], cache=store)
    assert Cubin.read(cubin.image, cubin.symbol) == cubin
    assert cubin.parameter_sizes == (8, 8, 8)
