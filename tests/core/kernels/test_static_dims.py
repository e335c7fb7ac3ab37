"""Sizes in a kernel's entry, `name<{x}, {x.1}>`: it is compiled for each of them, where they are static."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import layerport as lp
from layerport.dtypes import DType
from layerport.errors import PackError
from layerport.kernels.choice import Candidate, candidates, select
from layerport.layers.cuda_operator import CudaOperator
from layerport.sizes.expressions import Symbol
from layerport.sizes.tensors import TensorType
from layerport.targets import Target
from layerport.testing import run_kernel
from layerport.testing.specs import plugin_spec

CODE = """
template <typename T, int N>
__global__ void row_sums(T const* x, T* y, long long rows) {
    long long row = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (row >= rows) return;
    T kept[N];
    for (int i = 0; i < N; ++i) kept[i] = x[row * N + i];
    float sum = 0;
    for (int i = 0; i < N; ++i) sum += (float)kept[i];
    y[row] = (T)sum;
}
"""


@lp.layer("static_dims_test::row_sums", version=1, find=False)
def row_sums(x: Tensor) -> Tensor:
    """Sums over the last axis.  x: (rows, n)."""
    if x.ndim != 2:
        raise ValueError("row_sums: give a matrix")
    return x.sum(-1)


@row_sums.kernel(
    lp.cuda(CODE, "row_sums<{x}, {x.1}>"),
    dtypes=("float32",),
    name="fixed",
    when=lambda x: x.shape[-1] <= 8,
)
def launch(x: Any, y: Any) -> lp.Launch:
    return lp.Launch(grid=lp.cdiv(x.shape[0], 64), block=64, args=(x, y, x.shape[0]))


class _Pack:
    @staticmethod
    @lp.hookimpl
    def layerport_layers() -> tuple[Any, ...]:
        return (row_sums,)


@pytest.mark.parametrize("width", [1, 3, 8])
def test_a_kernel_is_compiled_for_each_size(width: int) -> None:
    x = np.random.default_rng(0).standard_normal((70, width)).astype(np.float32)
    np.testing.assert_allclose(run_kernel(row_sums, x), x.sum(-1), rtol=1e-5, atol=1e-6)


def test_the_spec_holds_the_kernel_of_its_size() -> None:
    specs = [plugin_spec(row_sums, Target("rtx", ("sm_89",)), torch.empty(4, width)) for width in (3, 5)]
    symbols = [one.kernels[0].steps[0].symbol for one in specs if one is not None]
    assert "Li3" in symbols[0] and "Li5" in symbols[1]
    assert plugin_spec(row_sums, Target("rtx", ("sm_89",)), torch.empty(4, 9)) is None


def test_where_the_size_is_not_static_the_kernel_is_none_with_a_reason() -> None:
    tensors = {
        "x": TensorType("x", DType.FLOAT32, (Symbol("x.0"), Symbol("x.1"))),
        "output": TensorType("output", DType.FLOAT32, (Symbol("x.0"),)),
    }
    assert list(candidates(row_sums, tensors, {})) == [
        "fixed: it is compiled for one value of x.1, which is not static here"
    ]
    tensors["x"] = TensorType("x", DType.FLOAT32, (Symbol("x.0"), 4))
    (found,) = candidates(row_sums, tensors, {})
    assert isinstance(found, Candidate)
    assert found.guard is None


def test_a_build_says_why_the_layer_is_decomposed(tmp_path: Path) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return row_sums(x) * 2

    report = lp.build(
        Model(),
        tmp_path / "open.lp",
        args=(torch.randn(4, 6),),
        dynamic_shapes=({0: "rows", 1: "n"},),
        target="rtx:sm_89",
        ranges={"rows": (1, 4, 16), "n": (1, 6, 16)},
        packs=[_Pack()],
    )
    (one,) = report.layers
    assert one.realised == "decomposed"
    assert "compiled for one value of x.1" in str(one.reason)


def test_the_operator_makes_one_launcher_for_each_size() -> None:
    operator = CudaOperator(row_sums, lambda *args: None)
    made = [operator.compile("sm_89", torch.empty(rows, n, device="meta")) for rows, n in ((4, 3), (9, 3), (4, 5))]
    symbols = [one.steps[0].cubin.symbol for one in made if one is not None]
    assert symbols[0] == symbols[1] != symbols[2]
    assert [str(size) for one in made if one is not None for size in one.steps[0].rule.grid[:1]] == [
        "ceildiv(x.0, 64)"
    ] * 3


def test_an_axis_that_is_not_there() -> None:
    @lp.layer("static_dims_test::twice", version=1, find=False)
    def twice(x: Tensor) -> Tensor:
        """2 x."""
        return x * 2

    twice.kernel(lp.cuda(CODE, "row_sums<{x}, {x.4}>"), dtypes=("float32",), name="wrong")(launch)
    tensors = {name: TensorType(name, DType.FLOAT32, (4, 3)) for name in ("x", "output")}
    with pytest.raises(PackError, match=r"its entry has \{x.4\}, but x has 2 dims here"):
        select(twice, tensors, {})
