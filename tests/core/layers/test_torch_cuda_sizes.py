"""The operator on CUDA tensors where sizes depend on data, without a GPU; as in `test_torch_cuda`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import layerport as lp
from host_cuda import HostCuda, cuda_fixture  # noqa: F401
from layerport.errors import UsageError
from layerport.layers.cuda_operator import CudaOperator
from layerport_builtin_layers.nms.case import CASE as NMS

CODE = """
__global__ void split(const float* x, long long* above, float* below, long long* ups, long long* downs, int n) {
    if (threadIdx.x != 0) return;
    int up = 0, down = 0;
    for (int i = 0; i < n; ++i) {
        if (x[i] > 0) above[up++] = i;
        if (x[i] < 0) below[down] = x[i], below[down + 1] = -x[i], down += 2;
    }
    *ups = up, *downs = DOWNS;
}
"""


def refuse(*args: Any) -> Any:
    raise AssertionError("the reference ran")


def split(name: str, *, downs: str = "down / 2", ruled: bool = False, bounded: bool = True) -> lp.Layer:
    """The places of what is above 0, and what is below it in rows with its opposite."""

    @lp.layer(f"lp_cuda_sizes::{name}")
    def layer(x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 1:
            raise ValueError(f"x has {x.ndim} axes")
        above, below = torch.nonzero(x > 0)[:, 0], x[x < 0]
        if not bounded:
            below = below.repeat_interleave(torch.ones_like(below, dtype=torch.int64))
        return above, torch.stack((below, -below), 1)

    if ruled:

        @layer.shape_rule
        def rule(x: Any) -> Any:
            ups, downs = lp.SizeSymbol("ups", x.shape[0]), lp.SizeSymbol("downs", x.shape[0])
            return ("int64", (ups,)), (x.dtype, (downs, 2))

    dtypes = ({"x": "float32", "above": "int64", "below": "float32"},)

    @layer.kernel(lp.cuda(CODE.replace("DOWNS", downs), "split"), dtypes=dtypes)
    def launch(x: Any, above: Any, below: Any, ups: Any, downs: Any) -> lp.Launch:
        return lp.Launch(grid=1, block=32, args=(x, above, below, ups, downs, x.shape[0]))

    return layer


@pytest.mark.parametrize("ruled", [False, True], ids=["from the reference", "from a rule"])
def test_outputs_have_the_sizes_that_the_kernel_wrote(ruled: bool, cuda: HostCuda) -> None:
    layer = split(f"split_{ruled}", ruled=ruled)
    run = CudaOperator(layer, layer.reference, lambda: cuda)
    for values in ([1.0, -2, 0, 3, -4, -5], [-1.0, -1, -1, 2, 2, 2], [0.0] * 6, [1.0], []):
        x = cuda.know(torch.tensor(values))
        got, expected = run(x), layer.reference(x)
        for ours, theirs in zip(got, expected, strict=True):
            assert torch.equal(ours, theirs) and ours.dtype is theirs.dtype and ours.is_contiguous()
    assert len(run._plans) == 3  # other data, the same plan
    # Of nothing the reference knows what it returns, so that only a rule says that the kernel writes sizes there.
    assert len(cuda.driver.launches) == (5 if ruled else 4)


@pytest.mark.parametrize("case", NMS.cases(), ids=lambda case: case.id)
def test_boxes_are_suppressed_by_the_kernel(case: Any, cuda: HostCuda) -> None:
    tensors = case.tensors()
    for tensor in tensors.values():
        if tensor is not None:
            cuda.know(tensor)
    got = CudaOperator(NMS.layer, refuse, lambda: cuda)(*case.arguments(tensors))
    case.check(got, case.expected(tensors))
    assert len(cuda.driver.launches) == (3 if case.shape.shapes["boxes"][0] else 1)


def test_torch_calls_and_compiles_it(cuda: HostCuda) -> None:
    """The operator under the CPU's key; a compiler is told a size that it does not know."""
    layer = split("dispatched")
    library = torch.library.Library(layer.namespace, "FRAGMENT")
    library.impl(layer.short_name, CudaOperator(layer, refuse, lambda: cuda), "CPU")

    def twice(x: Tensor) -> Tensor:
        above, below = layer(x)
        result: Tensor = above.sum() + below.sum(1) * 2
        return result

    try:
        x = cuda.know(torch.tensor([1.0, -2, 0, 3]))
        with torch.inference_mode():
            assert [one.tolist() for one in layer(x)] == [[0, 3], [[-2.0, 2.0]]]
        gradient = cuda.know(torch.tensor([1.0, -2, 0, -3])).requires_grad_()
        layer(gradient)[1][:, 0].sum().backward()
        assert gradient.grad is not None and gradient.grad.tolist() == [0.0, 1.0, 0.0, 1.0]
        compiled = torch.compile(twice, backend="aot_eager", fullgraph=True)
        for values in ([1.0, -2, 0, 3], [-1.0, -1, -1, -1]):
            x = cuda.know(torch.tensor(values))
            assert torch.equal(compiled(x), twice(x))
    finally:
        library._destroy()
        torch._dynamo.reset()


def test_a_size_that_cannot_be_is_refused(cuda: HostCuda) -> None:
    run = CudaOperator(split("too_many", downs="n + 1"), refuse, lambda: cuda)
    with pytest.raises(UsageError, match="layer lp_cuda_sizes::too_many: its kernel writes no possible size") as caught:
        run(cuda.know(torch.ones(4)))
    assert caught.value.faults == ("u1 is 5, allowed are 0 to 4",)


def test_nothing_is_waited_for_while_a_graph_is_captured(cuda: HostCuda) -> None:
    run = CudaOperator(split("captured"), refuse, lambda: cuda)
    x = cuda.know(torch.ones(4))
    run(x)
    cuda.captures = True
    with pytest.raises(UsageError, match="it waits for the size of its output, which depends on data"):
        run(x)
    assert len(cuda.driver.launches) == 1


def test_without_a_greatest_size_the_reference_runs_and_its_checks_do(cuda: HostCuda) -> None:
    layer = split("unbounded", bounded=False)
    run = CudaOperator(layer, layer.reference, lambda: cuda)
    x = torch.tensor([1.0, -2, 0, 3])
    assert run(x)[1].tolist() == [[-2.0, 2.0]] and not cuda.driver.launches
    assert "no greatest value is known for its size u1" in lp.explain_dispatch(layer, x).reasons[1]
    bounded = split("checked")
    assert lp.explain_dispatch(bounded, x).reasons[0].endswith("on a GPU it would be kernel checked_0")
    with pytest.raises(ValueError, match="x has 2 axes"):
        CudaOperator(bounded, bounded.reference, lambda: cuda)(x[None])
