"""What a claim's evidence is: the example's calls where they tell something, and probes at other magnitudes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerport as lp
from layerport.front.claim_records import Claim
from layerport.front.claims import ClaimedModel, claim_layers
from layerport.front.probes import LARGEST_INPUT, MAGNITUDES, cut_inputs, probe_inputs
from layerport.front.sources import Source
from layerport.packs.host import load

Forward = Callable[..., Any]


@lp.layer("lp_proving::scaled")
def scaled(x: Tensor, weight: lp.Param) -> Tensor:
    return x * weight


@lp.layer("lp_proving::shifted")
def shifted(x: Tensor, weight: lp.Param) -> Tensor:
    return x * weight + 100.0


@lp.layer("lp_proving::relu")
def relu(x: Tensor) -> Tensor:
    return torch.relu(x)


@lp.layer("lp_proving::norm")
def norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


@lp.layer("lp_proving::doubled")
def doubled(x: Tensor) -> Tensor:
    return x * 2


@lp.layer("lp_proving::largest")
def largest(x: Tensor) -> Tensor:
    return x.argmax(-1)


@lp.layer("lp_proving::rows")
def rows(index: Tensor, weight: lp.Param) -> Tensor:
    return weight[index]


@lp.layer("lp_proving::writing")
def writing(x: Tensor) -> Tensor:
    return x.mul_(2)


@lp.layer("lp_proving::writing_weight")
def writing_weight(x: Tensor, weight: lp.Param) -> Tensor:
    return x * weight.mul_(2)


@lp.layer("lp_proving::drawing")
def drawing(x: Tensor) -> Tensor:
    return x * 2 + torch.rand(())


@lp.layer("lp_proving::masked")
def masked(x: Tensor, keep: Tensor) -> Tensor:
    return x.masked_fill(~keep, 0.0)


LAYERS = (scaled, shifted, relu, norm, doubled, largest, rows, writing, writing_weight, drawing, masked)


class Pack:
    """Claims every module of class `Part` with what the test says."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer = answer

    @lp.hookimpl
    def layerport_layers(self) -> Any:
        return LAYERS

    @lp.hookimpl
    def layerport_export_parameters(self, module: nn.Module) -> Any:
        return self.answer(module) if isinstance(module, Part) else None


class Part(nn.Module):
    """A module whose forward a test gives."""

    def __init__(self, compute: Forward, **tensors: Tensor) -> None:
        super().__init__()
        self.compute = compute
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.compute(self, *args, **kwargs)


