"""Kernels on the CPU: what runs must be right, what is wrong must be caught, what cannot run must say so."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

import layerport as lp
from layerport.errors import PackError
from layerport.harness import compiler
from layerport.sizes.tensors import TensorType
from layerport.testing import run_kernel

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")

_numbers = itertools.count()
ORDERS = ("forward", "backward", 1, 2)
THREADS = 64


def layer_of(
    code: str,
    reference: Callable[..., Any] | None = None,
    *,
    grid: Callable[[TensorType], Any] = lambda x: lp.cdiv(x.numel(), THREADS),
    block: Any = THREADS,
    shared: int = 0,
    dtypes: tuple[str, ...] = ("float32",),
    entry: str = "run",
    options: tuple[str, ...] = (),
) -> lp.Layer:
    """A layer of one input and one output, whose kernel is `run(const T* x, T* y, int n)`."""
    made = reference or (lambda x: x.clone())

    def wrapped(x: Tensor) -> Tensor:
        result = made(x)
        assert isinstance(result, Tensor)
        return result

    layer = lp.layer(f"host_tests::layer_{next(_numbers)}")(wrapped)

    @layer.kernel(lp.cuda("\n" + code, entry, options=options), dtypes=dtypes, name="run")
    def launch(x: TensorType, y: TensorType) -> lp.Launch:
        return lp.Launch(grid=grid(x), block=block, args=(x, y, x.numel()), shared=shared)

    return layer


def kernel(body: str, before: str = "") -> str:
    return f'{before}\nextern "C" __global__ void run(const float* x, float* y, int n) {{\n{body}\n}}\n'


def values(count: int = 200) -> np.ndarray[Any, Any]:
    return np.arange(1, count + 1, dtype=np.float32)


def fault_of(layer: lp.Layer, x: Any, **options: Any) -> str:
    with pytest.raises(lp.LayerportError) as caught:
        run_kernel(layer, x, **options)
    return str(caught.value)


# --- what runs is right ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_block_sum_through_static_shared_memory(order: str | int) -> None:
    body = """
        __shared__ float part[64];
        int i = blockIdx.x * 64 + threadIdx.x;
        part[threadIdx.x] = i < n ? x[i] : 0.0f;
        __syncthreads();
        for (int step = 32; step > 0; step /= 2) {
            if (threadIdx.x < step) part[threadIdx.x] += part[threadIdx.x + step];
            __syncthreads();
        }
        if (i < n) y[i] = part[0];
    """
    x = values()
    padded = np.pad(x, (0, 56)).reshape(4, 64).sum(1).repeat(64)[:200]
    assert np.array_equal(run_kernel(layer_of(kernel(body)), x, order=order), padded)


@pytest.mark.parametrize("order", ORDERS)
def test_dynamic_shared_memory(order: str | int) -> None:
    body = """
        extern __shared__ __align__(16) float reversed[];
        reversed[63 - threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
        __syncthreads();
        y[blockIdx.x * 64 + threadIdx.x] = reversed[threadIdx.x];
    """
    x = values(128)
    expected = x.reshape(2, 64)[:, ::-1].reshape(-1)
    assert np.array_equal(run_kernel(layer_of(kernel(body), shared=256), x, order=order), expected)


@pytest.mark.parametrize("order", ORDERS)
def test_three_dimensions(order: str | int) -> None:
    body = """
        unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        unsigned i = block * blockDim.x * blockDim.y * blockDim.z + thread;
        y[i] = x[i] + 1000 * blockIdx.z + 100 * threadIdx.z;
    """
    x = values(2 * 3 * 4 * 5 * 2 * 3)
    layer = layer_of(kernel(body), grid=lambda x: (2, 3, 4), block=(5, 2, 3))
    index = np.arange(x.size)
    expected = x + 1000 * (index // 180) + 100 * (index % 30 // 10)
    assert np.array_equal(run_kernel(layer, x, order=order), expected.astype(np.float32))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("__shfl_sync(~0u, value, 5)", lambda v, i: v[5]),
        ("__shfl_sync(~0u, value, 1, 8)", lambda v, i: v[i // 8 * 8 + 1]),
        ("__shfl_up_sync(~0u, value, 3)", lambda v, i: v[max(i - 3, i if i < 3 else 0)]),
        ("__shfl_down_sync(~0u, value, 3, 16)", lambda v, i: v[i + 3 if i % 16 + 3 < 16 else i]),
        ("__shfl_xor_sync(~0u, value, 9)", lambda v, i: v[i ^ 9]),
        ("__popc(__ballot_sync(~0u, value > 20))", lambda v, i: 12),
        ("__any_sync(~0u, value > 31)", lambda v, i: 1),
        ("__all_sync(~0u, value > 31)", lambda v, i: 0),
        ("__popc(__match_any_sync(~0u, int(value) / 5))", lambda v, i: sum(int(a) // 5 == int(v[i]) // 5 for a in v)),
        ("__reduce_add_sync(~0u, int(value))", lambda v, i: 528),
        ("__reduce_min_sync(~0u, -int(value))", lambda v, i: -32),
        ("__reduce_max_sync(~0u, unsigned(value))", lambda v, i: 32),
        ("__shfl_xor_sync(~0u, double(value), 1)", lambda v, i: v[i ^ 1]),
        ("(float)__shfl_xor_sync(~0u, __float2half(value), 2)", lambda v, i: v[i ^ 2]),
        ("__syncthreads_count(value > 30)", lambda v, i: 2),
        ("__syncthreads_and(value > 0)", lambda v, i: 1),
        ("__syncthreads_or(value > 32)", lambda v, i: 0),
    ],
)
def test_warp_and_block_operations(expression: str, expected: Callable[..., Any]) -> None:
    body = f"float value = x[threadIdx.x];\n y[threadIdx.x] = {expression};"
    x = values(32)
    wanted = np.array([expected(x, i) for i in range(32)], np.float32)
    layer = layer_of(kernel(body, "#include <cuda_fp16.h>"), block=32)
    for order in ("forward", 3):
        assert np.array_equal(run_kernel(layer, x, order=order), wanted)


def test_threads_that_return_early_do_not_hold_up_the_others_where_that_is_let_pass() -> None:
    body = """
        if (threadIdx.x >= n) return;
        unsigned mask = __activemask();
        float value = __shfl_xor_sync(mask, x[threadIdx.x], 1);
        __syncthreads();
        y[threadIdx.x] = value;
    """
    x = values(40)
    layer = layer_of(kernel(body))
    assert np.array_equal(run_kernel(layer, x, strict=False), x.reshape(20, 2)[:, ::-1].reshape(-1))
    assert "has returned" in fault_of(layer, x)


@pytest.mark.parametrize("order", ORDERS)
def test_atomics(order: str | int) -> None:
    body = """
        __shared__ int count;
        if (threadIdx.x == 0) count = 0;
        __syncthreads();
        if (threadIdx.x < n && x[threadIdx.x] > 10) atomicAdd(&count, 1);
        __syncthreads();
        if (threadIdx.x < n) y[threadIdx.x] = count;
    """
    assert np.array_equal(run_kernel(layer_of(kernel(body)), values(50), order=order), np.full(50, 40, np.float32))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_types_and_arithmetic_of_two_lanes(dtype: Any) -> None:
    code = """
        #include <cuda_bf16.h>
        #include <cuda_fp16.h>
        template <typename T> __global__ void run(const T* x, T* y, int n) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < n) y[i] = x[i] * x[i] + T(1.0f);
        }
    """
    x = values(12).astype(dtype)
    layer = layer_of(code, entry="run<{x}>", dtypes=("float32", "float16", "bfloat16"))
    assert np.array_equal(run_kernel(layer, x), (x.astype(np.float32) ** 2 + 1).astype(dtype))


def test_what_a_kernel_prints_comes_out(capfd: pytest.CaptureFixture[str]) -> None:
    layer = layer_of(
        kernel('if (threadIdx.x == 0) printf("x is %g\\n", x[0]); if (threadIdx.x < n) y[threadIdx.x] = 0;')
    )
    run_kernel(layer, torch.full((3,), 2.5))
    assert set(capfd.readouterr().err.splitlines()) == {"x is 2.5"}


def test_definitions_reach_the_source() -> None:
    layer = layer_of(kernel("y[threadIdx.x] = FACTOR * x[threadIdx.x];"), block=4, options=("-DFACTOR=3",))
    assert np.array_equal(run_kernel(layer, values(4)), 3 * values(4))


def test_a_kernel_gives_a_plain_variant_for_the_host() -> None:
    body = """
        float value = x[threadIdx.x];
        #ifdef LAYERPORT_HOST
        y[threadIdx.x] = value;
        #else
        asm volatile("mov.f32 %0, %1;" : "=f"(y[threadIdx.x]) : "f"(value));
        #endif
    """
    assert np.array_equal(run_kernel(layer_of(kernel(body), block=4), values(4)), values(4))


def test_a_grid_of_nothing_launches_nothing() -> None:
    layer = layer_of(kernel("y[0] = 1;"))
    assert run_kernel(layer, np.empty((0, 3), np.float32)).shape == (0, 3)


# --- what is wrong is caught -----------------------------------------------------------------------------------------


def test_a_missing_barrier_shows_in_some_order() -> None:
    body = """
        __shared__ float part[64];
        part[threadIdx.x] = x[threadIdx.x];
        y[threadIdx.x] = part[63 - threadIdx.x];
    """
    layer = layer_of(kernel(body))
    x = values(64)
    wrong = [order for order in ORDERS if not np.array_equal(run_kernel(layer, x, order=order, strict=False), x[::-1])]
    assert set(wrong) == set(ORDERS)
    assert "depend on memory that nothing has written" in fault_of(layer, x)


def test_a_missing_warp_barrier_shows() -> None:
    body = """
        __shared__ float part[32];
        part[threadIdx.x] = x[threadIdx.x];
        float value = part[threadIdx.x ^ 1];
        y[threadIdx.x] = value;
    """
    x = values(32)
    layer = layer_of(kernel(body), block=32)
    assert not np.array_equal(run_kernel(layer, x, strict=False), x.reshape(16, 2)[:, ::-1].reshape(-1))
    assert "depend on memory that nothing has written" in fault_of(layer, x)


def test_a_second_block_does_not_find_what_the_first_left_in_shared_memory() -> None:
    body = """
        __shared__ float once;
        if (blockIdx.x == 0 && threadIdx.x == 0) once = 5;
        __syncthreads();
        y[blockIdx.x * 64 + threadIdx.x] = once;
    """
    layer = layer_of(kernel(body))
    fault = fault_of(layer, values(128))
    assert "depend on memory that nothing has written" in fault and "64 of 128 elements, the first at [64]" in fault


@pytest.mark.parametrize("sanitize", [False, True])
def test_a_write_past_the_end_is_caught(sanitize: bool) -> None:
    layer = layer_of(kernel("y[blockIdx.x * 64 + threadIdx.x] = x[0];"))
    fault = fault_of(layer, values(200), sanitize=sanitize)
    assert "thread (8, 0, 0) of block (3, 0, 0) writes output 0 bytes past its end" in fault


def test_a_read_one_element_past_the_end_is_caught_by_the_sanitiser() -> None:
    body = "int i = threadIdx.x; if (i < n) y[i] = x[i + 1];"
    fault = fault_of(layer_of(kernel(body)), values(6), sanitize=True)
    assert "thread (5, 0, 0) of block (0, 0, 0) reads x 0 bytes past its end" in fault
    assert "heap-buffer-overflow" in fault


def test_a_write_into_the_last_bytes_of_an_allocation_is_caught() -> None:
    body = "int i = threadIdx.x; if (i <= n) y[i] = x[i < n ? i : 0];"
    assert "writes output 0 bytes past its end" in fault_of(layer_of(kernel(body)), values(6))


def test_a_read_before_the_start_is_caught() -> None:
    fault = fault_of(layer_of(kernel("y[threadIdx.x] = x[(int)threadIdx.x - 2000];")), values(64))
    assert "reads x 8000 bytes before its start" in fault


def test_dynamic_shared_memory_beyond_what_the_launch_asked_for_is_caught() -> None:
    body = "extern __shared__ float part[];\n part[threadIdx.x + 1] = x[threadIdx.x]; y[threadIdx.x] = 0;"
    fault = fault_of(layer_of(kernel(body), shared=256), values(64), sanitize=True)
    assert "thread (63, 0, 0) of block (0, 0, 0) writes the dynamic shared memory 0 bytes past its end" in fault


def test_an_output_that_stays_unwritten_is_caught() -> None:
    body = "int i = blockIdx.x * 64 + threadIdx.x; if (i < n - 2) y[i] = x[i];"
    fault = fault_of(layer_of(kernel(body)), values(200))
    assert "leaves elements of its outputs unwritten" in fault
    assert "output: 2 of 200 elements, the first at [198]" in fault


def test_an_output_that_looks_like_the_poison_is_not_unwritten() -> None:
    layer = layer_of(kernel("if (threadIdx.x < n) y[threadIdx.x] = __uint_as_float(0xffffffffu);"))
    assert np.isnan(run_kernel(layer, values(8))).all()


def test_a_wrong_tail_shows() -> None:
    body = """
        int i = 4 * (blockIdx.x * 64 + threadIdx.x);
        if (i + 4 <= n) *reinterpret_cast<float4*>(y + i) = *reinterpret_cast<const float4*>(x + i);
    """
    layer = layer_of(kernel(body), grid=lambda x: lp.cdiv(x.numel(), 256))
    assert np.array_equal(run_kernel(layer, values(200)), values(200))
    assert "output: 3 of 203 elements, the first at [200]" in fault_of(layer, values(203))


def test_a_misaligned_vector_load_is_caught() -> None:
    body = "if (threadIdx.x == 0) *reinterpret_cast<float4*>(y) = *reinterpret_cast<const float4*>(x);"
    layer = layer_of(kernel(body))
    assert np.array_equal(run_kernel(layer, values(4)), values(4))
    assert "thread (0, 0, 0) of block (0, 0, 0) makes a misaligned access" in fault_of(layer, values(4), offset=4)


def test_an_input_that_is_written_is_caught() -> None:
    body = "if (threadIdx.x < n) y[threadIdx.x] = const_cast<float*>(x)[threadIdx.x] += 1;"
    assert "writes its input x" in fault_of(layer_of(kernel(body)), values(8))


def test_a_barrier_that_not_all_threads_reach_is_caught() -> None:
    body = """
        if (threadIdx.x < 32) __syncthreads();
        else __syncwarp(0xff), __shfl_sync(0xffffffffu, 1, 0);
        y[threadIdx.x] = x[threadIdx.x];
    """
    fault = fault_of(layer_of(kernel(body)), values(64))
    assert "the mask leaves out the calling lane" in fault


def test_a_barrier_on_different_paths_is_caught() -> None:
    body = """
        if (threadIdx.x % 2) {
            __syncthreads();
        } else {
            __syncthreads();
        }
        y[threadIdx.x] = x[threadIdx.x];
    """
    fault = fault_of(layer_of(kernel(body)), values(64))
    assert re.search(r"a barrier is reached on different paths: .* waits at line 8, .* at line 6", fault)


def test_a_deadlock_says_who_waits_where() -> None:
    body = """
        if (threadIdx.x < 16) __syncwarp();
        else __syncthreads();
        y[threadIdx.x] = x[threadIdx.x];
    """
    fault = fault_of(layer_of(kernel(body)), values(64))
    assert "the block waits forever" in fault
    assert "thread (0, 0, 0) of block (0, 0, 0) waits at line 5 for the lanes 0xffffffff" in fault


def test_an_exhausted_stack_and_a_trap_are_caught() -> None:
    deep = kernel(
        "float big[100000]; for (int i = 0; i < n; ++i) big[99999 - i * 997] = x[i]; y[threadIdx.x] = big[n];"
    )
    assert "needs too much stack" in fault_of(layer_of(deep), values(64))
    assert "line 4: __trap()" in fault_of(layer_of(kernel("if (x[0] > 0) __trap(); y[0] = 0;")), values(64))


def test_an_integer_division_by_zero_is_caught() -> None:
    fault = fault_of(layer_of(kernel("y[threadIdx.x] = n / (int(x[0]) - 1);")), values(64))
    assert "thread (0, 0, 0) of block (0, 0, 0) divides an integer by zero" in fault


def test_a_launch_rule_that_does_not_fit_the_kernel_is_caught() -> None:
    few = 'extern "C" __global__ void run(const float* x, float* y) { y[0] = x[0]; }'
    assert "the kernel has 2 parameters, the launch rule gives 3" in fault_of(layer_of(few), values(1))
    other = 'extern "C" __global__ void run(const float* x, float* y, const float* n) { y[0] = x[0]; }'
    fault = fault_of(layer_of(other), values(1))
    assert "parameter 2 of the kernel is a pointer, the launch rule gives a number" in fault
    short = 'extern "C" __global__ void run(const float* x, float* y, signed char n) { y[0] = x[0]; }'
    assert "parameter 2 of the kernel cannot hold 200" in fault_of(layer_of(short), values(200))


def test_an_empty_grid_for_outputs_that_are_not_empty_is_caught() -> None:
    layer = layer_of(kernel("y[0] = 0;"), lambda x: x.new_zeros(3))
    assert "its launch rule gives an empty grid" in fault_of(layer, np.empty(0, np.float32))


# --- what cannot run says so -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "body", "what"),
    [
        ("", 'asm volatile("membar.gl;");', "has inline PTX"),
        ("#include <mma.h>", "", "uses tensor cores (mma.h)"),
        ("#include <cuda_pipeline.h>", "", "uses asynchronous copies (cuda_pipeline.h)"),
        ("#include <cooperative_groups.h>", "", "uses cooperative groups"),
        ("#include <cuda/barrier>", "", "uses asynchronous operations (cuda/barrier)"),
    ],
)
def test_unsupported_features_are_named(before: str, body: str, what: str) -> None:
    fault = fault_of(layer_of(kernel(f"{body} y[threadIdx.x] = x[threadIdx.x];", before)), values(4))
    assert f"{what}, which cannot run on the CPU" in fault
    assert "under #ifdef LAYERPORT_HOST" in fault


def test_a_source_that_does_not_compile_shows_the_line() -> None:
    fault = fault_of(layer_of(kernel("y[threadIdx.x] = nonsense;")), values(4))
    assert "does not compile for the CPU" in fault
    assert re.search(r"inline\.cu:4:\d+: error: 'nonsense' was not declared", fault)


def test_wrong_use_is_refused() -> None:
    layer = layer_of(kernel("y[threadIdx.x] = x[threadIdx.x];"), block=4)
    assert "x is missing" in fault_of_call(lambda: run_kernel(layer))
    assert "2 arguments are given" in fault_of_call(lambda: run_kernel(layer, values(4), 3))
    assert "order 'sideways' is unknown" in fault_of(layer, values(4), order="sideways")
    assert "run takes float32, here are float64" in fault_of(layer, values(4).astype(np.float64))
    assert "has no kernel missing" in fault_of(layer, values(4), kernel="missing")


def fault_of_call(call: Callable[[], Any]) -> str:
    with pytest.raises(lp.UsageError) as caught:
        call()
    return str(caught.value)


def test_without_a_compiler_the_repair_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler._compiler.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(lp.UsageError, match="no C\\+\\+ compiler is here") as caught:
        compiler._compiler()
    assert "CXX" in str(caught.value)


def test_torch_tensors_are_taken_too() -> None:
    layer = layer_of(kernel("y[threadIdx.x] = x[threadIdx.x];"), block=4)
    assert np.array_equal(run_kernel(layer, torch.arange(4.0)), np.arange(4, dtype=np.float32))


POSITIVES = """
__global__ void positives(const float* x, long long* y, long long* count, int n) {
    if (threadIdx.x != 0) return;
    long long found = 0;
    for (int i = 0; i < n; i++) if (x[i] > 0) y[found++] = i;
    SIZE;
}
"""


def positives(name: str, size: str) -> lp.Layer:
    @lp.layer(f"lp_host::{name}")
    def layer(x: Tensor) -> Tensor:
        return (x > 0).nonzero().flatten()

    @layer.kernel(lp.cuda(POSITIVES.replace("SIZE", size), "positives"), dtypes=({"x": "float32", "*": "int64"},))
    def launch(x: Any, y: Any, count: Any) -> lp.Launch:
        return lp.Launch(grid=1, block=32, args=(x, y, count, x.shape[0]))

    return layer


@pytest.mark.parametrize("values", [[1.0, -1, 0, 2, 3], [-1.0], [1.0, 2]])
def test_outputs_of_a_size_that_depends_on_data(values: list[float]) -> None:
    x = np.array(values, np.float32)
    np.testing.assert_array_equal(run_kernel(positives("positives", "*count = found"), x), np.flatnonzero(x > 0))


@pytest.mark.parametrize(
    ("size", "fault"),
    [("*count = n + 1", "u0 is 4, allowed are 0 to 3"), ("*count = -2", "u0 is -2"), ("", "u0 is -1")],
)
def test_a_size_that_cannot_be_is_an_error(size: str, fault: str) -> None:
    with pytest.raises(PackError, match="writes no possible size") as caught:
        run_kernel(positives("wrong_sizes", size), np.array([1, -1, 2], np.float32))
    assert caught.value.faults[0].startswith(fault)


def test_a_size_larger_than_what_is_written() -> None:
    with pytest.raises(PackError, match="unwritten"):
        run_kernel(positives("too_large", "*count = n"), np.array([1, -1, 2], np.float32))


def test_shared_memory_of_the_namespace_is_poisoned_for_each_block() -> None:
    source = """
__shared__ float kept;
__global__ void remember(const float* x, float* y) {
    if (blockIdx.x == 0) kept = x[0];
    y[blockIdx.x] = kept;
}
"""

    @lp.layer("lp_host::remembers")
    def remembers(x: Tensor) -> Tensor:
        return x[:1].expand(x.shape).clone()

    @remembers.kernel(lp.cuda(source, "remember"), dtypes=("float32",))
    def launch(x: Any, y: Any) -> lp.Launch:
        return lp.Launch(grid=x.shape[0], block=1, args=(x, y))

    for order in ("forward", "backward", 3):
        with pytest.raises(PackError, match="depend on memory that nothing has written") as caught:
            run_kernel(remembers, np.ones(3, np.float32), order=order)
        assert caught.value.faults[0].startswith("output: 2 of 3 elements, the first at [1]")


def test_the_options_that_a_host_compiler_takes() -> None:
    options = ("--std=c++20", "-DA=1", "-UB", "--define-macro=C=2", "--undefine-macro=D", "-O3", "--use_fast_math")
    assert compiler._language_options(options) == ("-std=gnu++20", "-DA=1", "-UB", "-DC=2", "-UD")
    assert compiler._language_options(()) == ("-std=gnu++17",)
