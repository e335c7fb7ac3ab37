"""Kernels on a machine without their compilers: found in a cache that another machine filled, by one stated rule."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layerport.errors import BuildError
from layerport.kernels import prepared as prepared_kernels
from layerport.kernels.toolchains import nvrtc, triton_functions
from layerport.kernels.toolchains.cuda_job import CudaJob
from layerport.kernels.toolchains.nvrtc import compile_jobs, toolchain
from layerport.kernels.toolchains.triton_files import files_digest
from layerport.kernels.toolchains.triton_functions import Place
from layerport.system.disk_cache import DiskCache
from triton_setup import build, kernel, tensors

TEXT = "template <class T> __global__ void scale(T* x) { *x *= FACTOR; }\n"


def job(**changes: Any) -> CudaJob:
    fields = {"text": '#include "factor.h"\n' + TEXT, "name": "k.cu", "entry": "scale<float>", "architecture": "sm_90"}
    return CudaJob(**{"label": "layer p::l, kernel l_0", **fields, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "factor.h").write_text("#define FACTOR 2\n")
    return str(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache")


@pytest.fixture
def without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """From the call on, the machine has no NVRTC."""

    def take_away() -> None:
        from cuda import pathfinder

        def missing(name: str) -> Any:
            raise pathfinder.DynamicLibNotFoundError(f"Failure finding {name}\nsearched everywhere")

        toolchain.cache_clear()
        monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", missing)
        monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a compiler process was started"))

    yield take_away
    toolchain.cache_clear()


def test_the_version_is_that_of_the_library_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    from cuda.bindings import nvrtc as bindings

    monkeypatch.setattr(metadata, "version", lambda name: pytest.fail("installed metadata was asked"))
    toolchain.cache_clear()
    _, major, minor = bindings.nvrtcVersion()
    assert toolchain().version == f"NVRTC {major}.{minor}"
    assert toolchain().identity.startswith(f"NVRTC {major}.{minor} ")


def test_a_machine_without_nvrtc_finds_what_another_one_compiled(
    folder: str, store: DiskCache, without_nvrtc: Callable[[], None]
) -> None:
    jobs = [job(folder=folder), job(folder=folder, entry="scale<int>")]
    made = compile_jobs(jobs, cache=store)
    without_nvrtc()
    assert compile_jobs(jobs, cache=store) == made
    Path(folder, "factor.h").write_text("#define FACTOR 3\n")
    with pytest.raises(BuildError) as caught:
        compile_jobs(jobs, cache=store)
    assert caught.value.fault == (
        "the CUDA compiler NVRTC is not here: Failure finding nvrtc; "
        f"and the kernel cache {store.folder} lacks 2 kernels"
    )
    assert caught.value.faults == ("layer p::l, kernel l_0 for sm_90",) * 2
    assert "pip install nvidia-cuda-nvrtc" in caught.value.repair and "filled for this archi" in caught.value.repair


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "sm_89"},
        {"entry": "scale<int>"},
        {"options": ("-DFACTOR=2",)},
        {"text": '#include "factor.h"\n' + TEXT + " "},
        {"name": "other.cu"},
    ],
    ids=str,
)
def test_only_the_same_source_is_the_same_kernel(
    folder: str, store: DiskCache, without_nvrtc: Callable[[], None], change: dict[str, Any]
) -> None:
    compile_jobs([job(folder=folder)], cache=store)
    without_nvrtc()
    with pytest.raises(BuildError, match="lacks 1 kernels"):
        compile_jobs([job(folder=folder, **change)], cache=store)


@pytest.mark.parametrize("marked", [True, False])
def test_a_prepared_cache_is_asked_before_any_compiler(
    folder: str, store: DiskCache, monkeypatch: pytest.MonkeyPatch, marked: bool
) -> None:
    """Elsewhere, another compiler compiles again: what a build writes must not depend on what was cached before."""
    made = compile_jobs([job(folder=folder)], cache=store)
    prepared_kernels.mark(store, marked)
    asked: list[int] = []
    real = toolchain()

    def other() -> nvrtc.Toolchain:
        asked.append(1)
        return nvrtc.Toolchain("NVRTC 13.0", "another NVRTC", real.include)

    monkeypatch.setattr(nvrtc, "toolchain", other)
    assert compile_jobs([job(folder=folder)], cache=store) == made
    assert asked == ([] if marked else [1])
    entries = len([path for path in store.folder.rglob("*") if path.is_file()])
    assert entries == (3 if marked else 4)  # with the mark; two pieces of machine code, where it was compiled twice
    compile_jobs([job(folder=folder, entry="scale<int>")], cache=store)  # what the cache lacks is compiled here
    assert asked


@pytest.mark.parametrize(
    ("compiler", "taken"), [("NVRTC 13.0", True), ("NVRTC 13.9", True), ("NVRTC 12.9", False), ("NVRTC 14.0", False)]
)
def test_kernels_of_one_major_version_are_taken(
    folder: str,
    store: DiskCache,
    monkeypatch: pytest.MonkeyPatch,
    without_nvrtc: Callable[[], None],
    compiler: str,
    taken: bool,
) -> None:
    real = toolchain()
    with monkeypatch.context() as patch:
        patch.setattr(nvrtc, "toolchain", lambda: nvrtc.Toolchain(compiler, compiler, real.include))
        compile_jobs([job(folder=folder)], cache=store)
    without_nvrtc()
    if taken:
        assert compile_jobs([job(folder=folder)], cache=store)
    else:
        with pytest.raises(BuildError, match="lacks 1 kernels"):
            compile_jobs([job(folder=folder)], cache=store)


def test_a_damaged_entry_is_not_taken(folder: str, store: DiskCache, without_nvrtc: Callable[[], None]) -> None:
    compile_jobs([job(folder=folder)], cache=store)
    without_nvrtc()
    for path in store.folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BuildError, match="lacks 1 kernels"):
        compile_jobs([job(folder=folder)], cache=store)


def test_an_old_pathfinder_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda import pathfinder

    monkeypatch.delattr(pathfinder, "find_nvidia_header_directory")
    toolchain.cache_clear()
    with pytest.raises(BuildError) as caught:
        toolchain()
    assert caught.value.repair == "pip install 'cuda-pathfinder>=1.2.3'"


# Triton.


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose kernel calls a helper of another module and takes a constant of a third."""
    package = tmp_path / "site" / "prepared_pack"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "constants.py").write_text("import triton.language as tl\nFACTOR = tl.constexpr(2.0)\n")
    (package / "helpers.py").write_text(
        "import triton\nfrom .constants import FACTOR\n\n\n@triton.jit\ndef twice(x):\n    return x * FACTOR\n"
    )
    (package / "kernel.py").write_text(
        "import triton\nimport triton.language as tl\nfrom prepared_pack import helpers\n\n\n"
        "@triton.jit\ndef double(x, y, n, BLOCK: tl.constexpr):\n"
        "    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)\n"
        "    tl.store(y + i, helpers.twice(tl.load(x + i, i < n)), i < n)\n"
    )
    (package / "unrelated.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(package.parent))
    yield package
    for name in [name for name in sys.modules if name.startswith("prepared_pack")]:
        del sys.modules[name]


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def take_away() -> None:
        import importlib

        real = importlib.import_module

        def refuse(name: str, *rest: Any) -> Any:
            if name == "triton":
                raise ImportError("No module named 'triton'")
            return real(name, *rest)

        monkeypatch.setattr(triton_functions.importlib, "import_module", refuse)
        monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a compiler process was started"))

    return take_away


def double() -> Any:
    from dataclasses import replace

    import layerport as lp

    made = kernel("copy")
    return replace(made, name="double", sources=(lp.triton("prepared_pack.kernel:double", constexprs={"BLOCK": 64}),))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has Triton")
class TestTriton:
    def test_a_machine_without_triton_finds_what_another_one_compiled(
        self, pack: Path, store: DiskCache, without_triton: Callable[[], None]
    ) -> None:
        (made,) = build(double(), store)
        without_triton()
        (found,) = build(double(), store)
        assert (found.steps[0].cubin, found.steps[0].rule) == (made.steps[0].cubin, made.steps[0].rule)
        with pytest.raises(BuildError, match="written in Triton, which cannot be imported"):
            build(double(), store, "sm_90")
        with pytest.raises(BuildError, match="written in Triton, which cannot be imported"):
            build(double(), store, of=tensors(1001))

    def test_a_prepared_cache_is_asked_before_triton(
        self, pack: Path, store: DiskCache, without_triton: Callable[[], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from layerport.kernels.toolchains import triton as triton_compiler

        (made,) = build(double(), store)
        prepared_kernels.mark(store)
        monkeypatch.setattr(triton_compiler, "_lower", lambda *_: pytest.fail("Triton was asked"))
        assert build(double(), store)[0].steps[0].cubin == made.steps[0].cubin

    @pytest.mark.parametrize("name", ["kernel", "helpers", "constants", "__init__"])
    def test_each_file_that_it_is_made_of_counts(
        self, pack: Path, store: DiskCache, without_triton: Callable[[], None], name: str
    ) -> None:
        build(double(), store)
        without_triton()
        (pack / "unrelated.py").write_text("x = 2\n")
        build(double(), store)
        path = pack / f"{name}.py"
        path.write_text(path.read_text() + "# changed\n")
        with pytest.raises(BuildError, match="cannot be imported"):
            build(double(), store)


def test_the_files_of_a_function(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text("import helper\nimport layerport, torch, os\nimport numpy as np\n")
    (tmp_path / "helper.py").write_text("x = 1\n")
    first = files_digest(Place(None, str(tmp_path / "kernel.py"), "k"))
    assert first == files_digest(Place(None, str(tmp_path / "kernel.py"), "k"))
    (tmp_path / "helper.py").write_text("x = 2\n")
    second = files_digest(Place(None, str(tmp_path / "kernel.py"), "k"))
    assert second != first
    (tmp_path / "kernel.py").write_text((tmp_path / "kernel.py").read_text() + "import rich\n")
    assert files_digest(Place(None, str(tmp_path / "kernel.py"), "k")) not in (first, second)
    assert files_digest(Place("no.such.module", None, "k")) is None
