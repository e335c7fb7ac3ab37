"""Kernels of several launches, and the scratch memory that these share."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import layerport as lp
from host_cuda import HostCuda, cuda_fixture  # noqa: F401
from layerport.bundle.plugin_spec import PluginSet, from_bytes, spec_from_json, to_bytes
from layerport.dtypes import DType
from layerport.engine.plan_fields import read_field, write_field
from layerport.errors import BuildError, PackError, UsageError
from layerport.kernels.declaration import Kernel
from layerport.kernels.tracing import trace
from layerport.kernels.workspace import lay_out
from layerport.layers.cuda_operator import CudaOperator
from layerport.sizes.expressions import Const, Symbol
from layerport.sizes.proofs import rises
from layerport.sizes.tensors import TensorType
from layerport.targets import Target
from layerport.testing import run_kernel
from layerport.testing.specs import plugin_spec
from stepped_layer import CODE, Pack, centred
from triton_setup import FUNCTIONS

TARGET = Target("rtx", ("sm_89", "sm_120"))


@functools.cache
def stepped() -> Any:
    found = plugin_spec(centred, TARGET, torch.empty(3, 96))
    assert found is not None
    return found


@pytest.mark.parametrize("order", ["forward", "backward", 3])
def test_each_launch_sees_what_the_ones_before_it_wrote(order: str | int) -> None:
    for rows in (1, 9, 0):
        x = np.random.default_rng(rows).standard_normal((rows, 96)).astype(np.float32)
        got = run_kernel(centred, x, order=order, once=True, offset=4)
        np.testing.assert_allclose(got, x - x.mean() if rows else x, atol=1e-5)


def test_a_launch_sees_where_scratch_memory_ends() -> None:
    centre = declared("beyond", CODE.replace("partial[blockIdx.x] = kept[0]", "partial[blockIdx.x + 1] = kept[0]"))
    with pytest.raises(PackError, match=r"writes scratch.0 0 bytes past its end, it has 8 bytes"):
        run_kernel(centre, np.ones((4, 96), np.float32))


def test_what_nothing_wrote_is_garbage() -> None:
    centre = declared("forgets", CODE.replace("if (i == 0) *count = gridDim.x;", ""))
    with pytest.raises(PackError):
        run_kernel(centre, np.ones((4, 96), np.float32))


def declared(name: str, code: str, rule: Any = None, sources: int = 2) -> lp.Layer:
    @lp.layer(f"stepped_faults::{name}", version=1, find=False)
    def centre(x: Tensor) -> Tensor:
        """x less the mean of all its elements."""
        return x - x.mean()

    pieces = [lp.cuda(code, "sums<{x}>"), lp.cuda(code, "subtract<{x}>")]
    centre.kernel(*pieces[:sources], dtypes=("float32",), name=name)(rule or centred.kernels[0].launch)
    return centre


def traced(rule: Any, sources: int = 2) -> Any:
    layer = declared("traced", CODE, rule, sources)
    tensors = {name: TensorType.symbolic(name, DType.FLOAT32, 2) for name in ("x", "output")}
    return trace(layer.kernels[0], layer.signature, tensors, {}, layer="p::l")


def test_scratch_tensors_are_numbered_as_they_are_taken() -> None:
    def rule(x: Any, y: Any) -> Any:
        first, second = lp.scratch((x.shape[0], 3), "int64"), lp.scratch(7, "float16")
        return lp.Launch(1, 1, (second, x)), lp.Launch(1, 1, (first, second, y))

    made = traced(rule).launches
    assert [one.pointers for one in made.rules] == [("scratch.0", "x"), ("scratch.1", "scratch.0", "output")]
    assert [(one.dtype.value, str(one.nbytes)) for one in made.scratch] == [("float16", "14"), ("int64", "24*x.0")]
    assert lay_out(made.scratch, {"x.0": 100}) == ({"scratch.0": 0, "scratch.1": 256}, 256 + 2560)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda x, y: lp.Launch(1, 1, (x, y)), "it returned 1 launches for 2 sources"),
        (lambda x, y: [lp.Launch(1, 1, (x, y))] * 2, "it returned list"),
        (lambda x, y: (lp.Launch(1, 1, (x, y)),) * 3, "it returned 3 launches for 2 sources"),
        (lambda x, y: (lp.Launch(1, 1, (x, y)), None), "it returned tuple"),
        (lambda x, y: lp.scratch(x.shape[0] - 3 * x.shape[1], "int8"), "falls where a size grows"),
        (lambda x, y: lp.scratch(-1, "int8"), "axis 0 is int -1"),
        (lambda x, y: lp.scratch((True, 1.5), "int7"), "lp.scratch cannot be made of these values"),
        (
            lambda x, y: (lp.Launch(1, 1, tuple(lp.scratch(1, "int8") for _ in range(33))), lp.Launch(1, 1, (y,))),
            "it has more than 32 scratch tensors",
        ),
    ],
)
def test_a_rule_that_is_at_fault(rule: Any, said: str) -> None:
    with pytest.raises(PackError) as caught:
        traced(rule)
    assert said in str(caught.value)


def test_a_kernel_has_sources() -> None:
    with pytest.raises(UsageError, match="kernel k: it has 0 sources"):
        Kernel("k", (), ("float32",), lambda x, y: None)


def test_the_same_source_may_stand_twice() -> None:
    layer = declared("twice", CODE, None, 1)
    layer.kernel(*[lp.cuda(CODE, "subtract<{x}>")] * 2, dtypes=("float32",), name="both")(
        lambda x, y: (lp.Launch(1, 1, (x, None, None, y, 1)),) * 2
    )
    assert len(layer.kernels[1].sources) == 2


N = Symbol("n")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (Const(5), True),
        (N * 4 + 3, True),
        (N - 5, True),
        (lp.cdiv(N * Symbol("m"), 256), True),
        (lp.maximum(N, 8) * 2, True),
        (5 - N, False),
        ((N - 5) * (N - 7), False),
        (N % 4, False),
        (100 // (N + 1), False),
        (lp.where(N > 4, 1, 2), False),
    ],
)
def test_what_never_falls(expression: Any, expected: bool) -> None:
    assert rises(expression) is expected


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_what_is_said_to_rise_does(first: int, second: int) -> None:
    small, large = sorted((first, second))
    for one in stepped().kernels[0].scratch:
        assert rises(one.nbytes)
        assert one.nbytes.evaluate({"x.0": small}) <= one.nbytes.evaluate({"x.0": large})


def test_launches_in_triton_and_cuda_follow_each_other() -> None:
    """In Triton, with a constexpr that the rule takes, through a scratch tensor of another dtype, then in CUDA C++."""
    pytest.importorskip("triton")

    @lp.layer("stepped::narrowed", version=1, find=False)
    def narrowed(x: Tensor) -> Tensor:
        """x, rounded to float16."""
        return x.half().float()

    code = """
