"""Outputs of a model: any record is taken apart and named by its fields, whether pytree knows it or not."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import layerport as lp
from layerport.front.leaves import output_names


@dataclasses.dataclass
class Keyless(OrderedDict):  # type: ignore[type-arg]
    """A mapping and dataclass that is registered without keys, as the outputs of diffusers are."""

    sample: Tensor
    extra: Any = None

    def __post_init__(self) -> None:
        for name in ("sample", "extra"):
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)


class Held:
    """Neither mapping nor dataclass, registered without keys; it flattens in another order than its attributes have."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right


class Hidden:
    """Registered without keys and without attributes to be named by."""

    __slots__ = ("both",)

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.both = (first, second)


@dataclasses.dataclass
class Unknown:
    """A dataclass that pytree does not know."""

    logits: Tensor
    missing: Tensor | None = None
    parts: Any = None


class Pair(NamedTuple):
    """Pytree names it."""

    first: Any
    second: Any


class Batch(UserDict):  # type: ignore[type-arg]
    """A mapping that pytree does not know."""


pytree.register_pytree_node(Keyless, pytree._dict_flatten, lambda v, c: Keyless(**dict(zip(c, v, strict=True))))
pytree.register_pytree_node(Held, lambda one: ([one.right, one.left], None), lambda v, c: Held(*reversed(list(v))))
pytree.register_pytree_node(Hidden, lambda one: (list(one.both), None), lambda v, c: Hidden(*v))


@pytest.fixture(autouse=True)
def no_installed_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERPORT_DISABLE_PACKS", "builtin_layers")


class Gives(torch.nn.Module):
    """Gives what a function makes of x + 1, x + 2 and x + 3."""

    def __init__(self, make: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x + 1, x + 2, x + 3)


CASES: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Any], dict[str, int]]] = {
    "mapping without keys": (lambda a, b, c: Keyless(a, b), {"sample": 1, "extra": 2}),
    "its empty field": (lambda a, b, c: Keyless(a), {"sample": 1}),
    "nested in itself": (lambda a, b, c: Keyless(a, Keyless(b, c)), {"sample": 1, "extra_sample": 2, "extra_extra": 3}),
    "class without keys": (lambda a, b, c: Held(a, b), {"right": 2, "left": 1}),
    "class without names": (lambda a, b, c: Hidden(a, b), {"output_0": 1, "output_1": 2}),
    "dataclass": (lambda a, b, c: Unknown(b), {"logits": 2}),
    "dataclass in a tuple": (
        lambda a, b, c: (a, Unknown(b, parts=[c])),
        {"output_0": 1, "output_1_logits": 2, "output_1_parts_0": 3},
    ),
    "dataclass in a dict": (lambda a, b, c: {"it": Unknown(c, a)}, {"it_logits": 3, "it_missing": 1}),
    "named tuple": (lambda a, b, c: Pair(a, Pair(b, c)), {"first": 1, "second_first": 2, "second_second": 3}),
    "dataclass in a named tuple": (lambda a, b, c: Pair(Unknown(a), b), {"first_logits": 1, "second": 2}),
    "unknown mapping": (
        lambda a, b, c: Batch(pixel_values=a, mask=Batch(inner=b)),
        {"pixel_values": 1, "mask_inner": 2},
    ),
    "list": (lambda a, b, c: [a, [b, c]], {"output_0": 1, "output_1_0": 2, "output_1_1": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_named_by_their_fields(case: str, tmp_path: Path) -> None:
    make, expected = CASES[case]
    model, x = Gives(make), torch.randn(2, 3)
    report = lp.build((model, (x,)), tmp_path / "it.lp", target="portable")
    assert report.verification is not None and report.verification.passed
    with lp.load(report.path) as session:
        got = session(x=x)
    assert list(got) == list(expected)
    for name, added in expected.items():
        np.testing.assert_allclose(got[name], x.numpy() + added, rtol=1e-6)
    assert "forward" not in vars(model)
    assert type(model(x)) is type(make(x, x, x))


def test_one_tensor_twice_in_a_record() -> None:
    x = torch.ones(1)
    assert output_names(Keyless(x, x)) == ["sample", "extra"]


def test_outputs_that_are_no_tensors_are_all_named(tmp_path: Path) -> None:
    model = Gives(lambda a, b, c: {"good": a, "count": 3, "deep": Unknown("text", parts=(b, 2.5))})  # type: ignore[arg-type]
    with pytest.raises(lp.UsageError) as caught:
        lp.build((model, (torch.ones(2),)), tmp_path / "it.lp", target="portable")
    assert caught.value.faults == (
        "output count is a int, not a tensor",
        "output deep_logits is a str, not a tensor",
        "output deep_parts_1 is a float, not a tensor",
    )
    assert not (tmp_path / "it.lp").exists()
