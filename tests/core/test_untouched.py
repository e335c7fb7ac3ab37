"""A build leaves the user's process as it found it: tensors, modules, inputs, settings and random states."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import layerport as lp
from layerport.errors import UsageError
from layerport.front.claims import claim_layers
from layerport.front.samples import record_outputs
from layerport.front.sources import Source
from layerport.packs.host import load
from layerport.packs.torch_state import RandomStates, Settings
from layerport.packs.torch_writes import ReadOnly, same_bits


@lp.layer("lp_untouched::doubled")
def doubled(x: Tensor) -> Tensor:
    return x * 2


def rewritten(module: Any, x: Tensor) -> Tensor:
    return doubled(counted(module, x)) / 2


def counted(module: Any, x: Tensor) -> Tensor:
    module.count += 1
    return x * module.count


class Pack:
    @lp.hookimpl
    def layerport_layers(self) -> Any:
        return (doubled,)

    @lp.hookimpl
    def layerport_export_parameters(self, module: nn.Module) -> Any:
        return lp.rewrite(rewritten, layers=(doubled,)) if isinstance(module, Counter) else None


class Counter(nn.Module):
    """Each call counts in a buffer and multiplies by what it has counted."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return counted(self, x)


class Careless(nn.Module):
    """Changes everything that a forward can reach."""

    def __init__(self, deed: Callable[[Any, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.counter = Counter()
        self.weight = nn.Parameter(torch.full((4,), 2.0), requires_grad=False)
        self.trained = nn.Parameter(torch.full((4,), 2.0))
        self.register_buffer("seen", torch.zeros(4), persistent=False)
        self.calls = 0
        self.history: list[Any] = []
        self.deed = deed or (lambda module, x: None)
        self.register_forward_hook(lambda *given: None)

    def forward(self, x: Tensor, more: dict[str, Tensor] | None = None) -> Tensor:
        self.calls += 1
        self.history.append(self.calls)
        y = self.counter(x) * self.weight * self.calls
        self.seen.add_(x.sum(0))
        self.weight.mul_(3)
        self.trained.data.zero_()
        x.add_(1)
        if more is not None:
            more["shift"].zero_()
        self.deed(self, x)
        return y


def change_settings(module: Any, x: Tensor) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(5)
    random.random()
    np.random.random()
    module.register_forward_hook(lambda *given: None)
    module.trained.data = torch.ones(2)


def fail(module: Any, x: Tensor) -> None:
    change_settings(module, x)
    raise ValueError("after all that")


def world(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """All that must stay."""
    return {
        "tensors": {name: (id(t), t.data_ptr(), t.detach().clone()) for name, t in named(model)},
        "gradients": {name: t.grad for name, t in model.named_parameters()},
        "modules": [(path, id(module), type(module), module.training) for path, module in model.named_modules()],
        "attributes": {
            (path, name): (id(value), repr(value))
            for path, module in model.named_modules()
            for name, value in vars(module).items()
            if name not in ("_parameters", "_buffers", "_modules")
        },
        "inputs": [(id(leaf), leaf.clone()) for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)],
    }


def named(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return same_bits(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return bool(one == other)


@pytest.fixture(autouse=True)
def settings_afterwards() -> Iterator[None]:
    settings, states = Settings(), RandomStates()
    yield
    settings.restore()
    states.restore()


@pytest.fixture(autouse=True)
def no_installed_packs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("layerport.packs.host.discover", lambda environ=None: ())
    yield


def example() -> tuple[Any, ...]:
    return (torch.ones(2, 4), {"shift": torch.ones(1)})


@pytest.mark.parametrize("deed", [None, change_settings, fail])
def test_the_passes_leave_the_world_as_it_was(deed: Any) -> None:
    model, inputs = Careless(deed).train(), example()
    before, settings, states = world(model, inputs), Settings(), RandomStates()
    raised = None
    try:
        claimed = claim_layers(Source(model, inputs), load(Pack()))
    except UsageError as error:
        raised = error
    assert (raised is not None) == (deed is fail)
    after = world(model, inputs)
    for part in before:
        assert same(before[part], after[part]), part
    assert settings.changes() == [] and states.changes() == []
    if deed is None:
        assert torch.equal(claimed.outputs, torch.full((2, 4), 2.0))  # the first call of a fresh model
        assert claimed.claims[0].status == "claimed"
        assert claimed.model.calls == 0 and float(claimed.model.counter.count) == 0


@pytest.mark.parametrize("required_grad", [False, True])
def test_a_whole_build_leaves_the_world_as_it_was(tmp_path: Path, required_grad: bool) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.counter = Counter()
            self.linear = nn.Linear(4, 4)
            self.linear.requires_grad_(required_grad)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.counter(x))

    model, inputs = Counting(), (torch.ones(2, 4),)
    with torch.no_grad():
        truth = model.linear(torch.ones(2, 4))
    before, settings, states = world(model, inputs), Settings(), RandomStates()
    report = lp.build((model, inputs), tmp_path / "out.lp", packs=[Pack()], target="portable")
    after = world(model, inputs)
    for part in before:
        assert same(before[part], after[part]), part
    assert settings.changes() == [] and states.changes() == []
    assert report.verification is not None and report.verification.passed
    assert report.claims[0].status == "claimed"
    torch.testing.assert_close(record_outputs(Source(model, inputs)), truth)


def test_an_exported_program_stays_what_it_is(tmp_path: Path) -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            self.count.add_(1)
            return x * self.count, self.count

    program = torch.export.export(Keeps(), (torch.ones(2, 3),))
    outputs = record_outputs(Source(program, (torch.ones(2, 3),)))
    assert torch.equal(outputs[0], torch.ones(2, 3)) and float(outputs[1]) == 1
    lp.build(program, tmp_path / "out.lp", target="portable", verify=False)
    assert float(program.state_dict["count"]) == 0
    args, _ = program.example_inputs
    assert torch.equal(args[0], torch.ones(2, 3))


def test_inputs_that_share_memory_share_it_in_the_pass() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            x.add_(1)
            return y * 1

    x = torch.zeros(4)
    assert torch.equal(record_outputs(Source(Writes(), (x, x[:2]))), torch.ones(2))
    assert torch.equal(x, torch.zeros(4))


def test_inputs_that_autograd_made_and_a_small_part_of_something_large() -> None:
    made = torch.ones(3, requires_grad=True) * 2
    part = torch.ones(10_000)[:3]
    output = record_outputs(Source(nn.Identity(), (made,)))
    assert torch.equal(output, made) and not output.requires_grad
    assert record_outputs(Source(nn.Identity(), (part,))).untyped_storage().nbytes() == part.nbytes


def test_a_model_whose_parameters_have_no_shape_yet() -> None:
    with pytest.raises(UsageError) as caught:
        record_outputs(Source(nn.Sequential(nn.LazyLinear(3)), (torch.ones(2, 4),)))
    assert caught.value.fault == "parameter 0.weight of Sequential has no shape yet"
    assert "run the model once" in str(caught.value.repair)


@pytest.mark.parametrize(
    "write",
    [
        lambda p: p.data.mul_(2),
        lambda p: p.zero_(),
        lambda p: torch.add(p, 1, out=p),
        lambda p: setattr(p, "data", torch.ones(5)),
        lambda p: torch._foreach_add_([p], 1.0),
        lambda p: p[:2].fill_(0),
        lambda p: p.detach().copy_(torch.zeros(4)),
        lambda p: nn.init.zeros_(p),
        lambda p: p.view(2, 2).t_().add_(1),
        lambda p: p.set_(torch.ones(3)),
    ],
)
def test_writes_are_found_and_undone(write: Callable[[Any], Any]) -> None:
    parameter, other = nn.Parameter(torch.arange(4.0)), nn.Parameter(torch.arange(4.0))
    with torch.no_grad(), ReadOnly({"p": parameter, "other": other}) as kept:
        (parameter * other).sum()
        assert kept.written() == []
        write(parameter)
        assert kept.written() == ["p"]
    assert torch.equal(parameter, torch.arange(4.0)) and torch.equal(other, torch.arange(4.0))


def test_only_what_is_written_is_copied() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    with torch.no_grad(), ReadOnly(dict(model.named_parameters())) as kept:
        model(torch.ones(1, 64))
        model[2].bias.zero_()
        assert kept.written() == ["2.bias"]
        assert len(kept._before) == 1
