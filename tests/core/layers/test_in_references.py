"""What references may call: `lp.scan` and `lp.check_values`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.export import Dim

import layerport as lp
from hidden_names import hide


def decay(state: Tensor, x: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    state = state * rate + x
    return state, state.sum()


def scanned(x: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    state, sums = lp.scan(decay, [torch.zeros_like(x[0])], [x], (rate,))
    return state, sums


def by_hand(x: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    state, sums = torch.zeros_like(x[0]), []
    for one in x:
        state, total = decay(state, one, rate)
        sums.append(total)
    return state, torch.stack(sums)


X, RATE = torch.randn(5, 3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)


def test_a_scan_gives_what_the_loop_gives_with_its_gradients() -> None:
    for got, wanted in zip(scanned(X, RATE), by_hand(X, RATE), strict=True):
        torch.testing.assert_close(got, wanted)
    given = (X.clone().requires_grad_(), RATE.clone().requires_grad_())
    assert torch.autograd.gradcheck(scanned, given) and torch.autograd.gradgradcheck(scanned, given)
    with torch.no_grad():
        without = scanned(*given)
    for got, wanted in zip(scanned(*given), without, strict=True):
        assert torch.equal(got, wanted) and got.requires_grad


@pytest.mark.parametrize("gradient", [False, True])
def test_a_scan_over_nothing_gives_the_carry_and_nothing(gradient: bool) -> None:
    state, sums = lp.scan(decay, [X[0]], [torch.zeros(0, 3, dtype=torch.float64, requires_grad=gradient)], (RATE,))
    assert torch.equal(state, X[0]) and (sums.shape, sums.dtype) == ((0,), torch.float64)


class Scanned(torch.nn.Module):
    def forward(self, x: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        return scanned(x, rate)


def test_a_scan_exports_as_one_loop_of_any_length() -> None:
    shapes = ({0: Dim("length", min=1, max=64)}, {})
    program = torch.export.export(Scanned(), (X, RATE), dynamic_shapes=shapes, strict=False)
    assert sum(str(node.target) == "scan" for node in program.graph.nodes) == 1
    longer = torch.randn(9, 3, dtype=torch.float64)
    for got, wanted in zip(program.module()(longer, RATE), by_hand(longer, RATE), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("carry", "xs"), [([], [X]), ([RATE], []), ([RATE], [X, X[:4]]), ([RATE], [torch.tensor(1.0)])]
)
def test_a_scan_over_nothing_or_unlike_lengths_is_refused(carry: list[Tensor], xs: list[Tensor]) -> None:
    with pytest.raises(lp.UsageError, match=rf"scan over {len(xs)} tensors of shapes .* with {len(carry)} carried"):
        lp.scan(decay, carry, xs, (RATE,))


@lp.layer("in_references::halved")
def halved(x: Tensor, even: Tensor) -> Tensor:
    lp.check_values((even % 2 == 0).all(), "halved: even has odd numbers; give even ones")
    return x * (even // 2)


def test_values_are_checked_where_they_are_there() -> None:
    assert halved(torch.ones(2), torch.tensor([2, 4])).tolist() == [1, 2]
    with pytest.raises(RuntimeError, match="halved: even has odd numbers; give even ones"):
        halved(torch.ones(2), torch.tensor([2, 3]))
    torch.library.opcheck(halved.operator, (torch.ones(2), torch.tensor([2, 4])))


def test_values_are_not_checked_by_a_torch_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, ["torch._assert_async"])
    assert halved.reference(torch.ones(2), torch.tensor([2, 3])).tolist() == [1, 1]
