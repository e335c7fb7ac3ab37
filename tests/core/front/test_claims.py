"""Claims: each proven on the module's real inputs; a wrong one changes nothing and says by how much it missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerport as lp
from layerport.errors import UsageError
from layerport.front.claimed_layers import ClaimedLayer
from layerport.front.claims import ClaimedModel, claim_layers
from layerport.front.copies import structural_copy
from layerport.front.sources import Source
from layerport.packs.host import Packs, load
from small_models import Net, SmallGate, SmallScale, net, sample
from small_setup import SMALL

Answer = Callable[[nn.Module, str], Any]


@lp.layer("lp_claims::double")
def double(x: Tensor) -> Tensor:
    return x * 2.0


@lp.layer("lp_claims::add")
def add(x: Tensor, y: Tensor | None = None) -> Tensor:
    return x if y is None else x + y


@lp.layer("lp_claims::raising")
def raising(x: Tensor) -> Tensor:
    if x.dtype is torch.float64:
        return x
    raise ValueError("not this one")


class Pack:
    """A pack whose claims a test sets."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    @lp.hookimpl
    def layerport_layers(self) -> Any:
        return (double, add, raising)

    @lp.hookimpl
    def layerport_export_parameters(self, module: nn.Module, name: str) -> Any:
        return self.answer(module, name)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x


class Holder(nn.Module):
    def __init__(self, inner: nn.Module, run: bool = True) -> None:
        super().__init__()
        self.inner, self.run = inner, run

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1 if self.run else x


def claim(model: nn.Module, answer: Answer, *args: Any, **options: Any) -> ClaimedModel:
    return claim_layers(Source(model.eval(), args or (sample(),)), load(Pack(answer)), **options)


def on(kind: type[nn.Module], candidate: Any) -> Answer:
    return lambda module, name: candidate() if type(module) is kind else None


@pytest.fixture(autouse=True)
def no_installed_packs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("layerport.packs.host.discover", lambda environ=None: ())
    yield


# What is claimed


def test_the_small_net(small_packs: Packs) -> None:
    model, args, _ = net()
    claimed = claim_layers(Source(model, args), small_packs)
    assert [(one.path, one.status) for one in claimed.claims] == [
        ("first", "claimed"),
        ("gate", "claimed"),
        ("second", "claimed"),
        ("scale", "claimed"),
    ]
    chosen = {one.path: one.chosen.number for one in claimed.claims if one.chosen}
    assert chosen == {"first": 1, "gate": 1, "second": 2, "scale": 1}
    torch.testing.assert_close(claimed.model(*args), model(*args))
    assert torch.equal(claimed.outputs, model(*args))
    kinds = {path: type(module).__name__ for path, module in claimed.model.named_modules()}
    assert kinds["first"] == kinds["second"] == kinds["scale"] == "ClaimedLayer"
    assert kinds["gate"] == "SmallGate"


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        path: (
            type(module),
            id(module),
            module.training,
            {name: id(value) for name, value in vars(module).items() if not name.startswith("_")},
            {name: (id(tensor), tensor._version) for name, tensor in module.named_parameters(recurse=False)},
            {name: (id(tensor), tensor._version) for name, tensor in module.named_buffers(recurse=False)},
            {name: len(hooks) for name, hooks in vars(module).items() if name.endswith("_hooks")},
            "forward" in vars(module),
        )
        for path, module in model.named_modules(remove_duplicate=False)
    }


