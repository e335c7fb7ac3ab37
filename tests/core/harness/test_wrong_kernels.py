"""A zoo of wrong CUDA kernels: each has one fault that `run_kernel` must name, and a twin without it that must pass."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import layerport as lp
from layerport.harness import compiler
from layerport.testing import run_kernel

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")

_numbers = itertools.count()
HEADER = "#include <cuda_fp16.h>\n"
I = "const int i = blockIdx.x * blockDim.x + threadIdx.x; "  # noqa: E741 - the usual name in kernels


def copied(x: Tensor) -> Tensor:
    return x.clone()


@dataclass(frozen=True)
class Wrong:
    """A kernel `run(const float* x, float* y, int n)` with one fault, what must be said of it, and its right twin."""

    name: str
    wrong: str
    right: str
    said: str
    count: int = 64
    grid: int = 1
    block: Any = 64
    right_block: Any = None
    shared: int = 0
    right_shared: int | None = None
    reference: Callable[[Tensor], Tensor] = copied
    options: dict[str, Any] = field(default_factory=dict)


def layer_of(one: Wrong, body: str, block: Any, shared: int) -> lp.Layer:
    def reference(x: Tensor) -> Tensor:
        return one.reference(x)

    layer = lp.layer(f"wrong_kernels::layer_{next(_numbers)}")(reference)
    code = f'\n{HEADER}extern "C" __global__ void run(const float* x, float* y, int n) {{\n{body}\n}}\n'

    @layer.kernel(lp.cuda(code, "run"), dtypes=("float32",), name="run")
    def launch(x: Any, y: Any) -> lp.Launch:
        return lp.Launch(grid=one.grid, block=block, args=(x, y, x.numel()), shared=shared)

    return layer


COPY = f"{I} if (i < n) y[i] = x[i];"
SUM_OF_SHARED = """
    __syncthreads();
    float sum = 0;
    for (int k = 0; k < 64; ++k) sum += part[k];
    y[threadIdx.x] = sum;