#include <cuda_fp16.h>
__global__ void widen(__half const* from, float* y, long long n) {
    long long i = blockIdx.x * 64ll + threadIdx.x;
    if (i < n) y[i] = __half2float(from[i]);
}
"""

    @narrowed.kernel(
        lp.triton(f"{FUNCTIONS}:copy", constexprs={"BLOCK": 64}),
        lp.cuda(code, "widen"),
        dtypes=("float32",),
        name="both",
    )
    def both(x: Any, y: Any, BLOCK: int) -> Any:
        blocks, kept = lp.cdiv(x.numel(), BLOCK), lp.scratch(x.numel(), "float16")
        return (
            lp.Launch(grid=blocks, args=(x, kept, x.numel())),
            lp.Launch(grid=blocks, block=64, args=(kept, y, x.numel())),
        )

    x = np.random.default_rng(0).standard_normal((7, 33)).astype(np.float32)
    np.testing.assert_array_equal(run_kernel(narrowed, x), x.astype(np.float16).astype(np.float32))
    spec = plugin_spec(narrowed, TARGET, torch.empty(3, 33))
    assert spec is not None
    (first, second) = spec.kernels[0].steps
    assert (first.symbol, "widen" in second.symbol) == ("copy", True)
    assert first.launch.alignments == {"x": 16, "scratch.0": 16} and not second.launch.alignments


def test_the_operator_gives_it_memory(cuda: HostCuda) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("the reference ran")

    run = CudaOperator(centred, refuse, lambda: cuda)
    for rows in (4, 40, 4):
        x = cuda.know(torch.randn(rows, 96))
        torch.testing.assert_close(run(x), centred.reference(x))
    assert len(cuda.driver.libraries) == 2


def test_a_spec_of_several_launches_has_a_format_of_its_own() -> None:
    spec = stepped()
    data = to_bytes(PluginSet({spec.key: spec}, {}))
    again = from_bytes(data).specs[spec.key]
    assert again.to_json() == spec.to_json() and b'"format":2' in data.replace(b"\\", b"")
    field = write_field(spec, spec.digests)
    assert field[17] == 3 and read_field(field).key == spec.key
    assert again.architectures == ("sm_89", "sm_120")


def changed(change: Any) -> str:
    spec = stepped()
    value = json.loads(json.dumps(spec.to_json()))
    change(value["kernels"][0])
    with pytest.raises((BuildError, ValueError, KeyError)) as caught:
        spec_from_json(value, spec.images)
    return str(caught.value)


def test_specs_that_are_at_fault() -> None:
    assert "scratch.1, which is no tensor" in changed(lambda kernel: kernel["scratch"].pop())
    assert "uses y.0, a size of no input" in changed(lambda kernel: kernel["scratch"][0].__setitem__(1, "y.0"))
    assert "0 launches" in changed(lambda kernel: kernel["steps"].clear())
    assert "33 launches" in changed(lambda kernel: kernel["steps"].extend(kernel["steps"][:1] * 31))
    assert "scratch" in changed(lambda kernel: kernel.pop("scratch"))
    assert "int7" in changed(lambda kernel: kernel["scratch"][0].__setitem__(0, "int7"))


def test_a_model_builds_and_its_kernel_is_checked(tmp_path: Path) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(centred(x * 2))

    report = lp.build(
        Model(),
        tmp_path / "m.lp",
        args=(torch.randn(6, 96),),
        dynamic_shapes=({0: "rows"},),
        ranges={"rows": (1, 6, 2000)},
        target="rtx:sm_89",
        packs=[Pack()],
    )
    (one,) = report.layers
    assert one.realised == "plugin", one.reason
    assert report.verification is not None
    assert [check.answer for check in report.verification.kernels] == ["right"], report.verification
