"""A function that a forward calls, put in another's place without a copy of the forward."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

import layerport as lp
from layerport.errors import UsageError


@lp.layer("test_calls::twice")
def twice(x: Tensor) -> Tensor:
    return x * 2.0


@lp.layer("test_calls::running")
def running(x: Tensor) -> Tensor:
    return torch.cumsum(x, 0)


def doubled(x: Tensor) -> Tensor:
    raise AssertionError("the function itself is called")


def summed(x: Tensor) -> Tensor:
    """Cannot be exported with a dynamic number of rows."""
    rows = [x[0]]
    for place in range(1, x.shape[0]):
        rows.append(rows[-1] + x[place])
    return torch.stack(rows)


def logged(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return wrapper


class Direct(torch.nn.Module):
    def forward(self, x: Tensor, *, shift: float = 1.0) -> Tensor:
        return doubled(x) + shift


class Inherited(Direct):
    pass


class Super(Direct):
    def forward(self, x: Tensor, *, shift: float = 2.0) -> Tensor:
        super().__init__()  # reads the class from a closure
        return doubled(x) + shift - 1.0


class Helper(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.step(x) + 1.0

    def step(self, x: Tensor) -> Tensor:
        return doubled(x)


class Decorated(torch.nn.Module):
    @logged
    def forward(self, x: Tensor) -> Tensor:
        return doubled(x) + 1.0


class Nested(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        (first,) = [doubled(one) for one in (x,)]
        return first + (lambda one: doubled(one))(x) * 0 + 1.0


@pytest.mark.parametrize("kind", [Direct, Inherited, Super, Helper, Decorated, Nested])
def test_the_layer_is_called_in_its_place(kind: type[torch.nn.Module]) -> None:
    module, copy = kind(), kind()
    made = lp.rewrite_call(module, "doubled", twice)
    assert isinstance(made, lp.Rewrite) and made.layers == (twice,)
    x = torch.arange(3.0)
    for _ in range(2):
        assert torch.equal(made.forward(copy, x), 2 * x + 1)
    # Nothing is left behind, in the copy, the class or the file.
    assert set(vars(copy)) == set(vars(module)) == set(vars(kind()))
    with pytest.raises(AssertionError, match="the function itself"):
        module(x)


def test_what_the_copy_had_of_its_own_comes_back() -> None:
    copy = Helper()
    own = copy.step = lambda x: x  # type: ignore[method-assign]
    made = lp.rewrite_call(Helper(), "doubled", twice)
    assert torch.equal(made.forward(copy, torch.ones(2)), torch.full((2,), 3.0))
    assert vars(copy)["step"] is own
    with pytest.raises(TypeError):
        made.forward(copy)
    assert vars(copy)["step"] is own


def test_a_function_that_calls_layers() -> None:
    def call(x: Tensor) -> Tensor:
        result: Tensor = twice(twice(x))
        return result

    made = lp.rewrite_call(Direct(), "doubled", call, layers=[twice])
    assert torch.equal(made.forward(Direct(), torch.ones(1), shift=0.5), torch.tensor([4.5]))


@pytest.mark.parametrize(
    ("arguments", "options", "faults"),
    [
        (
            (Direct(), "absent", twice),
            {},
            ("function: no method of Direct calls a global 'absent'; they call doubled",),
        ),
        (
            (torch.nn.Linear(1, 1), "linear", twice),
            {},
            ("function: no method of Linear calls a global 'linear'; they call none",),
        ),
        # an attribute of that name is no global
        ((Helper(), "step", twice), {}, ("function: no method of Helper calls a global 'step'; they call doubled",)),
        (
            (Direct(), "doubled", plain := (lambda x: x)),
            {},
            ("layers: a function does not tell which layers it calls; write layers=(my_layer,)",),
        ),
        (
            (Direct(), "no", 5),
            {},
            (
                "function: no method of Direct calls a global 'no'; they call doubled",
                "call: expected a layer or a function, got int 5",
            ),
        ),
    ],
)
def test_what_is_refused(arguments: Any, options: Any, faults: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        lp.rewrite_call(*arguments, **options)
    assert caught.value.faults == faults
    assert "lp.rewrite_call(module, 'name', my_layer)" in str(caught.value.repair)


def test_layers_that_are_none_are_named_as_in_rewrite() -> None:
    with pytest.raises(UsageError, match=r"layers\[0\]: expected a layer, got int 5"):
        lp.rewrite_call(Direct(), "doubled", plain, layers=(5,))  # type: ignore[arg-type]


class Sums(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Summing()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.tanh(self.inner(x))
        return result


class Summing(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return summed(x * 0.5)


class Pack:
    @lp.hookimpl
    def layerport_layers(self) -> Any:
        return (running,)

    @lp.hookimpl
    def layerport_export_parameters(self, module: Any) -> Any:
        return lp.rewrite_call(module, "summed", running) if isinstance(module, Summing) else None


def test_a_model_that_cannot_be_exported_without_the_layer_can_be_with_it(tmp_path: Path) -> None:
    source = (Sums().eval(), (torch.randn(3, 4),), ({0: Dim("rows", min=2, max=9)},))
    with pytest.raises(lp.BuildError):
        lp.build(source, tmp_path / "a.lp", target="portable")
    report = lp.build(source, tmp_path / "b.lp", target="portable", packs=[Pack()])
    assert [one.layer for one in report.layers] == [running.name]
    assert report.verification is not None and report.verification.passed
    for rows in (2, 5, 9):
        x = torch.randn(rows, 4)
        got = lp.load(tmp_path / "b.lp")(x=x.numpy())["output"]
        assert torch.allclose(torch.from_numpy(got), torch.tanh(torch.cumsum(x * 0.5, 0)), atol=1e-6)