"""


def repeated_sum(x: Tensor) -> Tensor:
    return x.sum().expand(x.shape).clone()


ZOO = [
    # --- bounds of buffers -------------------------------------------------------------------------------------------
    Wrong(
        "a read one element past the end",
        f"{I} if (i < n) y[i] = x[i] + 0 * x[i + 1];",
        f"{I} if (i < n) y[i] = x[i] + (i + 1 < n ? 0 * x[i + 1] : 0);",
        "thread (5, 0, 0) of block (0, 0, 0) reads x 0 bytes past its end, it has 24 bytes",
        count=6,
    ),
    Wrong(
        "a read one element before the start",
        f"{I} if (i < n) y[i] = x[i] + 0 * x[i - 1];",
        f"{I} if (i < n) y[i] = x[i] + (i > 0 ? 0 * x[i - 1] : 0);",
        "thread (0, 0, 0) of block (0, 0, 0) reads x 4 bytes before its start",
    ),
    Wrong(
        "a write one element past the end",
        f"{I} if (i <= n) y[i] = x[i < n ? i : 0];",
        COPY,
        "thread (6, 0, 0) of block (0, 0, 0) writes output 0 bytes past its end, it has 24 bytes",
        count=6,
    ),
    Wrong(
        "a write one element before the start",
        f"{I} if (i < n) {{ y[i - 1] = x[i]; y[i] = x[i]; }}",
        COPY,
        "thread (0, 0, 0) of block (0, 0, 0) writes output 4 bytes before its start",
    ),
    Wrong(
        "a read far away",
        f"{I} if (i < n) y[i] = x[i] + 0 * x[i + (i == 7 ? 1 << 28 : 0)];",
        COPY,
        "thread (7, 0, 0) of block (0, 0, 0) reads x 1073741596 bytes past its end",
    ),
    Wrong(
        "an index that overflowed",
        f"{I} if (i < n) y[i] = x[i] + 0 * x[i == 9 ? -2000000000 : i];",
        COPY,
        "thread (9, 0, 0) of block (0, 0, 0) reads x 8000000000 bytes before its start",
    ),
    Wrong(
        "a vector that hangs over the end",
        f"{I} if (4 * i < n) {{ float4 v = reinterpret_cast<const float4*>(x)[i];"
        " y[4 * i] = v.x; y[4 * i + 1] = v.y; if (4 * i + 2 < n) { y[4 * i + 2] = v.z; y[4 * i + 3] = v.w; } }",
        f"{I} if (i < n) y[i] = x[i];",
        "thread (1, 0, 0) of block (0, 0, 0) reads x 0 bytes past its end",
        count=6,
    ),
    Wrong(
        "a copy of bytes past the end",
        f"{I} if (i == 0) memcpy(y, x, 4 * n + 4);",
        f"{I} if (i == 0) memcpy(y, x, 4 * n);",
        "kernel run: inline.cu:4: thread (0, 0, 0) of block (0, 0, 0) reads x 0 bytes past its end",
        count=6,
    ),
    Wrong(
        "a copy of twelve bytes past the end",
        f"{I} if (i < 2) memcpy(y + 3 * i, x + 3 * i, 12);",
        f"{I} if (i < 5) std::memcpy(y + i, x + i, 4);",
        "kernel run: inline.cu:4: thread (1, 0, 0) of block (0, 0, 0) reads x 0 bytes past its end",
        count=5,
    ),
    Wrong(
        "a fill of bytes past the end",
        f"{I} if (i == 0) memset(y, 0, 4 * n + 1); __syncthreads(); if (i < n) y[i] = x[i];",
        f"{I} if (i == 0) memset(y, 0, 4 * n); __syncthreads(); if (i < n) y[i] = x[i];",
        "writes output 0 bytes past its end",
        count=5,
    ),
    # --- inputs ------------------------------------------------------------------------------------------------------
    Wrong(
        "an input that is written",
        f"{I} if (i < n) y[i] = const_cast<float*>(x)[i] += 1;",
        COPY,
        "thread (0, 0, 0) of block (0, 0, 0) writes its input x, byte 0",
    ),
    Wrong(
        "an atomic operation on an input",
        f"{I} if (i < n) y[i] = atomicAdd(const_cast<float*>(x) + i, 0.0f);",
        COPY,
        "writes its input x, byte 0",
    ),
    Wrong(
        "an input that bytes are copied to",
        f"{I} if (i < n) y[i] = x[i]; if (i == 3) memcpy(const_cast<float*>(x), y, 4);",
        COPY,
        "thread (3, 0, 0) of block (0, 0, 0) writes its input x, byte 0",
    ),
    # --- what takes global memory only -------------------------------------------------------------------------------
    Wrong(
        "a load of global memory from a variable",
        f"{I} float held = x[threadIdx.x]; if (i < n) y[i] = __ldg(&held);",
        COPY,
        "thread (0, 0, 0) of block (0, 0, 0) gives __ldg the address of a variable of its own, "
        "and it takes global memory only; use a plain access",
    ),
    Wrong(
        "a load of global memory from shared memory",
        f"__shared__ float part[64]; {I} part[threadIdx.x] = x[threadIdx.x]; __syncthreads();"
        " if (i < n) y[i] = __ldcg(part + threadIdx.x);",
        COPY,
        "thread (0, 0, 0) of block (0, 0, 0) gives __ldcg the address of shared memory",
    ),
    Wrong(
        "a store to global memory into a variable",
        f"{I} float held; __stwb(&held, x[threadIdx.x]); if (i < n) y[i] = held;",
        COPY,
        "gives __stwb the address of a variable of its own",
    ),
    Wrong(
        "an atomic operation on a variable",
        f"{I} float held = x[threadIdx.x]; atomicAdd(&held, 0.0f); if (i < n) y[i] = held;",
        COPY,
        "makes an atomic operation on a variable of its own, which a GPU refuses",
    ),
    # --- shared memory -----------------------------------------------------------------------------------------------
    Wrong(
        "dynamic shared memory that nobody asked for",
        "extern __shared__ float part[]; part[threadIdx.x] = x[threadIdx.x]; " + SUM_OF_SHARED,
        "extern __shared__ float part[]; part[threadIdx.x] = x[threadIdx.x]; " + SUM_OF_SHARED,
        "writes the dynamic shared memory 0 bytes past its end, the launch rule asks for shared=0",
        right_shared=256,
        reference=repeated_sum,
    ),
    Wrong(
        "dynamic shared memory short by four bytes",
        "extern __shared__ float part[]; part[threadIdx.x] = x[threadIdx.x]; " + SUM_OF_SHARED,
        "extern __shared__ float part[]; part[threadIdx.x] = x[threadIdx.x]; " + SUM_OF_SHARED,
        "thread (63, 0, 0) of block (0, 0, 0) writes the dynamic shared memory 0 bytes past its end, "
        "the launch rule asks for shared=252",
        shared=252,
        right_shared=256,
        reference=repeated_sum,
    ),
    Wrong(
        "dynamic shared memory before its start",
        "extern __shared__ float part[]; part[threadIdx.x] = 0; __syncthreads();"
        " y[threadIdx.x] = x[threadIdx.x] + 0 * part[(int)threadIdx.x - 1];",
        "extern __shared__ float part[]; part[threadIdx.x] = 0; __syncthreads();"
        " y[threadIdx.x] = x[threadIdx.x] + 0 * part[threadIdx.x > 0 ? threadIdx.x - 1 : 0];",
        "reads the dynamic shared memory 4 bytes before its start",
        shared=256,
    ),
    Wrong(
        "static shared memory past its end",
        "__shared__ float part[64]; part[threadIdx.x + 1] = x[threadIdx.x]; if (threadIdx.x == 0) part[0] = 0;"
        " __syncthreads(); y[threadIdx.x] = part[threadIdx.x + 1];",
        "__shared__ float part[65]; part[threadIdx.x + 1] = x[threadIdx.x]; if (threadIdx.x == 0) part[0] = 0;"
        " __syncthreads(); y[threadIdx.x] = part[threadIdx.x + 1];",
        "thread (63, 0, 0) of block (0, 0, 0) writes the shared memory part 0 bytes past its end, it has 256 bytes",
    ),
    Wrong(
        "static shared memory before its start",
        "__shared__ float first[64]; __shared__ float second[64]; first[threadIdx.x] = 0;"
        " second[(int)threadIdx.x - 1] = x[threadIdx.x]; __syncthreads();"
        " y[threadIdx.x] = second[(int)threadIdx.x - 1] + first[threadIdx.x];",
        "__shared__ float first[64]; __shared__ float second[64]; first[threadIdx.x] = 0;"
        " second[threadIdx.x] = x[threadIdx.x]; __syncthreads(); y[threadIdx.x] = second[threadIdx.x]"
        " + first[threadIdx.x];",
        "thread (0, 0, 0) of block (0, 0, 0) writes the shared memory",
    ),
    Wrong(
        "a tile of shared memory past its last row",
        "__shared__ float tile[8][8]; tile[threadIdx.x / 8 + 1][threadIdx.x % 8] = x[threadIdx.x]; __syncthreads();"
        " y[threadIdx.x] = tile[threadIdx.x / 8 + 1][threadIdx.x % 8];",
        "__shared__ float tile[9][8]; tile[threadIdx.x / 8 + 1][threadIdx.x % 8] = x[threadIdx.x]; __syncthreads();"
        " y[threadIdx.x] = tile[threadIdx.x / 8 + 1][threadIdx.x % 8];",
        "thread (56, 0, 0) of block (0, 0, 0) writes the shared memory tile 0 bytes past its end",
    ),
    Wrong(
        "static shared memory that nothing wrote",
        "__shared__ float part[64]; if (threadIdx.x < 63) part[threadIdx.x] = x[threadIdx.x]; " + SUM_OF_SHARED,
        "__shared__ float part[64]; part[threadIdx.x] = x[threadIdx.x]; " + SUM_OF_SHARED,
        "gives results that depend on memory that nothing has written",
        reference=repeated_sum,
    ),
    Wrong(
        "dynamic shared memory that nothing wrote",
        "extern __shared__ float part[]; if (threadIdx.x > 0) part[threadIdx.x] = x[threadIdx.x]; " + SUM_OF_SHARED,
        "extern __shared__ float part[]; part[threadIdx.x] = x[threadIdx.x]; " + SUM_OF_SHARED,
        "gives results that depend on memory that nothing has written",
        shared=256,
        reference=repeated_sum,
    ),
    # --- barriers ----------------------------------------------------------------------------------------------------
    Wrong(
        "a barrier for some threads only",
        "if (threadIdx.x < 64) __syncthreads(); y[threadIdx.x] = x[threadIdx.x];",
        "__syncthreads(); y[threadIdx.x] = x[threadIdx.x];",
        "not all threads of the block reach the barrier of line 4: thread (0, 0, 0) of block (0, 0, 0) waits there, "
        "thread (64, 0, 0) of block (0, 0, 0) has returned",
        count=128,
        block=128,
    ),
    Wrong(
        "a return before a barrier",
        "if (threadIdx.x >= n) return; __syncthreads(); y[threadIdx.x] = x[threadIdx.x];",
        "__syncthreads(); if (threadIdx.x < n) y[threadIdx.x] = x[threadIdx.x];",
        "thread (40, 0, 0) of block (0, 0, 0) has returned",
        count=40,
    ),
    Wrong(
        "a return before a barrier, in three dimensions",
        "const int i = threadIdx.x + 4 * (threadIdx.y + 4 * threadIdx.z);"
        " if (threadIdx.z == 3 && threadIdx.y == 2) return; __syncthreads(); y[i] = x[i];",
        "const int i = threadIdx.x + 4 * (threadIdx.y + 4 * threadIdx.z); __syncthreads(); y[i] = x[i];",
        "thread (0, 2, 3) of block (0, 0, 0) has returned",
        block=(4, 4, 4),
    ),
    Wrong(
        "a loop with a barrier that some threads leave early",
        "float v = 0; for (int k = 0; k < 2 + (threadIdx.x == 0); ++k) { __syncthreads(); v = x[threadIdx.x]; }"
        " y[threadIdx.x] = v;",
        "float v = 0; for (int k = 0; k < 3; ++k) { __syncthreads(); v = x[threadIdx.x]; } y[threadIdx.x] = v;",
        "not all threads of the block reach the barrier of line 4",
    ),
    Wrong(
        "a vote of the block for some threads only",
        "int all = 0; if (threadIdx.x != 7) all = __syncthreads_and(1); y[threadIdx.x] = x[threadIdx.x] + 0 * all;",
        "int all = __syncthreads_and(1); y[threadIdx.x] = x[threadIdx.x] + 0 * all;",
        "thread (7, 0, 0) of block (0, 0, 0) has returned",
    ),
    Wrong(
        "two barriers in two branches",
        "if (threadIdx.x % 2)\n __syncthreads();\n else\n __syncthreads();\n y[threadIdx.x] = x[threadIdx.x];",
        "__syncthreads(); y[threadIdx.x] = x[threadIdx.x];",
        "a barrier is reached on different paths",
    ),
    Wrong(
        "a barrier of the warp that lanes have left",
        "if (threadIdx.x % 32 > 20) { y[threadIdx.x] = x[threadIdx.x]; return; } __syncwarp();"
        " y[threadIdx.x] = x[threadIdx.x];",
        "__syncwarp(); y[threadIdx.x] = x[threadIdx.x];",
        "the mask 0xffffffff of line 4 names a lane that never comes: thread (0, 0, 0) of block (0, 0, 0) waits there, "
        "thread (31, 0, 0) of block (0, 0, 0) has returned",
    ),
    Wrong(
        "a shuffle whose mask names lanes that have left",
        f"{I} if (i >= n) return; y[i] = x[i] + 0 * __shfl_down_sync(0xffffffffu, x[i], 1);",
        f"{I} const float v = i < n ? x[i] : 0; const float w = __shfl_down_sync(0xffffffffu, v, 1);"
        " if (i < n) y[i] = v + 0 * w;",
        "names a lane that never comes",
        count=40,
    ),
    Wrong(
        "a vote whose mask names lanes that do not come",
        f"{I} if (i < n) {{ const unsigned all = __ballot_sync(0xffffffffu, 1); y[i] = x[i] + 0 * all; }}",
        f"{I} const unsigned all = __ballot_sync(0xffffffffu, i < n); if (i < n) y[i] = x[i] + 0 * all;",
        "names a lane that never comes",
        count=40,
    ),
    Wrong(
        "a mask without the lane that calls",
        "__syncwarp(0xff); y[threadIdx.x] = x[threadIdx.x];",
        "if (threadIdx.x % 32 < 8) __syncwarp(0xff); y[threadIdx.x] = x[threadIdx.x];",
        "line 4: the mask leaves out the calling lane",
    ),
    Wrong(
        "lanes that meet in different operations",
        "float v = x[threadIdx.x]; if (threadIdx.x % 2) v += 0 * __shfl_sync(~0u, v, 0); else __syncwarp();"
        " y[threadIdx.x] = v;",
        "float v = x[threadIdx.x]; v += 0 * __shfl_sync(~0u, v, 0); __syncwarp(); y[threadIdx.x] = v;",
        "lanes of one warp meet in different operations",
    ),
    Wrong(
        "a value of a lane that is not there",
        "float v = x[threadIdx.x]; for (int k = 16; k > 0; k /= 2) v += __shfl_down_sync(~0u, v, k);"
        " y[threadIdx.x] = __shfl_sync(~0u, v, 0);",
        "float v = x[threadIdx.x]; for (int k = 4; k > 0; k /= 2) v += __shfl_down_sync(~0u, v, k);"
        " y[threadIdx.x] = __shfl_sync(~0u, v, 0);",
        "gives results that depend on memory that nothing has written",
        count=8,
        block=8,
        reference=repeated_sum,
    ),
    # --- threads that depend on each other ---------------------------------------------------------------------------
    Wrong(
        "a missing barrier before a lower thread's value is read",
        "__shared__ float part[64]; part[threadIdx.x] = x[threadIdx.x];"
        " y[threadIdx.x] = part[threadIdx.x > 0 ? threadIdx.x - 1 : 0];",
        "__shared__ float part[64]; part[threadIdx.x] = x[threadIdx.x]; __syncthreads();"
        " y[threadIdx.x] = part[threadIdx.x > 0 ? threadIdx.x - 1 : 0];",
        "gives other results when its threads and blocks run in the opposite order",
        reference=lambda x: x[(x - 2).clamp(min=0).long()].clone(),
    ),
    Wrong(
        "a missing barrier before shared memory is written again",
        "__shared__ float part[64]; float sum = 0; for (int k = 0; k < 2; ++k) {"
        " part[threadIdx.x] = x[threadIdx.x] + k; __syncthreads(); sum += part[threadIdx.x / 2]; }"
        " y[threadIdx.x] = sum;",
        "__shared__ float part[64]; float sum = 0; for (int k = 0; k < 2; ++k) {"
        " part[threadIdx.x] = x[threadIdx.x] + k; __syncthreads(); sum += part[threadIdx.x / 2];"
        " __syncthreads(); } y[threadIdx.x] = sum;",
        "gives other results when its threads and blocks run in the opposite order",
        reference=lambda x: 2 * x[((x - 1) / 2).long()] + 1,
    ),
    Wrong(
        "one element that all threads write",
        "y[threadIdx.x] = x[threadIdx.x]; __syncthreads(); y[5] = x[threadIdx.x];",
        "y[threadIdx.x] = x[threadIdx.x]; __syncthreads(); y[5] = x[5];",
        "output: 1 of 64 elements, the first at [5]: 64 and 1",
    ),
    Wrong(
        "an element that another block writes",
        f"{I} y[i] = x[i]; y[(i + 64) % n] = x[i];",
        f"{I} y[i] = x[i];",
        "gives other results when its threads and blocks run in the opposite order",
        count=128,
        grid=2,
    ),
    Wrong(
        "a running sum over blocks",
        "if (threadIdx.x == 0) y[blockIdx.x] = x[blockIdx.x] + (blockIdx.x > 0 ? y[blockIdx.x - 1] : 0);",
        "float sum = 0; for (int k = 0; k <= blockIdx.x; ++k) sum += x[k]; if (threadIdx.x == 0) y[blockIdx.x] = sum;",
        "gives other results when its threads and blocks run in the opposite order",
        count=4,
        grid=4,
        reference=lambda x: x.cumsum(0),
    ),
    Wrong(
        "an output that is added to",
        f"{I} if (i < n) y[i] += x[i];",
        COPY,
        "an output begins with garbage, so nothing can be added to it",
    ),
    # --- the rest ----------------------------------------------------------------------------------------------------
    Wrong(
        "an output that is written in part",
        f"{I} if (i < n - 1) y[i] = x[i];",
        COPY,
        "output: 1 of 64 elements, the first at [63]",
    ),
    Wrong(
        "a loop that never ends",
        f"{I} if (i == 3) while (*(volatile const float*)x > 0) {{}} if (i < n) y[i] = x[i];",
        COPY,
        "thread (3, 0, 0) of block (0, 0, 0) runs",
        options={"time_limit": 0.5},
    ),
    Wrong(
        "a loop that never ends and touches nothing",
        f"{I} for (volatile int k = 0; i == 3; k = k + 1) {{}} if (i < n) y[i] = x[i];",
        COPY,
        "did not end within 0.5 s",
        options={"time_limit": 0.5},
    ),
    Wrong(
        "a block that waits for the next one",
        "volatile float* flag = y + 64 * (blockIdx.x + 1); if (threadIdx.x == 0 && blockIdx.x + 1 < gridDim.x)"
        f" while (*flag != x[64 * (blockIdx.x + 1)]) {{}} __syncthreads(); {COPY}",
        COPY,
        "look for a loop that never ends, or that waits for another block",
        count=128,
        grid=2,
        options={"time_limit": 0.5},
    ),
    Wrong(
        "a vector at an address that is not its multiple",
        "if (threadIdx.x < 15) { float4 v = *reinterpret_cast<const float4*>(x + 1 + 4 * threadIdx.x);"
        " y[threadIdx.x] = v.x; } __syncthreads(); y[threadIdx.x] = x[threadIdx.x];",
        "if (threadIdx.x < 15) { float4 v = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x);"
        " y[threadIdx.x] = v.x; } __syncthreads(); y[threadIdx.x] = x[threadIdx.x];",
        "makes a misaligned access: 'const struct float4' at an address that is no multiple of 16",
    ),
    Wrong(
        "a pair of halves at an odd address",
        "if (threadIdx.x == 0) y[1] = __low2float(*reinterpret_cast<const __half2*>("
        "reinterpret_cast<const __half*>(x) + 1)); __syncthreads(); y[threadIdx.x] = x[threadIdx.x];",
        "if (threadIdx.x == 0) y[1] = __low2float(*reinterpret_cast<const __half2*>("
        "reinterpret_cast<const __half*>(x) + 2)); __syncthreads(); y[threadIdx.x] = x[threadIdx.x];",
        "makes a misaligned access: 'const struct __half2' at an address that is no multiple of 4",
    ),
    Wrong(
        "a block of too many threads",
        COPY,
        COPY,
        "a block has 1056 threads",
        block=(33, 32),
        right_block=64,
    ),
    Wrong(
        "a block that is too deep",
        COPY,
        COPY,
        "block z is 65, allowed are 1 to 64",
        block=(1, 1, 65),
        right_block=64,
    ),
    Wrong(
        "more shared memory than there is",
        COPY,
        COPY,
        "dynamic shared memory is 300000 bytes",
        shared=300000,
        right_shared=1000,
    ),
    Wrong(
        "a division of integers by zero",
        f"{I} if (i < n) y[i] = x[i] + (n / (i - 5) > 1000 ? 1 : 0);",
        f"{I} if (i < n) y[i] = x[i] + (n / (i + 5) > 1000 ? 1 : 0);",
        "thread (5, 0, 0) of block (0, 0, 0) divides an integer by zero",
    ),
]
BY_NAME = {one.name: one for one in ZOO}


def values(count: int) -> np.ndarray[Any, Any]:
    return np.arange(1, count + 1, dtype=np.float32)


@pytest.mark.parametrize("name", BY_NAME)
def test_the_fault_is_named(name: str) -> None:
    one = BY_NAME[name]
    layer = layer_of(one, one.wrong, one.block, one.shared)
    with pytest.raises(lp.LayerportError) as caught:
        run_kernel(layer, values(one.count), **one.options)
    assert one.said in str(caught.value)


def test_a_program_that_another_copy_of_layerport_left_in_the_cache_names_the_same_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", str(tmp_path / "cache"))
    other = shutil.copytree(compiler._HARNESS, tmp_path / "other" / "cuda_host")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(compiler, "_HARNESS", other)
        compiler._runtime.cache_clear()
        test_the_fault_is_named("a copy of bytes past the end")
    kept = {path.name for path in (tmp_path / "cache" / "host").iterdir()}
    compiler._runtime.cache_clear()
    test_the_fault_is_named("a copy of bytes past the end")
    assert {path.name for path in (tmp_path / "cache" / "host").iterdir()} == kept


@pytest.mark.parametrize("name", BY_NAME)
def test_its_right_twin_passes(name: str) -> None:
    import torch

    one = BY_NAME[name]
    shared = one.shared if one.right_shared is None else one.right_shared
    x = values(one.count)
    wanted = one.reference(torch.from_numpy(x)).numpy()
    layer = layer_of(one, one.right, one.right_block or one.block, shared)
    for order in ("forward", "backward", 1):
        np.testing.assert_allclose(run_kernel(layer, x, order=order), wanted, rtol=1e-6)


def test_an_absent_tensor_that_is_read() -> None:
    def with_bias(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return x.clone() if bias is None else x + bias

    layer = lp.layer("wrong_kernels::absent")(with_bias)
    code = """
