"""`run_kernel(..., once=True)`: what counts as two that write one element, and what tells them apart in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import layerport as lp
from layerport.errors import PackError
from layerport.testing import run_kernel

# All in one source, so that one program each is compiled; every kernel copies x, with 4 threads a block.
SOURCE = """
__global__ void pairs(const float* x, float* y, int n) {
    int i = (blockIdx.x * 4 + threadIdx.x) / 2;
    if (i < n) y[i] = x[i];
}
__global__ void blocks(const float* x, float* y, int n) {
    int i = (blockIdx.x / 2) * 4 + threadIdx.x;
    if (i < n) y[i] = x[i];
}
__global__ void behind_a_barrier(const float* x, float* y, int n) {
    int i = blockIdx.x * 4 + threadIdx.x, other = blockIdx.x * 4 + 3 - threadIdx.x;
    if (other < n) y[other] = 0;
    __syncthreads();
    if (i < n) y[i] = x[i];
}
__global__ void atomic(const float* x, float* y, int n) {
    int i = (blockIdx.x * 4 + threadIdx.x) / 2;
    if (i < n) atomicExch(&y[i], x[i]);
}
__global__ void twice(const float* x, float* y, int n) {
    int i = blockIdx.x * 4 + threadIdx.x;
    if (i < n) { ((volatile float*)y)[i] = 0; y[i] = x[i]; }
}
"""


def copies(x: Tensor) -> Tensor:
    """x, copied."""
    return x.clone()


layer = lp.layer("written_once::copies")(copies)


def _add(name: str) -> None:
    @layer.kernel(lp.cuda(SOURCE, name), dtypes=("float32",), name=name)
    def launch(x: Any, output: Any) -> lp.Launch:
        return lp.Launch(grid=lp.cdiv(x.numel(), 2), block=4, args=(x, output, x.numel()))


for _name in ("pairs", "blocks", "behind_a_barrier", "atomic", "twice"):
    _add(_name)

X = np.arange(1, 8, dtype=np.float32)


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (
            "pairs",
            "thread (1, 0, 0) of block (0, 0, 0) writes output, byte 0, which thread (0, 0, 0) of block (0, 0, 0)",
        ),
        (
            "blocks",
            "thread (0, 0, 0) of block (1, 0, 0) writes output, byte 0, which thread (0, 0, 0) of block (0, 0, 0)",
        ),
    ],
)
def test_two_that_write_one_element(kernel: str, says: str) -> None:
    assert np.array_equal(run_kernel(layer, X, kernel=kernel), X)
    with pytest.raises(PackError) as error:
        run_kernel(layer, X, kernel=kernel, once=True)
    assert says in error.value.fault and "let one thread write it, or all of them by atomic" in error.value.fault


@pytest.mark.parametrize("kernel", ["behind_a_barrier", "atomic", "twice"])
@pytest.mark.parametrize("order", ["forward", "backward", 1])
def test_what_is_in_order(kernel: str, order: str | int) -> None:
    assert np.array_equal(run_kernel(layer, X, kernel=kernel, order=order, once=True), X)


TRITON = """
import triton
import triton.language as tl


@triton.jit
def whole(x, y, n, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(y + places, tl.load(x + places, mask=places < n), mask=places < n)


@triton.jit
def atomic(x, y, n, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.atomic_xchg(y + places, tl.load(x + places, mask=places < n), mask=places < n)
"""


def test_two_programs_of_triton_that_write_one_element(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    file = tmp_path / "once.py"
    file.write_text(TRITON)
    whole = X.astype(np.int32)  # the interpreter exchanges whole numbers only
    made = lp.layer("written_once::in_triton")(copies)
    for name in ("whole", "atomic"):

        @made.kernel(lp.triton(f"{file}:{name}", constexprs={"BLOCK": 8}), dtypes=("int32",), name=name)
        def launch(x: Any, output: Any) -> lp.Launch:
            return lp.Launch(grid=2, args=(x, output, x.numel()))

    assert np.array_equal(run_kernel(made, whole, kernel="whole"), X)
    assert np.array_equal(run_kernel(made, whole, kernel="atomic", once=True), X)
    with pytest.raises(PackError) as error:
        run_kernel(made, whole, kernel="whole", once=True)
    assert "program 1 writes output[0], which program 0 writes too; let one program write it" in str(error.value)