@pytest.mark.parametrize("training", [True, False])
def test_the_users_model_is_not_changed_at_all(small_packs: Packs, training: bool) -> None:
    model, args, _ = net()
    model.train(training)
    model.gate.register_forward_hook(lambda *given: None)
    before, bytes_before = snapshot(model), {name: t.clone() for name, t in model.state_dict().items()}
    claimed = claim_layers(Source(model, args), small_packs)
    assert snapshot(model) == before
    assert all(torch.equal(tensor, bytes_before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    shared = {tensor.data_ptr() for tensor in model.parameters()}
    assert {tensor.data_ptr() for tensor in claimed.model.parameters()} <= shared
    assert not claimed.model.training


def test_a_module_used_twice_stays_one_module() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = Twice()
            self.list = nn.ModuleList([self.a, nn.Identity(), self.a])

        def forward(self, x: Tensor) -> Tensor:
            for module in self.list:
                x = module(x)
            return self.a(x)

    claimed = claim(Both(), on(Twice, double.bind))
    (only,) = claimed.claims
    assert (only.status, only.calls) == ("claimed", 3)
    assert only.reason == "agrees within 0 (relative) over 3 calls"
    model: Any = claimed.model
    assert model.a is model.list[0] is model.list[2] and isinstance(model.a, ClaimedLayer)
    assert torch.equal(model(torch.ones(1)), torch.full((1,), 8.0))


def test_the_root_itself() -> None:
    claimed = claim(Twice(), on(Twice, double.bind))
    assert isinstance(claimed.model, ClaimedLayer)
    assert claimed.claims[0].path == ""


def test_inputs_by_name_and_left_out() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
            return x if other is None else x + other

    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sum = Sum()

        def forward(self, x: Tensor) -> Tensor:
            return self.sum(self.sum(other=x, x=x), other=None)

    claimed = claim(Uses(), on(Sum, add.bind))
    assert claimed.claims[0].reason == "agrees within 0 (relative) over 2 calls"
    assert torch.equal(claimed.model(torch.ones(2)), torch.full((2,), 2.0))


def test_a_rewrite_whose_children_are_claimed_too() -> None:
    def forward(module: Any, x: Tensor) -> Tensor:
        return add(module.inner(x), torch.ones_like(x))

    def answer(module: nn.Module, name: str) -> Any:
        if type(module) is Holder:
            return lp.rewrite(forward, layers=(add,))
        return double.bind() if type(module) is Twice else None

    claimed = claim(Holder(Twice()), answer)
    assert [(one.path, one.status, one.calls) for one in claimed.claims] == [
        ("", "claimed", 1),
        ("inner", "claimed", 1),
    ]
    model: Any = claimed.model
    assert isinstance(model.inner, ClaimedLayer)
    assert torch.equal(model(torch.ones(2)), torch.full((2,), 3.0))


def test_a_rewritten_forward_has_the_signature_of_the_modules_own() -> None:
    """By which torch.export matches dynamic shapes to inputs, where the whole model is rewritten."""

    def forward(copy: Any, *args: Tensor) -> Tensor:
        return double(args[0]) - args[0] + args[1]

    class Sum(nn.Module):
        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            return x + other

    args = (sample(), sample() + 1)
    claimed = claim(Sum(), on(Sum, lambda: lp.rewrite(forward, layers=(double,))), *args)
    assert claimed.claims[0].status == "claimed"
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(claimed.model, args, dynamic_shapes=({0: batch}, {0: batch}), strict=False)
    assert torch.equal(program.module()(args[0][:1], args[1][:1]), args[0][:1] + args[1][:1])


# What is not claimed, and why


def test_a_wrong_claim_leaves_the_module_and_says_by_how_much() -> None:
    model = Holder(SmallScale())
    claimed = claim(model, on(SmallScale, double.bind))
    (only,) = claimed.claims
    assert only.status == "refused" and only.chosen is None
    assert only.reason == "; ".join(f"{c}: {only.faults[c.number]}" for c in only.candidates)
    assert only.errors[1] > 0.1
    assert f"output 0 is off by {only.errors[1]:.3g} (relative), 0.0001 is allowed" in only.reason
    assert "lp_claims::double of Pack, candidate 1" in only.reason
    assert type(claimed.model.inner).__name__ == "SmallScale"
    assert torch.equal(claimed.model(sample()), model(sample()))


def test_a_claim_that_is_required_and_does_not_hold() -> None:
    for options in ({"required": ["lp_claims::double"]}, {"strict": True}):
        with pytest.raises(UsageError) as caught:
            claim(Holder(SmallScale()), on(SmallScale, double.bind), **options)
        assert caught.value.fault == "claims that must hold do not: 1"
        assert caught.value.faults[0].startswith("inner (SmallScale): refused: lp_claims::double of Pack")
        assert "(relative), 0.0001 is allowed" in caught.value.faults[0]
        assert "mend the pack's export hook" in str(caught.value.repair)


def test_a_refused_layer_is_not_asked_for() -> None:
    claimed = claim(Holder(Twice()), on(Twice, double.bind), refused=["lp_claims::double"])
    assert claimed.claims == ()
    assert type(claimed.model.inner) is Twice


@pytest.mark.parametrize("option", ["required", "refused"])
def test_an_unknown_layer(option: str) -> None:
    with pytest.raises(UsageError) as caught:
        claim(Holder(Twice()), lambda module, name: None, **{option: ["lp_claims::doubel"]})
    assert caught.value.fault == "no loaded pack provides a layer 'lp_claims::doubel'"
    assert "did you mean lp_claims::double" in str(caught.value.repair)


def test_wrong_shape_type_and_number_of_outputs() -> None:
    class Other(nn.Module):
        def __init__(self, deed: str) -> None:
            super().__init__()
            self.deed = deed

        def forward(self, x: Tensor) -> Any:
            answers = {"half": (x + x).half(), "row": (x + x)[:1], "two": (x + x, x), "with": (x + x, 3)}
            return answers[self.deed]

    class Take(nn.Module):
        def __init__(self, deed: str) -> None:
            super().__init__()
            self.inner = Other(deed)

        def forward(self, x: Tensor) -> Any:
            return self.inner(x)

    reasons = {
        deed: claim(Take(deed), on(Other, double.bind)).claims[0].faults[1] for deed in ("half", "row", "two", "with")
    }
    assert reasons == {
        "half": "output 0 is float32[3, 16] where the module gives float16[3, 16]",
        "row": "output 0 is float32[3, 16] where the module gives float32[1, 16]",
        "two": "gives 1 outputs where the module gives 2",
        "with": "gives 1 outputs where the module gives 2",
    }


def test_a_candidate_that_raises() -> None:
    only = claim(Holder(Twice()), on(Twice, raising.bind)).claims[0]
    assert (only.status, only.faults[1]) == ("refused", "ValueError: not this one")


def test_a_module_with_more_inputs_than_the_layer() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x * 2

    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()

        def forward(self, x: Tensor) -> Tensor:
            return self.two(x, x)

    only = claim(Uses(), on(Two, double.bind)).claims[0]
    assert only.status == "refused"
    assert "the module takes 2 inputs, layer lp_claims::double 1" in only.reason


def test_two_candidates_that_agree_are_not_chosen_between() -> None:
    def answer(module: nn.Module, name: str) -> Any:
        return (double.bind(), lp.rewrite(lambda copy, x: double(x), layers=(double,)))

    only = claim(Holder(Twice()), lambda module, name: answer(module, name) if name == "inner" else None).claims[0]
    assert only.status == "ambiguous"
    assert only.reason == (
        "several candidates agree on the example inputs: lp_claims::double of Pack, candidate 1, "
        "lp_claims::double of Pack, candidate 2"
    )
    same = claim(Holder(Twice()), on(Twice, lambda: (double.bind(), double.bind()))).claims[0]
    assert same.status == "claimed"


def test_zeros_prove_nothing() -> None:
    only = claim(Holder(Twice()), on(Twice, double.bind), torch.zeros(2, 3)).claims[0]
    assert only.status == "ambiguous"
    assert only.reason == "its output on the example inputs is all zeros, which proves nothing"


def test_a_module_that_the_inputs_do_not_reach() -> None:
    only = claim(Holder(Twice(), run=False), on(Twice, double.bind)).claims[0]
    assert (only.status, only.reason) == ("not reached", "the example inputs do not run this module")


def test_a_module_inside_a_claimed_one() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = Twice()

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(x)

    def answer(module: nn.Module, name: str) -> Any:
        return double.bind() if type(module) in (Outer, Twice) else None

    claimed = claim(Holder(Outer()), answer)
    assert [(one.path, one.status) for one in claimed.claims] == [
        ("inner", "claimed"),
        ("inner.twice", "inside another claim"),
    ]


def test_a_claim_by_two_packs_lists_both(tmp_path: Path) -> None:
    files = []
    for name in ("left", "right"):
        file = tmp_path / f"{name}.py"
        file.write_text(
            f"import layerport as lp\nfrom torch import Tensor\n\n@lp.layer('lp_rival_{name}::double')\n"
            "def double(x: Tensor) -> Tensor:\n    return x * 2.0\n\n@lp.hookimpl\ndef layerport_layers():\n"
            "    return (double,)\n\n@lp.hookimpl\ndef layerport_export_parameters(module):\n"
            "    return double.bind() if type(module).__name__ == 'Twice' else None\n"
        )
        files.append(str(file))
    source = Source(Holder(Twice()).eval(), (sample(),))
    with pytest.raises(UsageError) as caught:
        claim_layers(source, load(*files))
    assert caught.value.fault == "two packs claim the same module (1 such)"
    assert caught.value.faults == (
        "inner (Twice): lp_rival_left::double of left, candidate 1 and "
        "lp_rival_right::double of right, candidate 2 agree",
    )
    assert caught.value.repair == (
        f"prefer one, as in --prefer {files[0]} or prefer=['{files[0]}'], or block the others with "
        "LAYERPORT_DISABLE_PACKS=name, "
        "or leave one out with --no-claim LAYER for one of lp_rival_left::double, lp_rival_right::double"
    )
    claimed = claim_layers(source, load(*files, prefer=[files[1]]))
    assert claimed.claims[0].chosen is not None and claimed.claims[0].chosen.layers == ("lp_rival_right::double",)
    claimed = claim_layers(source, load(*files), refused=["lp_rival_right::double"])
    assert claimed.claims[0].chosen is not None and claimed.claims[0].chosen.layers == ("lp_rival_left::double",)


def test_example_inputs_that_the_model_does_not_take(small: ModuleType) -> None:
    with pytest.raises(UsageError) as caught:
        claim_layers(Source(Net().eval(), (sample(width=5),)), load(SMALL))
    assert caught.value.fault.startswith("the model Net fails on its own example inputs: RuntimeError: ")
    assert caught.value.__cause__ is not None


def test_a_model_that_cannot_be_copied() -> None:
    class Locked(nn.Module):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("cannot pickle a lock")

    with pytest.raises(UsageError) as caught:
        structural_copy(Holder(Locked()))
    assert caught.value.fault == "model Holder cannot be copied: TypeError: cannot pickle a lock"


def test_a_model_that_keeps_what_it_computed_is_copied() -> None:
    class Keeps(nn.Linear):
        kept: Any = ()

        def forward(self, x: Tensor) -> Tensor:
            self.kept = [super().forward(x)]
            return self.kept[0] * 2

    model = Holder(Keeps(5, 5))
    model(sample(width=5))
    inner: Any = structural_copy(model).inner
    (kept,) = inner.kept
    assert torch.equal(kept, model.inner.kept[0]) and kept is not model.inner.kept[0]
    assert not kept.requires_grad and inner.weight is model.inner.weight


def test_a_gate_that_a_pack_would_get_wrong_is_not_replaced(small: ModuleType) -> None:
    class SmallGate2(SmallGate):
        def forward(self, x: Tensor) -> Tensor:
            return self.down(nn.functional.gelu(self.left(x)) * self.right(x))

    SmallGate2.__name__ = "SmallGate"
    model = Holder(SmallGate2())
    claimed = claim_layers(Source(model.eval(), (sample(),)), load(SMALL))
    assert claimed.claims[0].status == "refused"
    assert torch.equal(claimed.model(sample()), model(sample()))


def test_a_required_layer_that_nobody_claims() -> None:
    packs = load(Pack(lambda module, name: None))
    source = Source(nn.Linear(4, 4), (torch.randn(2, 4),))
    with pytest.raises(UsageError) as caught:
        claim_layers(source, packs, required=["lp_claims::double"])
    assert caught.value.faults == ("lp_claims::double: its pack claims no module of this model",)
