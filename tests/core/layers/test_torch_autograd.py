"""Gradients of a layer's operator: a backward that the author wrote, and autocast."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import layerport as lp
from layerport.errors import UsageError
from layerport.testing import check_backward


@lp.layer("lp_autograd::gated")
def gated(x: Tensor, weight: lp.Param, shift: Tensor | None = None, power: float = 2.0) -> Tensor:
    y = x.exp() * weight**power
    return y if shift is None else y + shift


calls: list[str] = []


@gated.backward
def gated_backward(x: Any, weight: Any, power: Any, shift: Any, output: Any, grad_output: Any) -> Any:
    calls.append("backward")
    product = output if shift is None else output - shift
    by_weight = (grad_output * x.exp()).sum(0) * power * weight ** (power - 1)
    return grad_output * product, by_weight, None if shift is None else grad_output


class Parts(NamedTuple):
    low: Tensor
    high: Tensor
    place: Tensor


@lp.layer("lp_autograd::parts")
def parts(x: Tensor) -> Parts:
    return Parts(x * 2, x.square(), x.argmax(-1))


@parts.backward
def parts_backward(x: Any, grad_low: Any, grad_high: Any, grad_place: Any) -> Any:
    return grad_low * 2 + grad_high * x * 2


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize(
    "arguments",
    [
        (double(2, 3), double(3)),
        (double(2, 3), double(3), double(2, 3), 3.0),
        (double(3, 2).detach().t().requires_grad_(), double(3), None),
    ],
)
def test_a_written_backward_is_the_one_that_runs_and_is_right(arguments: Any) -> None:
    calls.clear()
    gated(*arguments).sum().backward()
    assert calls == ["backward"]
    check_backward(gated, *arguments)
    assert torch.autograd.gradgradcheck(gated, arguments)
    assert set(torch.library.opcheck(gated.operator, arguments).values()) == {"SUCCESS"}


def test_several_outputs_and_one_that_has_no_gradient() -> None:
    x = double(2, 3)
    check_backward(parts, x)
    parts(x)[1].sum().backward()
    torch.testing.assert_close(x.grad, 2 * x)


def test_only_what_is_asked_for_is_kept() -> None:
    x = double(2, 3)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        parts(x)
    assert [tensor.data_ptr() for tensor in saved] == [x.data_ptr()]


def test_a_gradient_only_where_it_is_wanted() -> None:
    x, weight = double(2, 3).detach(), double(3)
    gated(x, weight).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(weight.grad, x.exp().sum(0) * 2 * weight)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_gradients_are_the_same(backend: str) -> None:
    results = []
    for function in (gated, torch.compile(lambda *args: gated(*args), backend=backend, fullgraph=True)):
        x, weight = torch.ones(3, 2).t().requires_grad_(), torch.full((3,), 2.0).requires_grad_()
        (function(x, weight) * 3).sum().backward()
        results.append((x.grad, weight.grad))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0][1], torch.full((3,), 2 * 3 * 2 * 2.0 * float(torch.e)))


def test_parameters_that_a_backward_cannot_have() -> None:
    with pytest.raises(UsageError) as caught:
        parts.backward(lambda x, gradient, grad_low: x)
    assert caught.value.fault == "layer lp_autograd::parts: its backward cannot be called"
    assert caught.value.faults == (
        "it takes gradient",
        "it does not take grad_high",
        "it does not take grad_place",
    )
    assert caught.value.repair == "it may take x, low, high, place, and takes grad_low, grad_high, grad_place"
    assert (written := parts._torch.backward) is not None and written.function is parts_backward


@pytest.mark.parametrize(
    ("answer", "said"), [(lambda g: g, "Tensor"), (lambda g: (g,), "(Tensor)"), (lambda g: (g, 1), "(Tensor, int)")]
)
def test_a_backward_that_returns_the_wrong_number(answer: Any, said: str) -> None:
    layer = two_arguments(f"wrong_{len(said)}")
    layer.backward(lambda grad_output: answer(grad_output))
    with pytest.raises(UsageError) as caught:
        layer(double(2), double(2)).sum().backward()
    assert f"its backward returned {said}, not one gradient for each of x, w" in caught.value.fault


def two_arguments(name: str) -> lp.Layer:
    def reference(x: Tensor, w: Tensor) -> Tensor:
        return x * w.square()

    return lp.layer(f"lp_autograd::{name}")(reference)


@pytest.mark.parametrize(
    ("backward", "said"),
    [
        (lambda x, w, grad_output: (grad_output * w.square(), grad_output * x * w), "derivative 1 by w"),
        (lambda x, w, grad_output: (None, 2 * grad_output * x * w), "derivative 1 by x"),
        (lambda x, w, grad_output: (grad_output * w.detach().square(), 2 * grad_output * x * w), "derivative 2 by"),
    ],
)
def test_a_wrong_backward_is_found_out(backward: Any, said: str) -> None:
    layer = two_arguments("faulty_" + said.replace(" ", "_"))
    layer.backward(backward)
    with pytest.raises(AssertionError, match=said):
        check_backward(layer, torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]))


def test_a_check_needs_a_backward_and_a_gradient() -> None:
    with pytest.raises(UsageError, match="has no backward of its own"):
        check_backward(two_arguments("derived"), torch.ones(2), torch.ones(2))
    with pytest.raises(UsageError, match="none of these arguments has a gradient"):
        check_backward(parts, torch.ones(2, dtype=torch.int64))


# Autocast


@lp.layer("lp_autograd::product")
def product(x: Tensor, weight: lp.Param) -> Tensor:
    return x @ weight


@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_in_what_it_is_given_under_autocast(backend: str | None, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    x, weight = torch.randn(3, 4), torch.randn(4, 5)
    x, weight = x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()

    def model(x: Tensor, weight: Tensor) -> Tensor:
        return product(x, weight) + 1

    function: Any = model if backend is None else torch.compile(model, backend=backend, fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = function(x, weight)
        got.sum().backward()
    assert got.dtype is dtype
    torch.testing.assert_close(got, x @ weight + 1)
    torch.testing.assert_close(weight.grad, x.sum(0)[:, None].expand(4, 5).to(dtype))
    assert not torch.is_autocast_enabled("cpu")
