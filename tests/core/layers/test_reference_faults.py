"""References that cannot be one: they draw random numbers, change their inputs, or get lists of a wrong length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from layerport.errors import BuildError, UsageError
from layerport.layers.derivation import derive
from layerport.sizes.dims import port

X = port("x", "float32", (None, 8))


def derived(reference: Any, **attributes: Any) -> Any:
    return derive(reference, {"x": X}, attributes, layer="p::l")


@pytest.mark.parametrize(
    "reference",
    [
        lambda x: x + torch.rand_like(x),
        lambda x: torch.nn.functional.dropout(x, 0.5, training=True),
        lambda x: x * torch.randn(8),
        lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
    ],
)
def test_a_reference_that_draws_random_numbers(reference: Any) -> None:
    with pytest.raises(UsageError) as caught:
        derived(reference)
    assert caught.value.fault.startswith("p::l: the reference draws random numbers (aten.")
    assert "take the random tensor as an input" in str(caught.value.repair)


@pytest.mark.parametrize(
    "reference",
    [
        lambda x: torch.nn.functional.dropout(x, 0.5, training=False),
        lambda x: torch.nn.functional.dropout(x, 0.0, training=True),
        lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None])[0],
    ],
)
def test_one_that_only_could(reference: Any) -> None:
    assert [output.form for output in derived(reference).outputs] == ["float32[x.0, 8]"]


@pytest.mark.parametrize(
    "reference",
    [lambda x: x.add_(1), lambda x: x[:, :2].zero_().sum(), lambda x: torch.relu_(x), lambda x: x.copy_(x * 2) + 1],
)
def test_a_reference_that_changes_its_input(reference: Any) -> None:
    with pytest.raises(UsageError) as caught:
        derived(reference)
    assert caught.value.fault == "p::l: the reference changes its input x in place"
    assert "clone the tensor first" in str(caught.value.repair)


def test_one_that_changes_a_copy() -> None:
    def reference(x: Tensor) -> Tensor:
        return x.clone().add_(1)

    assert [output.form for output in derived(reference).outputs] == ["float32[x.0, 8]"]


def test_a_list_of_the_wrong_length_is_named() -> None:
    def reference(x: Tensor, sizes: list[int]) -> Tensor:
        first, second = sizes
        return x.reshape(-1, first, second)

    assert [output.form for output in derived(reference, sizes=(2, 4)).outputs] == ["float32[x.0, 2, 4]"]
    with pytest.raises(BuildError) as caught:
        derived(reference, sizes=(2, 2, 2))
    assert "with sizes=[2, 2, 2] (is that as many values as it takes?)" in caught.value.fault
    assert "too many values to unpack" in caught.value.faults[0]
