"""Headers of CUDA that a source forgot: both compilers' errors say which line to add."""

from __future__ import annotations

import shutil

import pytest

import layerport as lp
from layerport.dtypes import DType
from layerport.errors import BuildError
from layerport.harness.compiler import compile_for_host
from layerport.kernels.toolchains.cuda_job import CudaJob
from layerport.kernels.toolchains.nvrtc import compile_jobs

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


KERNEL = "template <typename T> __global__ void k(const T* x, T* y) {{ {body} }}\n"


@pytest.mark.parametrize(
    ("text", "dtype", "headers"),
    [
        (KERNEL.format(body="y[0] = x[0];"), "bfloat16", ["cuda_bf16.h"]),
        (KERNEL.format(body="y[0] = x[0];"), "float16", ["cuda_fp16.h"]),
        ("#include <cuda_fp16.h>\n" + KERNEL.format(body="y[0] = x[0];"), "bfloat16", ["cuda_bf16.h"]),
        (KERNEL.format(body="half h = 1; __nv_bfloat162 v;"), "float32", ["cuda_bf16.h", "cuda_fp16.h"]),
        (KERNEL.format(body="y[0] = __half2float(__float2half(x[0]));"), "float32", ["cuda_fp16.h"]),
        (KERNEL.format(body="__nv_fp8x4_e4m3 v;"), "float32", ["cuda_fp8.h"]),
    ],
)
@pytest.mark.parametrize("where", ["gpu", "cpu"])
def test_a_missing_header_of_cuda_is_named(text: str, dtype: str, headers: list[str], where: str) -> None:
    entry = f"k<{DType.of(dtype).cxx}>"
    with pytest.raises(BuildError) as caught:
        if where == "gpu":
            compile_jobs([CudaJob(text, "inline.cu", ".", entry, "sm_89", "kernel k")])
        else:
            compile_for_host(lp.cuda("\n" + text, entry), entry, label="kernel k")
    lines = " and ".join(f"#include <{header}>" for header in headers)
    assert caught.value.repair == f"add {lines} to the source"
