"""Converted parameters are kept for as long as parameters and attributes stay as they are, and no longer."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from layerport.layers.converted import ConvertedParameters, Replaced


class Counting:
    """Converts the first parameter (place 1) and counts how often."""

    def __init__(self) -> None:
        self.kept = ConvertedParameters([1, 2], [3])
        self.count = 0

    def __call__(self, *args: Any) -> Replaced:
        def make() -> Replaced:
            self.count += 1
            return {1: torch.full((2,), float(self.count))}

        return self.kept.get(args, make)


def write(weight: torch.Tensor, other: torch.Tensor) -> None:
    weight.add_(1.0)


def swap_data(weight: torch.Tensor, other: torch.Tensor) -> None:
    weight.data = torch.zeros(3)


def write_other(weight: torch.Tensor, other: torch.Tensor) -> None:
    other.add_(1.0)


@pytest.mark.parametrize("change", [write, swap_data, write_other])
def test_a_change_of_a_parameter_is_seen(change: Callable[..., None]) -> None:
    run, x, weight, other = Counting(), torch.ones(1), torch.ones(3), torch.ones(3)
    for _ in range(3):
        assert run(x, weight, other, [1, 2])[1][0] == 1.0
    change(weight, other)
    assert run(x, weight, other, [1, 2])[1][0] == 2.0
    assert run.count == 2


def test_other_arguments_are_another_state() -> None:
    run, x, weight, other = Counting(), torch.ones(1), torch.ones(3), torch.ones(3)
    sizes = [1, 2]
    run(x, weight, other, sizes)
    sizes[0] = 7
    run(x, weight, other, sizes)
    assert run.count == 2
    run(x, weight, None, sizes)
    assert run.count == 3
    run(x, weight, torch.ones(3), sizes)
    assert run.count == 4
    run(x, None, other, sizes)
    run(x, None, other, sizes)
    assert run.count == 5
    assert run(x, None, None, sizes) == {}
    assert run.count == 5


def test_nothing_is_kept_of_a_parameter_that_is_gone() -> None:
    run, x = Counting(), torch.ones(1)
    for number in range(20):
        weight = torch.full((3,), float(number))
        assert run(x, weight, None, 1)[1][0] == number + 1
    del weight
    gc.collect()
    assert run.kept._kept == {}
