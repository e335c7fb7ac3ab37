"""The module of a bound layer: what it registers, what it shares, how it hands its arguments on."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import layerport as lp
from layerport.layers.module import LayerModule


@lp.layer("lp_module::mixed")
def mixed(x: Tensor, weight: lp.Param, shift: Tensor | None, bias: lp.Param | None = None, gain: float = 2.0) -> Tensor:
    """The kinds of arguments, in no order."""
    y = x * weight * gain
    for term in (shift, bias):
        y = y if term is None else y + term
    return y


def test_inputs_come_in_the_order_of_the_signature_and_may_be_left_out() -> None:
    module = mixed.module(weight=[1.0, 2.0], bias=[0.5, 0.5])
    x, shift = torch.ones(3, 2), torch.full((3, 2), 10.0)
    assert torch.equal(module(x, shift), torch.tensor([[12.5, 14.5]] * 3))
    assert torch.equal(module(x), torch.tensor([[2.5, 4.5]] * 3))
    assert torch.equal(module(x, None), module(x))


def test_parameters_buffers_and_absent_ones() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    array = np.arange(2, dtype=np.float32)
    module = mixed.module(weight=parameter, bias=array)
    assert module.weight is parameter
    assert list(dict(module.named_parameters())) == ["weight"]
    assert list(dict(module.named_buffers())) == ["bias"]
    assert module.bias.data_ptr() == array.__array_interface__["data"][0]
    assert mixed.module(weight=parameter).bias is None


def test_a_converted_parameter_is_a_buffer_of_its_own() -> None:
    parameter = torch.nn.Parameter(torch.arange(4.0).reshape(2, 2).T)
    module = mixed.module(weight=parameter)
    assert isinstance(module, LayerModule)
    assert module.weight is not parameter
    assert torch.equal(module.weight, parameter)
    assert not list(module.parameters())


def test_a_state_dict_comes_back() -> None:
    module = mixed.module(weight=torch.nn.Parameter(torch.rand(2)), bias=[1.0, 1.0], gain=3.0)
    other = mixed.module(weight=torch.nn.Parameter(torch.zeros(2)), bias=[0.0, 0.0], gain=3.0)
    other.load_state_dict(module.state_dict())
    x = torch.rand(4, 2)
    assert torch.equal(module(x), other(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))


def test_it_trains() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    module = mixed.module(weight=weight)
    module(torch.tensor([[1.0, 2.0]])).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.tensor([2.0, 4.0]))


def test_its_text_names_layer_and_attributes() -> None:
    assert repr(mixed.module(weight=[1.0], gain=4)) == "LayerModule(lp_module::mixed, gain=4.0)"


class Halves(NamedTuple):
    left: Tensor
    right: Tensor


@lp.layer("lp_module::halves")
def halves(x: Tensor) -> Halves:
    return Halves(*x.chunk(2, -1))


def test_a_named_tuple_comes_back_as_one() -> None:
    x = torch.arange(6.0).reshape(1, 6)
    module = halves.module()
    program = torch.export.export(module, (x,))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for answer in (halves(x), halves(x=x), module(x), program.module()(x), compiled(x)):
        assert type(answer) is Halves
        assert torch.equal(answer.left, x[:, :3]) and torch.equal(answer.right, x[:, 3:])