__global__ void run(const float* x, const float* bias, float* y, int n) {
    if (threadIdx.x < n) y[threadIdx.x] = x[threadIdx.x] + (CONDITION bias[threadIdx.x]);
}
"""
    for number, condition in enumerate(("", "bias == nullptr ? 0 :")):

        @layer.kernel(lp.cuda(code.replace("CONDITION", condition), "run"), dtypes=("float32",), name=f"run_{number}")
        def launch(x: Any, bias: Any, y: Any) -> lp.Launch:
            return lp.Launch(grid=1, block=64, args=(x, bias, y, x.numel()))

    with pytest.raises(lp.PackError) as caught:
        run_kernel(layer, values(9), kernel="run_0")
    assert "inline.cu:3: thread (0, 0, 0) of block (0, 0, 0) reads through a null pointer" in str(caught.value)
    assert "here that is parameter 1 of the kernel" in str(caught.value)
    assert np.array_equal(run_kernel(layer, values(9), kernel="run_1"), values(9))
    assert np.array_equal(run_kernel(layer, values(9), values(9), kernel="run_0"), 2 * values(9))


def test_the_line_of_a_fault_is_told() -> None:
    one = BY_NAME["a read one element past the end"]
    layer = layer_of(one, "\n\n" + one.wrong, 64, 0)
    with pytest.raises(lp.PackError, match=r"kernel run: inline\.cu:6: thread \(5, 0, 0\)"):
        run_kernel(layer, values(6))


@pytest.mark.parametrize("name", ["a barrier for some threads only", "a shuffle whose mask names lanes that have left"])
def test_what_a_gpu_lets_pass_is_let_pass_on_request(name: str) -> None:
    one = BY_NAME[name]
    layer = layer_of(one, one.wrong, one.block, one.shared)
    assert run_kernel(layer, values(one.count), strict=False).shape == (one.count,)


def test_what_no_gpu_lets_pass_is_an_error_all_the_same() -> None:
    for name in ("a read one element past the end", "an input that is written"):
        one = BY_NAME[name]
        with pytest.raises(lp.PackError, match=re.escape(one.said)):
            run_kernel(layer_of(one, one.wrong, one.block, one.shared), values(one.count), strict=False)


RIGHT = {
    "all threads write one value to one place": (
        "__shared__ int seen; if (threadIdx.x == 0) seen = 0; __syncthreads(); if (x[threadIdx.x] > 3) seen = 1;"
        " __syncthreads(); y[threadIdx.x] = x[threadIdx.x] * seen;"
    ),
    "a sum by atomic additions, whose order is nobody's": (
        "__shared__ float sum; if (threadIdx.x == 0) sum = 0; __syncthreads(); atomicAdd(&sum, 0.1f * x[threadIdx.x]);"
        " __syncthreads(); y[threadIdx.x] = x[threadIdx.x] + 0.0f * sum;"
    ),
    "a thread that waits for another one of its block": (
        "__shared__ volatile int flag; if (threadIdx.x == 0) flag = 0; __syncthreads();"
        " if (threadIdx.x == 40) { __threadfence_block(); flag = 1; } if (threadIdx.x == 3) while (flag == 0) {}"
        " __syncthreads(); y[threadIdx.x] = x[threadIdx.x];"
    ),
    "a lock": (
        "__shared__ int lock; __shared__ int count; if (threadIdx.x == 0) lock = count = 0; __syncthreads();"
        " bool done = false; while (!done) { if (atomicCAS(&lock, 0, 1) == 0) { count += 1; __threadfence_block();"
        " atomicExch(&lock, 0); done = true; } } __syncthreads(); y[threadIdx.x] = x[threadIdx.x] * (count / 64);"
    ),
    "the compiler's own atomic operations": (
        "__shared__ int count; if (threadIdx.x == 0) __atomic_store_n(&count, 0, __ATOMIC_RELAXED); __syncthreads();"
        " __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED); __threadfence_block();"
        " while (__atomic_load_n(&count, __ATOMIC_ACQUIRE) < 64) {} int was = 64; __syncthreads();"
        " if (threadIdx.x == 9) __atomic_compare_exchange_n(&count, &was, 1, false, __ATOMIC_SEQ_CST,"
        " __ATOMIC_SEQ_CST);"
        " __syncthreads();"
        " y[threadIdx.x] = x[threadIdx.x] * count;"
    ),
    "a whole warp that leaves before the others shuffle": (
        "y[threadIdx.x] = x[threadIdx.x]; if (threadIdx.x < 32) return; float v = __shfl_xor_sync(~0u, 0.0f, 1);"
        " y[threadIdx.x] += v;"
    ),
    "a mask of some lanes, all of which come": (
        "float v = x[threadIdx.x]; if (threadIdx.x % 32 < 16) v += 0 * __shfl_down_sync(0xffffu, v, 8, 16);"
        " y[threadIdx.x] = v;"
    ),
    "constant tables and local arrays": (
        "const int table[8] = {1, 1, 1, 1, 1, 1, 1, 1}; float kept[4]; for (int k = 0; k < 4; ++k) kept[k] = "
        "x[threadIdx.x] * table[(threadIdx.x + k) % 8]; y[threadIdx.x] = kept[threadIdx.x % 4];"
    ),
    "garbage that is loaded and not used": (
        "__shared__ float part[64]; if (threadIdx.x < 2) part[threadIdx.x] = 1; __syncthreads();"
        " float v = part[threadIdx.x]; y[threadIdx.x] = threadIdx.x < 2 ? v * x[threadIdx.x] : x[threadIdx.x];"
    ),
    "shared memory as another type": (
        "extern __shared__ __align__(16) unsigned char room[]; float* part = reinterpret_cast<float*>(room);"
        " part[threadIdx.x] = x[threadIdx.x]; __syncthreads(); if (threadIdx.x < 16) reinterpret_cast<float4*>(y)"
        "[threadIdx.x] = reinterpret_cast<float4*>(room)[threadIdx.x];"
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_unusual_and_right_passes(name: str) -> None:
    layer = layer_of(Wrong(name, "", "", ""), RIGHT[name], 64, 256)
    for order in ("forward", "backward", 5):
        assert np.array_equal(run_kernel(layer, values(64), order=order, time_limit=20), values(64)), order
