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


def test_what_float16_cannot_store_is_no_error() -> None:
    least = 2.0**-24
    want = torch.tensor([least * size for size in (100, 50, 7)], dtype=torch.float16)
    for steps, error in ((1, 0.0), (2, 1 / (7 + 157 / 3)), (-3, 2 / (7 + 157 / 3))):
        have = want + torch.tensor([0, 0, steps * least], dtype=torch.float16)
        got, allowed = relative_error(want, have)
        assert got == pytest.approx(error) and allowed == 5e-3
        # NaN and infinities take the careful way
        rest = torch.tensor([float("nan"), float("inf")], dtype=torch.float16)
        assert relative_error(torch.cat((want, rest)), torch.cat((have, rest)))[0] == pytest.approx(error)
    # something where there is nothing is an error all the same
    nothing = torch.zeros(3, dtype=torch.float16)
    assert relative_error(nothing, nothing + least)[0] == float("inf")
    # wider types store far less
    wide = torch.tensor([100 * least], dtype=torch.float32)
    assert relative_error(wide, wide + least)[0] == pytest.approx(1 / 200)
