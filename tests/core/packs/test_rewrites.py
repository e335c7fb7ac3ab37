"""Rewrites: checked when they are made, with all faults at once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import layerport as lp
from layerport.errors import UsageError


@lp.layer("test_records::twice")
def twice(x: Tensor) -> Tensor:
    return x * 2.0


class Gate(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0


def plain(module: torch.nn.Module, x: Tensor) -> Tensor:
    result: Tensor = twice(x)
    return result


def capturing(module: torch.nn.Module) -> Callable[..., Any]:
    def forward(copy: torch.nn.Module, x: Tensor) -> Any:
        return module(x)

    return forward


def yielding(module: torch.nn.Module, x: Tensor) -> Any:
    yield x


async def waiting(module: torch.nn.Module, x: Tensor) -> Any:
    return x


def nothing() -> None:
    pass


def test_a_rewrite_is_a_frozen_record() -> None:
    rewrite = lp.rewrite(plain, layers=[twice])
    assert (rewrite.layers, rewrite.probe) == ((twice,), True)
    assert rewrite.forward(Gate(), torch.ones(1)).item() == 2.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        rewrite.layers = ()  # type: ignore[misc]


@pytest.mark.parametrize("forward", [functools.partial(plain), lambda module, **inputs: None, max])
def test_any_callable_that_takes_the_copy_first_will_do(forward: Callable[..., Any]) -> None:
    assert lp.rewrite(forward, layers=(twice,)).forward is forward


@pytest.mark.parametrize(
    ("forward", "fault"),
    [
        (5, "forward: expected a function, got int 5"),
        (yielding, "forward: expected a function that returns its outputs, got a generator function"),
        (waiting, "forward: expected a function that returns its outputs, got an async function"),
        (nothing, "forward: it takes no positional argument; its first one is the copy of the module"),
        (Gate().forward, "forward: it belongs to the original module"),
        (Gate(), "forward: it belongs to the original module"),
        (capturing(Gate()), "forward: it captures the original module as 'module'"),
    ],
)
def test_a_forward_that_cannot_serve_the_copy_is_refused(forward: Any, fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        lp.rewrite(forward, layers=(twice,))
    (found,) = caught.value.faults
    assert found.startswith(fault)


@pytest.mark.parametrize(
    ("layers", "fault"),
    [
        ((), "layers: expected at least one layer, got none"),
        (twice, "layers: expected a tuple of layers, got the layer test_records::twice; write (twice,)"),
        ((twice, "x"), "layers[1]: expected a layer, got str 'x'"),
        ("x", "layers: expected a tuple of layers, got str 'x'"),
    ],
)
def test_layers_that_are_no_layers_are_refused(layers: Any, fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        lp.rewrite(plain, layers=layers)
    assert caught.value.faults == (fault,)


def test_all_faults_come_at_once_with_the_repair() -> None:
    with pytest.raises(UsageError) as caught:
        lp.rewrite(nothing, layers=())
    assert str(caught.value) == (
        "rewrite nothing has 2 faults\n"
        "  - forward: it takes no positional argument; its first one is the copy of the module\n"
        "  - layers: expected at least one layer, got none\n"
        "  to repair: write lp.rewrite(forward, layers=(my_layer,)) with a function forward(module, *inputs)"
    )


def test_whether_to_probe_is_a_bool() -> None:
    with pytest.raises(UsageError) as info:
        lp.rewrite(plain, layers=(twice,), probe=0)  # type: ignore[arg-type]
    assert info.value.faults == ("probe: expected a bool, got int 0",)
