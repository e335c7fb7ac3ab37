"""How far a claim is from its module: the figure that decides, against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from layerport.front.comparison import relative_error


@pytest.mark.parametrize(
    ("want", "have", "error"),
    [
        ([1.0, 1.0], [1.0, 1.0], 0.0),
        ([1.0, 3.0], [1.0, 3.5], 0.1),
        ([0.0, 2.0], [0.5, 2.0], 0.5),
        ([float("inf"), float("nan"), 1.0], [float("inf"), float("nan"), 1.0], 0.0),
        ([float("inf"), 1.0], [1.0, 1.0], float("inf")),
        ([1.0, 1.0], [float("nan"), 1.0], float("inf")),
        ([], [], 0.0),
    ],
)
def test_relative_error(want: list[float], have: list[float], error: float) -> None:
    got, _ = relative_error(torch.tensor(want), torch.tensor(have))
    assert got == pytest.approx(error)


def test_whole_numbers_must_be_equal() -> None:
    assert relative_error(torch.tensor([1, 2]), torch.tensor([1, 2])) == (0.0, 0.0)
    assert relative_error(torch.tensor([1, 2]), torch.tensor([1, 3])) == (float("inf"), 0.0)
