"""A reference planted in a graph of random operators is found there once, and not once a number of it is another.

Three graphs each; `tox run -e families` takes forty.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import layerport as lp
from searched import search_in

EXAMPLES = 40 if os.environ.get("LAYERPORT_TEST_FAMILIES") else 3


@lp.layer("planted::norm")
def norm(x: Tensor, residual: Tensor, eps: float = 1e-6) -> Tensor:
    if x.shape != residual.shape:
        raise ValueError("of two shapes")
    total = 0.7 * x + residual
    centred = total - total.mean(-1, keepdim=True)
    return torch.tanh(3.25 * centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps))


def written_otherwise(x: Tensor, residual: Tensor, eps: float, *, weight: float = 0.7, slope: float = 3.25) -> Tensor:
    total = residual + x * weight
    centred = total - torch.mean(total, -1, True)
    return torch.tanh(slope * (torch.rsqrt((centred * centred).mean(-1, True) + eps) * centred))


UNARY = (torch.tanh, torch.sigmoid, torch.exp, torch.neg, torch.square, lambda x: x.transpose(0, 1).contiguous())
BINARY = (torch.add, torch.mul, torch.sub, lambda x, y: torch.cat((x, y), -1)[..., 2:8], torch.matmul)
STEP = st.tuples(st.integers(0, 10), st.integers(0, 99), st.integers(0, 99))


class Planted(torch.nn.Module):
    """Random steps, each on values made before, with one planted computation among them."""

    def __init__(self, before: Any, after: Any, places: tuple[int, int], planted: Any) -> None:
        super().__init__()
        self._before, self._after, self._places, self._planted = before, after, places, planted

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        values = [x, y]
        self._steps(values, self._before)
        first, second = (values[place % len(values)] for place in self._places)
        values.append(self._planted(first, second))
        kept = values[-1]
        self._steps(values, self._after)
        total: Tensor = sum(values[2:]) + kept  # nothing is dead
        return total

    @staticmethod
    def _steps(values: list[Tensor], steps: Any) -> None:
        for kind, one, other in steps:
            first, second = values[one % len(values)], values[other % len(values)]
            made = UNARY[kind](first) if kind < len(UNARY) else BINARY[kind - len(UNARY)](first, second)
            values.append(torch.clamp(made, -3, 3))


def places_in(planted: Any, before: Any, after: Any, places: tuple[int, int]) -> list[tuple[str, float]]:
    inputs = (torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    findings, _ = search_in(Planted(before, after, places, planted), tuple(inputs), (norm,))
    return [(one.layer, one.attributes["eps"]) for one in findings.places]


# Two different values: of x + x the rest cannot tell which is which.
PLACES = st.tuples(st.integers(0, 99), st.integers(0, 99))
STEPS = st.lists(STEP, max_size=6)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(before=STEPS, after=STEPS, places=PLACES)
@example(before=[], after=[], places=(0, 1))
def test_it_is_found_once_however_it_is_written(before: Any, after: Any, places: tuple[int, int]) -> None:
    for planted in (lambda x, y: norm.reference(x, y, 1e-3), lambda x, y: written_otherwise(x, y, 1e-3)):
        found = places_in(planted, before, after, places)
        assert [name for name, _ in found] == [norm.name]
        assert found[0][1] == pytest.approx(1e-3)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(before=STEPS, after=STEPS, places=PLACES, wrong=st.sampled_from([{"weight": 0.7001}, {"slope": 3.2501}]))
def test_with_one_number_changed_it_is_not(before: Any, after: Any, places: Any, wrong: Any) -> None:
    assert places_in(lambda x, y: written_otherwise(x, y, 1e-3, **wrong), before, after, places) == []
