"""The Torch operator of a layer: what Torch's own checks say, gradients, absent tensors, and operators made anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import layerport as lp
from layerport.errors import UsageError
from layerport.layers.operator import registered_layer


@lp.layer("lp_operator::swish")
def swish(x: Tensor, scale: lp.Param, bias: lp.Param | None = None, beta: float = 1.0) -> Tensor:
    y = x * torch.sigmoid(beta * x) * scale
    return y if bias is None else y + bias


@lp.layer("lp_operator::parts")
def parts(x: Tensor, sizes: list[int], keep: bool = True) -> tuple[Tensor, Tensor]:
    left, right = x.split(sizes, -1)
    return (left if keep else left * 2), right.sum(-1).long()


@lp.layer("lp_operator::untouched")
def untouched(x: Tensor) -> Tensor:
    return x


@lp.layer("lp_operator::halves")
def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 2
    return y[:1], y[1:]


def double(*shape: int, requires_grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_(requires_grad)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (swish, (double(2, 3), double(3))),
        (swish, (double(2, 3), double(3), double(3), 0.5)),
        (parts, (double(2, 5), [2, 3])),
        (untouched, (double(2, 3),)),
        (halves, (double(2, 3),)),
    ],
)
def test_torch_finds_nothing_wrong(operator: Any, arguments: tuple[Any, ...]) -> None:
    answers = torch.library.opcheck(operator.operator, arguments)
    assert set(answers.values()) == {"SUCCESS"}, answers


@lp.layer("lp_operator::turned")
def turned(x: Tensor) -> tuple[Tensor, Tensor]:
    """Strides of every kind, whatever those of x are."""
    return x.mT * 2, x[..., ::2].expand(2, *x.shape[:-1], -1)


@lp.layer("lp_operator::found")
def found(x: Tensor) -> Tensor:
    places = torch.nonzero(x)
    torch._check(places.shape[0] <= x.numel())
    return places.t()


STRIDED = {
    "transposed": lambda x: x.t(),
    "expanded": lambda x: x[:1].expand(4, -1),
    "every second": lambda x: x[:, ::2],
    "a row": lambda x: x[:1].t(),
    "reversed axes": lambda x: x[None].permute(2, 1, 0),
}


@pytest.mark.parametrize("kind", STRIDED)
@pytest.mark.parametrize("layer", [swish, untouched, turned, found], ids=lambda layer: layer.short_name)
def test_outputs_are_contiguous_whatever_the_inputs_are(layer: lp.Layer, kind: str) -> None:
    x = STRIDED[kind](double(3, 6).detach())
    arguments = (x, double(x.shape[-1]).detach()) if layer is swish else (x,)
    assert set(torch.library.opcheck(layer.operator, arguments).values()) == {"SUCCESS"}
    answers = layer(*arguments)
    for answer in answers if isinstance(answers, tuple) else (answers,):
        assert answer.is_contiguous()
    if layer is not found:
        meta = layer(*(one.to("meta") for one in arguments))
        for answer in meta if isinstance(meta, tuple) else (meta,):
            assert answer.is_contiguous()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", STRIDED)
def test_it_compiles_with_inputs_of_any_strides(kind: str, backend: str) -> None:
    torch._dynamo.reset()
    x = STRIDED[kind](torch.randn(3, 6))
    scale = torch.randn(x.shape[-1])

    def model(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        y = swish(x, scale)
        return y.view(-1) + 1, y.stride()  # a view like this needs the strides that were told

    expected, strides = model(x)
    got, told = torch.compile(model, backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(got, expected)
    assert told == strides


def test_gradients_of_first_and_second_order() -> None:
    assert torch.autograd.gradcheck(swish, (double(2, 3), double(3), double(3), 1.5))
    assert torch.autograd.gradgradcheck(swish, (double(2, 3), double(3), None, 1.5))


def test_a_gradient_only_where_it_is_wanted() -> None:
    x, scale = double(2, 3, requires_grad=False), double(3)
    swish(x, scale).sum().backward()
    assert x.grad is None and scale.grad is not None
    expected = (x * torch.sigmoid(x)).sum(0)
    torch.testing.assert_close(scale.grad, expected)


def test_an_output_without_gradient_does_not_stop_the_other() -> None:
    x = double(2, 5)
    left, counted = parts(x, [2, 3])
    assert not counted.requires_grad
    left.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.tensor([[1.0, 1, 0, 0, 0]] * 2, dtype=torch.float64))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_an_answer_never_shares_memory_with_an_input(mode: Any) -> None:
    with mode():
        x = torch.randn(3, 4)
        for answer in (untouched(x), untouched(x=x), parts(x, [1, 3])[0]):
            assert answer.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_two_answers_do_not_share_memory() -> None:
    first, second = halves(torch.ones(2, 3))
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
    assert torch.equal(second, torch.full((1, 3), 2.0))


def test_it_works_on_tensors_without_data() -> None:
    meta = torch.empty(2, 5, device="meta", dtype=torch.float16)
    left, counted = parts(meta, [1, 4])
    assert (left.shape, left.dtype, counted.shape, counted.dtype) == (
        (2, 1),
        torch.float16,
        (2,),
        torch.int64,
    )


def test_an_operator_that_torch_has_already() -> None:
    def identity(x: Tensor) -> Tensor:
        return x * 1

    with pytest.raises(UsageError) as caught:
        lp.layer("quantized::add")(identity)
    assert caught.value.fault.startswith("layer quantized::add (")
    assert "torch does not take its operator: Tried to register an operator" in caught.value.fault
    assert caught.value.repair == "choose another namespace or layer name"


def test_the_same_source_again_takes_the_place_of_the_first() -> None:
    def make(factor: float) -> Any:
        def reference(x: Tensor) -> Tensor:
            return x * factor

        return lp.layer("lp_operator::reloaded")(reference)

    first = make(2.0)
    assert torch.equal(first(torch.ones(1)), torch.tensor([2.0]))
    assert registered_layer("lp_operator::reloaded") is first and registered_layer("lp_operator::none") is None
    second = make(3.0)
    assert registered_layer("lp_operator::reloaded") is second
    assert torch.equal(second(torch.ones(1)), torch.tensor([3.0]))
    assert torch.equal(torch.ops.lp_operator.reloaded(torch.ones(1)), torch.tensor([3.0]))


def test_it_compiles_and_exports_as_one_node() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return swish(x, scale, beta=0.5)

    program = torch.export.export(Model(), (torch.randn(2, 3), torch.randn(3)))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["lp_operator.swish.default"]


def test_it_compiles_whole() -> None:
    x, scale = torch.randn(2, 3), torch.randn(3)
    compiled = torch.compile(lambda x: swish(x, scale) + 1, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), swish(x, scale) + 1)


def test_no_gradient_is_recorded_where_none_is_wanted() -> None:
    x, scale = double(2, 3), double(3)
    with torch.no_grad():
        assert swish(x, scale).grad_fn is None
    assert swish(x.detach(), scale.detach()).grad_fn is None
    assert swish(x, scale.detach()).grad_fn is not None


def test_an_argument_left_away_has_its_default_in_the_backward_pass_too() -> None:
    gradients = []
    for arguments in ((), (None,), (None, 1.0)):
        x, scale = double(2, 3), double(3)
        swish(x, scale, *arguments).sum().backward()
        gradients.append(x.grad)
    assert gradients[0] is not None
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


@lp.layer("lp_operator_outputs::two")
def two(x: Tensor) -> tuple[Tensor, Tensor]:
    return x + 1  # type: ignore[return-value]


@lp.layer("lp_operator_outputs::one")
def one(x: Tensor) -> Tensor:
    return (x + 1, x + 2)  # type: ignore[return-value]


@lp.layer("lp_operator_outputs::nothing")
def nothing(x: Tensor) -> Tensor:
    x + 1  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("layer", "returned", "wanted"),
    [
        (two, "Tensor", "a tuple of 2 tensors"),
        (one, "a tuple of Tensor, Tensor", "a tensor"),
        (nothing, "NoneType", "a tensor"),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_the_wrong_number_of_outputs(layer: lp.Layer, returned: str, wanted: str, grad: bool) -> None:
    """Torch's dispatcher ends the process where it meets this."""
    with pytest.raises(lp.UsageError) as caught:
        layer(torch.ones(3, requires_grad=grad))
    assert f"its reference returned {returned}, its annotation says {wanted}" in caught.value.fault