class Around(nn.Module):
    """Calls its part once for each of its inputs."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *inputs: Any) -> Any:
        return [self.part(*one) if isinstance(one, tuple) else self.part(one) for one in inputs]


@pytest.fixture(autouse=True)
def no_installed_packs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("layerport.packs.host.discover", lambda environ=None: ())
    yield


def claimed(part: nn.Module, answer: Callable[[Any], Any], *inputs: Any) -> ClaimedModel:
    return claim_layers(Source(Around(part).eval(), inputs), load(Pack(answer)))


def claim(part: nn.Module, answer: Callable[[Any], Any], *inputs: Any) -> Claim:
    (only,) = claimed(part, answer, *inputs).claims
    return only


def positive(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3)).add(0.5).to(dtype)


WEIGHT = nn.Parameter(torch.linspace(0.5, 1.5, 4), requires_grad=False)


# Examples that prove nothing


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_prove_nothing(value: float) -> None:
    part = Part(lambda self, x: x * self.weight, weight=WEIGHT)
    for answer in (lambda m: shifted.bind(weight=m.weight), lambda m: scaled.bind(weight=m.weight)):
        only = claim(part, answer, torch.full((2, 4), value))
        assert (only.status, only.telling) == ("ambiguous", 0)
        assert only.reason == (
            "its output on the example inputs has no finite value other than zero, which proves nothing"
        )


def test_finite_values_beside_nan_are_evidence() -> None:
    part = Part(lambda self, x: x * self.weight, weight=WEIGHT)
    x = positive(3, 4)
    x[0, 0], x[1, 1] = float("nan"), float("inf")
    assert claim(part, lambda m: scaled.bind(weight=m.weight), x).status == "claimed"
    assert claim(part, lambda m: shifted.bind(weight=m.weight), x).status == "refused"


def test_one_call_of_zeros_among_several_is_no_ambiguity() -> None:
    part = Part(lambda self, x: x + x)
    only = claim(part, lambda m: doubled.bind(), torch.zeros(2, 4), positive(2, 4), torch.zeros(2, 4))
    assert (only.status, only.calls, only.telling) == ("claimed", 3, 1)
    assert only.evidence == "1 of 3 example calls, probes at magnitude 0.001, 1, 30, 1000"


# Probes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("compute", "answer"),
    [
        (lambda self, x: x.clamp(0, 6), lambda m: relu.bind()),
        (lambda self, x: x.clamp(min=0).clamp(max=500), lambda m: relu.bind()),
        (lambda self, x: x.clamp(-6, 6), lambda m: lp.rewrite(lambda module, x: doubled(x) / 2, layers=(doubled,))),
        (lambda self, x: norm.reference(x, 1e-5), lambda m: norm.bind(eps=1e-6)),
        (lambda self, x: norm.reference(x, 1e-6), lambda m: norm.bind(eps=1e-5)),
        (lambda self, x: x.abs(), lambda m: relu.bind()),
        (lambda self, x: nn.functional.relu(x) + (x > 20) * x, lambda m: relu.bind()),
    ],
    ids=["relu6", "relu500", "rewrite", "eps too small", "eps too large", "abs", "two branches"],
)
def test_what_the_example_does_not_show(compute: Forward, answer: Any, dtype: torch.dtype) -> None:
    only = claim(Part(compute), answer, positive(4, 8, dtype=dtype))
    assert only.status == "refused"
    assert only.errors[1] <= 5e-3  # the example itself agrees
    assert "at inputs of magnitude " in only.faults[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [5, 64])
def test_a_norm_that_is_right_is_claimed(dtype: torch.dtype, width: int) -> None:
    only = claim(
        Part(lambda self, x: norm.reference(x, 1e-6)), lambda m: norm.bind(eps=1e-6), positive(4, width).to(dtype)
    )
    assert only.status == "claimed"
    assert [probe.magnitude for probe in only.probes] == list(MAGNITUDES)
    assert all(probe.nothing is None for probe in only.probes)


def test_a_norm_in_16_bits_throughout_is_not_refused_for_its_own_rounding() -> None:
    """At 1e-3 its squares are subnormal in float16; the layer, which computes in float32, is nearer to the truth."""

    def rough(self: Any, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)

    only = claim(Part(rough), lambda m: norm.bind(eps=1e-6), positive(4, 64, dtype=torch.float16))
    assert only.status == "claimed"
    told = {probe.magnitude: probe.nothing for probe in only.probes}
    assert told[1.0] is None
    assert "by its rounding" in str(told[1e-3]) and told[1e3] == "its output there is all zeros"


def test_a_gated_product_in_float16_is_claimed() -> None:
    """Products of small values are subnormal, and sums of large ones overflow."""
    down = nn.Linear(64, 64, bias=False).half()

    class Gated(Part):
        def __init__(self) -> None:
            super().__init__(lambda self, x: self.down(doubled.reference(x) * torch.sigmoid(x)))
            self.down = down

    answer = lp.rewrite(lambda module, x: module.down(doubled(x) * torch.sigmoid(x.float()).half()), layers=(doubled,))
    assert claim(Gated(), lambda m: answer, positive(4, 64, dtype=torch.float16)).status == "claimed"


def test_a_module_that_takes_only_some_numbers_is_probed_with_these() -> None:
    part = Part(lambda self, x: x * 2 if bool((x > 0).all()) else x * float("nan"))
    only = claim(part, lambda m: doubled.bind(), positive(4, 8))
    assert only.status == "claimed"
    assert all(probe.nothing is None for probe in only.probes)


def test_a_probe_on_which_the_module_fails_proves_nothing_and_says_so() -> None:
    def choosy(self: Any, x: Tensor) -> Tensor:
        if float(x.abs().max()) > 10:
            raise ValueError("too large")
        return x * 2 if float(x.abs().max()) > 0.1 else x * 0

    only = claim(Part(choosy), lambda m: doubled.bind(), positive(4, 8))
    assert only.status == "claimed"
    assert {probe.magnitude: probe.nothing for probe in only.probes} == {
        1e-3: "its output there is all zeros",
        1.0: None,
        30.0: "the module fails: ValueError: too large",
        1e3: "the module fails: ValueError: too large",
    }
    assert only.record().to_json()["evidence"] == {
        "kind": "examples",
        "calls": 1,
        "telling_calls": 1,
        "probes": [probe.to_json() for probe in only.probes],
        "probed_at": None,
        "summary": "1 of 1 example call, probes at magnitude 1",
    }


def test_indices_and_masks_stay_what_they_are() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def compute(self: Any, x: Tensor, keep: Tensor) -> Tensor:
        if type(x) is Tensor:  # a trace has others
            seen.append((x.clone(), keep.clone()))
        return x.masked_fill(~keep, 0.0)

    x, keep = positive(4, 8), torch.tensor([True, False] * 4)
    assert claim(Part(compute), lambda m: masked.bind(), (x, keep)).status == "claimed"
    assert len({float(x.abs().max()) for x, _ in seen}) > len(MAGNITUDES) and all(torch.equal(k, keep) for _, k in seen)
    weight = nn.Parameter(torch.randn(5, 3), requires_grad=False)
    part = Part(lambda self, index: self.weight[index], weight=weight)
    only = claim(part, lambda m: rows.bind(weight=m.weight), torch.tensor([4, 0, 2]))
    assert (only.status, only.probes) == ("claimed", ())
    assert only.evidence == "1 of 1 example call, no probe"


def test_a_module_that_must_not_see_other_numbers_is_not_probed() -> None:
    seen: list[Tensor] = []

    def compute(self: Any, x: Tensor, index: Tensor) -> Tensor:
        if type(index) is Tensor:  # a trace has others
            seen.append(index.clone())
        return x[index.to(torch.int64)]  # of a larger one it raises, and a library's own might read any memory

    def take(module: nn.Module, x: Tensor, index: Tensor) -> Tensor:
        result: Tensor = rows(index.to(torch.int64), x)
        return result

    index = torch.tensor([3.0, 0.0])
    only = claim(Part(compute), lambda m: lp.rewrite(take, layers=(rows,), probe=False), (positive(4, 8), index))
    assert (only.status, only.evidence) == ("claimed", "1 of 1 example call, no probe")
    assert seen and all(torch.equal(one, index) for one in seen)


def test_large_inputs_are_cut_where_the_module_takes_that() -> None:
    sizes: list[tuple[int, ...]] = []

    def compute(self: Any, x: Tensor) -> Tensor:
        if type(x) is Tensor:  # a trace has others
            sizes.append(tuple(x.shape))
        return x * 2

    x = positive(2, 300, 64)
    assert claim(Part(compute), lambda m: doubled.bind(), x).status == "claimed"
    assert sizes.count((2, 300, 64)) == 2 and all(
        size[2] == 64 for size in sizes
    )  # the pass for the samples, the proof
    assert max(a * b * c for a, b, c in sizes[2:]) <= LARGEST_INPUT

    def whole(self: Any, x: Tensor) -> Tensor:
        return compute(self, x.view(2, 300, 64))

    sizes.clear()
    only = claim(Part(whole), lambda m: doubled.bind(), x)
    assert only.status == "claimed" and set(sizes) == {(2, 300, 64)}
    assert all(probe.nothing is None for probe in only.probes)


def test_a_candidate_that_minds_cut_inputs_is_asked_with_whole_ones() -> None:
    rewrite = lp.rewrite(lambda module, x: doubled(x.view(2, 300, 64)), layers=(doubled,))
    only = claim(Part(lambda self, x: x * 2), lambda m: rewrite, positive(2, 300, 64))
    assert only.status == "claimed" and all(probe.nothing is None for probe in only.probes)


def test_large_modules_of_one_kind_are_probed_once() -> None:
    runs: list[str] = []

    class Two(nn.Module):
        def __init__(self, limits: tuple[float, float]) -> None:
            super().__init__()
            for name, limit in zip("ab", limits, strict=True):
                weight = nn.Parameter(torch.full((1200, 1200), 0.5), requires_grad=False)
                setattr(self, name, Part(compute, weight=weight))
                getattr(self, name).limit, getattr(self, name).name = limit, torch.tensor(ord(name))

        def forward(self, x: Tensor) -> Any:
            return self.b(self.a(x))

    def compute(self: Any, x: Tensor) -> Tensor:
        runs.append(chr(int(self.name)))
        return (x * self.weight[0]).clamp(max=self.limit)

    def answer(module: Any) -> Any:
        return lp.rewrite(rewritten, layers=(doubled,))

    def prove(*limits: float) -> tuple[Claim, ...]:
        runs.clear()
        return claim_layers(Source(Two((limits[0], limits[1])).eval(), (positive(2, 1200),)), load(Pack(answer))).claims

    one, other = prove(6.0, 7.0)
    assert (one.probed_at, other.probed_at) == (None, None)
    assert "magnitude 30: " in one.faults[1] and "magnitude 30: " in other.faults[1]


def rewritten(module: Any, x: Tensor) -> Tensor:
    """Without the bound of the module."""
    return doubled(x * module.weight[0]) / 2


def test_the_probes_of_one_kind_stand_for_the_others() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weights = [nn.Parameter(torch.rand(1200, 1200), requires_grad=False) for _ in range(3)]
            self.parts = nn.ModuleList(Part(bounded, weight=weight) for weight in weights)

        def forward(self, x: Tensor) -> Any:
            return [part(x) for part in self.parts]

    source = Source(Many().eval(), (positive(2, 1200),))
    claims = claim_layers(source, load(Pack(lambda module: lp.rewrite(rewritten, layers=(doubled,))))).claims
    assert [claim.probed_at for claim in claims] == [None, "parts.0", "parts.0"]
    assert {claim.status for claim in claims} == {"refused"}
    assert claims[2].faults[1].endswith("as parts.0 shows")


def bounded(self: Any, x: Tensor) -> Tensor:
    return (x * self.weight[0]).clamp(max=6.0)


def test_a_probe_has_the_shapes_and_types_of_the_example() -> None:
    x = torch.randn(3, 4).half()
    example = ((x, {"same": x, "mask": torch.tensor([True]), "index": torch.tensor([3])}, 5, None, "text"), {})
    made = probe_inputs(example, 1e3, from_real=False)
    (new, named, *rest), _ = made
    assert (new.shape, new.dtype, rest) == (x.shape, x.dtype, [5, None, "text"])
    assert named["same"] is new and named["mask"] is example[0][1]["mask"] and named["index"].item() == 3
    assert 100 < float(new.abs().max()) < 10_000
    assert torch.equal(new, probe_inputs(example, 1e3, from_real=False)[0][0])
    rescaled = probe_inputs(example, 1e-3, from_real=True)[0][0]
    assert torch.equal(rescaled.sign(), x.sign())


def test_a_size_that_is_cut_is_cut_everywhere() -> None:
    x, mask, small = torch.zeros(8, 128, 64), torch.ones(8, 1, 128, 128, dtype=torch.bool), torch.zeros(3, 3)
    cut = cut_inputs(((x, mask, small), {}))[0]
    batch, sequence, width = cut[0].shape
    assert width == 64 and batch * sequence * width <= LARGEST_INPUT
    assert cut[1].shape == (batch, 1, sequence, sequence) and cut[2] is not None and cut[2].shape == (3, 3)
    same = ((torch.zeros(4, 4),), {})
    assert cut_inputs(same) is same


# Modules that can be no layer


def test_a_module_that_changes_its_input_is_refused() -> None:
    for compute in (lambda self, x: x.mul_(2), lambda self, x: x.data.mul_(2), lambda self, x: x[:1].zero_() + x * 2):
        only = claim(Part(compute), lambda m: doubled.bind(), positive(2, 4))
        assert (only.status, only.reason) == ("refused", "it changes its input, which a layer cannot")


def test_a_module_that_draws_random_numbers_is_refused() -> None:
    def with_numpy(self: Any, x: Tensor) -> Tensor:
        return x * 2 + float(np.random.random()) * 0

    for compute in (
        lambda self, x: nn.functional.dropout(x, 0.5, training=True),
        lambda self, x: x * 2 + torch.rand_like(x) * 0,
        lambda self, x: x * 2 + random.random() * 0,
        with_numpy,
    ):
        only = claim(Part(compute), lambda m: doubled.bind(), positive(2, 4))
        assert (only.status, only.reason) == ("refused", "it draws random numbers, which a layer cannot")


def test_a_module_that_counts_in_an_attribute_is_refused() -> None:
    def compute(self: Any, x: Tensor) -> Tensor:
        self.count = getattr(self, "count", 0) + 1
        return x * (1 + self.count)

    only = claim(Part(compute), lambda m: doubled.bind(), positive(2, 4))
    assert only.status == "refused"
    assert only.reason == "it gives other outputs for the same inputs, as if it kept a state that is no buffer"


def test_a_module_that_counts_in_a_buffer_is_no_layer_but_may_be_rewritten() -> None:
    def compute(self: Any, x: Tensor) -> Tensor:
        self.count += 1
        return x * 2 * self.count

    def rewritten(module: Any, x: Tensor) -> Tensor:
        module.count += 1
        return doubled(x) * module.count

    def forgets(module: Any, x: Tensor) -> Tensor:
        return doubled(x) * (module.count + 1)

    x = positive(2, 4)
    for value in (torch.zeros(()), nn.Parameter(torch.zeros(()), requires_grad=False)):
        only = claim(Part(compute, count=value.clone()), lambda m: doubled.bind(), x)
        assert only.status == "refused"
        only = claim(Part(compute, count=value), lambda m: lp.rewrite(rewritten, layers=(doubled,)), x, x, x)
        assert (only.status, only.calls) == ("claimed", 3)
        only = claim(Part(compute, count=value), lambda m: lp.rewrite(forgets, layers=(doubled,)), x)
        assert only.faults[1] == "the module writes to count at each call, its rewrite to nothing"
        assert float(value) == 0


def test_hooks_of_a_module_belong_to_what_it_computes() -> None:
    part = Part(lambda self, x: x * 2)
    part.register_forward_pre_hook(lambda module, args: (args[0] * 3,))
    assert claim(part, lambda m: doubled.bind(), positive(2, 4)).status == "refused"
    rewrite = lp.rewrite(lambda module, x: doubled(x), layers=(doubled,))
    result = claimed(part, lambda m: rewrite, positive(2, 4))
    assert result.claims[0].status == "claimed"
    x = positive(1, 4)
    assert torch.equal(result.model(x)[0], x * 6)


# Candidates that are no layer


def test_a_reference_that_changes_its_input_or_is_not_deterministic() -> None:
    x = positive(2, 4)
    part = Part(lambda self, x: x * 2)
    only = claim(part, lambda m: writing.bind(), x)
    assert only.faults[1] == "its reference changes its input; write it without in-place operators"
    only = claim(part, lambda m: drawing.bind(), x)
    assert only.faults[1] == (
        "its reference gives other outputs for the same inputs: it draws random numbers or keeps a state"
    )
    only = claim(part, lambda m: lp.rewrite(lambda module, x: doubled(x.clamp_(max=1.0)), layers=(doubled,)), x)
    assert only.faults[1] == "its rewrite changes its input; write it without in-place operators"


def test_a_reference_that_changes_its_parameter() -> None:
    weight = nn.Parameter(torch.ones(4), requires_grad=False)
    only = claim(
        Part(lambda self, x: x * 2, weight=weight), lambda m: writing_weight.bind(weight=m.weight), positive(2, 4)
    )
    assert only.faults[1] == "the module writes to nothing at each call, its reference to weight"
    assert torch.equal(weight, torch.ones(4))


# Whole numbers


def test_outputs_of_whole_numbers_are_compared_exactly() -> None:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    assert claim(Part(lambda self, x: x.argmax(-1)), lambda m: largest.bind(), x).status == "claimed"
    only = claim(Part(lambda self, x: x.argmax(-1) + (x[..., 0] > -9).long()), lambda m: largest.bind(), x)
    assert only.status == "refused"
    assert only.faults[1] == "output 0 (int64[5]) differs, and must be equal"
