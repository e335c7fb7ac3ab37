"""What stands before every kernel is compiled once: a kernel gives the same with it and without."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import layerport as lp
from layerport.errors import BuildError
from layerport.harness import compiler
from layerport.testing import run_kernel

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")

SOURCE = """#include <cuda_fp16.h>
#include <cuda_bf16.h>
__global__ void half_of(const T* x, T* y, int count) {
    const int i = threadIdx.x;
    if (i < count) y[i] = T(float(x[i]) * HALF);
}
"""


def layer_of(name: str, source: str, *options: str) -> lp.Layer:
    @lp.layer(f"precompiled_tests::{name}")
    def layer(x: Tensor) -> Tensor:
        return x * 0.5

    @layer.kernel(lp.cuda(source, "half_of", options=options), dtypes=("float16",))
    def launch(x: lp.TensorType, y: lp.TensorType) -> lp.Launch:
        return lp.Launch(grid=1, block=32, args=(x, y, x.numel()))

    return layer


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", str(tmp_path / "cache"))
    compiler._precompiled.cache_clear()


@pytest.mark.parametrize("sanitize", [False, True])
def test_a_kernel_gives_the_same_with_it_and_without(sanitize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-3, 3, 7).half()
    source = "#define T __half\n#define HALF 0.5f\n" + SOURCE
    runs = []
    for name in ("plain", "precompiled"):
        with monkeypatch.context() as patch:
            if name == "plain":
                patch.setattr(compiler, "_precompiled", lambda *_: None)
            runs.append(run_kernel(layer_of(f"{name}_{sanitize}", f"// {name}\n{source}"), x, sanitize=sanitize))
    assert runs[0].tolist() == runs[1].tolist() == (x * 0.5).tolist()
    assert compiler._precompiled.cache_info().currsize == 1


def test_definitions_of_the_author_hold() -> None:
    layer = layer_of("defined", SOURCE, "-DT=__half", "-DHALF=0.5f")
    x = torch.linspace(-3, 3, 7).half()
    assert run_kernel(layer, x).tolist() == (x * 0.5).tolist()
    assert compiler._precompiled("", ("-O1", "-DHALF=2")) is None


def test_an_error_is_told_with_its_own_line(tmp_path: Path) -> None:
    file = tmp_path / "kernel.cu"
    file.write_text(SOURCE.replace("T(", "__half(").replace("T*", "__half*").replace("HALF", "missing"))
    with pytest.raises(BuildError) as caught:
        run_kernel(layer_of("wrong", str(file)), torch.ones(3).half())
    assert any(fault.startswith(f"{file}:5:") and "missing" in fault for fault in caught.value.faults)


def test_it_is_kept_for_the_next_process(tmp_path: Path) -> None:
    source = "#define T __half\n#define HALF 0.5f\n" + SOURCE
    run_kernel(layer_of("first", source), torch.ones(3).half())
    kept = {path.name for path in (tmp_path / "cache" / "host").glob("*/*")}
    compiler._precompiled.cache_clear()
    run_kernel(layer_of("second", f"// another\n{source}"), torch.ones(3).half())
    new = {path.name for path in (tmp_path / "cache" / "host").glob("*/*")} - kept
    assert len(new) == 1  # the program alone
