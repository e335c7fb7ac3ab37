"""Claims that lose something: made only where the user names the module, proven against their own bound, and shown."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerport as lp
from layerport.errors import PackError, UsageError
from layerport.packs.lossy import LossyWish, parse_lossy

made: list[str] = []


@lp.layer("lossy_claims::scaled", version=1)
def scaled(x: Tensor, scale: lp.Param) -> Tensor:
    return x * scale


class Scale(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Scale(1.03), Scale(2.06)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def pack(*offers: tuple[float, float], exact: bool = False, make: Any = None) -> Any:
    """Claims each Scale with its scale rounded to multiples of each step, with each bound."""

    def bound(module: Scale, step: float) -> Any:
        made.append(f"{step:g}")
        return scaled.bind(scale=(module.scale / step).round() * step)

    @lp.hookimpl
    def layerport_layers() -> Any:
        return (scaled,)

    @lp.hookimpl
    def layerport_export_parameters(module: nn.Module, name: str) -> Any:
        if not isinstance(module, Scale):
            return None
        lossy = tuple(
            lp.lossy(scaled, make or (lambda step=step: bound(module, step)), bound=limit) for step, limit in offers
        )
        return (*lossy, scaled.bind(scale=module.scale)) if exact else lossy

    made.clear()
    return SimpleNamespace(
        layerport_layers=layerport_layers, layerport_export_parameters=layerport_export_parameters, __name__="lossy"
    )


def build(folder: Path, provider: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    source = (Model().eval(), (torch.randn(3, 4),))
    return lp.build(source, folder / "a.lp", target="portable", packs=[provider], find=(), **options)


def test_nothing_is_lost_without_a_wish(tmp_path: Path) -> None:
    report = build(tmp_path, pack((1.0, 0.1)))
    assert made == [] and report.claims == () and report.losses == {}
    assert "losses" not in json.loads((tmp_path / "a.lp" / "manifest.json").read_text())["samples"]


def test_a_named_module_is_claimed_within_its_bound_and_the_loss_is_shown(tmp_path: Path) -> None:
    report = build(tmp_path, pack((1.0, 0.1)), lossy={"lossy_claims::scaled": "first"})
    (claim,) = report.claims
    assert (claim.module, claim.status, claim.bound) == ("first", "claimed", 0.1)
    assert 0.01 < claim.max_relative_error <= 0.03 and claim.reason.startswith("lossy: agrees within 0.0")
    assert claim.evidence.kind == "examples"
    (loss,) = report.losses.values()
    assert 0.01 < loss.error <= 0.03 and loss.cosine > 0.9999
    assert report.verification.passed and report.verification.outputs[0].loss == loss.error
    manifest = json.loads((tmp_path / "a.lp" / "manifest.json").read_text())
    assert list(manifest["samples"]["losses"].values()) == [{"error": loss.error, "cosine": loss.cosine}]
    assert manifest["claims"][0]["bound"] == 0.1
    # The samples are the model's own, and what was lost is off them.
    assert report.verification.outputs[0].max_rel == pytest.approx(0.03 / 1.03, rel=1e-3)
    again = lp.verify(tmp_path / "a.lp", packs=[pack()])
    assert again.passed and "lossy" in again.outputs[0].answer
    assert not lp.verify(tmp_path / "a.lp", packs=[pack()], rtol=1e-3, atol=0.0).passed


def test_a_claim_beyond_its_own_bound_is_refused(tmp_path: Path) -> None:
    report = build(tmp_path, pack((1.0, 0.01)), lossy={"lossy_claims::scaled": ["first"]})
    (claim,) = report.claims
    assert claim.status == "refused" and "0.01 is allowed" in claim.reason
    assert report.losses == {} and report.verification.outputs[0].max_rel < 1e-5
    with pytest.raises(UsageError, match="claims that must hold do not"):
        build(tmp_path, pack((1.0, 0.01)), lossy=["lossy_claims::scaled=first"], claim=[scaled.name], force=True)


def test_the_first_offer_that_keeps_its_bound_and_the_limit_is_taken(tmp_path: Path) -> None:
    offers = pack((1.0, 0.01), (0.1, 0.08), (0.05, 0.04))
    report = build(tmp_path, offers, lossy={scaled.name: {"*": 0.5}})
    assert [one.bound for one in report.claims] == [0.08, 0.08]
    report = build(tmp_path, offers, lossy=[f"{scaled.name}=*:0.5", f"{scaled.name}=second:0.05"], force=True)
    assert [one.bound for one in report.claims] == [0.08, 0.04]
    made.clear()
    report = build(tmp_path, offers, lossy={scaled.name: {"*": 0.05, "second": 0}}, force=True)
    assert [(one.module, one.bound) for one in report.claims] == [("first", 0.04)]
    assert set(made) == {"1", "0.05"}  # what declares more than the limit is not made


def test_what_loses_nothing_goes_on_where_no_lossy_claim_holds(tmp_path: Path) -> None:
    offers = pack((1.0, 0.1), exact=True)
    report = build(tmp_path, offers, lossy={scaled.name: "first"})
    assert [(one.module, one.bound) for one in report.claims] == [("first", 0.1), ("second", None)]
    offers = pack((1.0, 0.01), exact=True)
    report = build(tmp_path, offers, lossy={scaled.name: "first"}, force=True)
    assert [(one.status, one.bound) for one in report.claims] == [("claimed", None)] * 2 and report.losses == {}


def test_a_wish_that_nothing_answers_is_an_error(tmp_path: Path) -> None:
    offers = pack((1.0, 0.1))
    with pytest.raises(UsageError, match="no module is there to be claimed with a loss") as caught:
        build(tmp_path, offers, lossy=[f"{scaled.name}=third*", f"{scaled.name}=first:0.05", f"{scaled.name}=second"])
    assert caught.value.faults == (f"{scaled.name}=third*", f"{scaled.name}=first:0.05")
    with pytest.raises(UsageError, match="no loaded pack provides a layer 'lossy_claims::other'"):
        build(tmp_path, offers, lossy=["lossy_claims::other=*"])
    program = torch.export.export(Model().eval(), (torch.randn(3, 4),))
    with pytest.raises(UsageError, match="nothing is claimed in"):
        lp.build(program, tmp_path / "b.lp", target="portable", lossy=[f"{scaled.name}=*"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: None,
            "a lossy claim whose function returned NoneType None, expected lossy_claims::scaled",
        ),
        (lambda: 1 / 0, "for layer lossy_claims::scaled at first .* raised ZeroDivisionError"),
    ],
)
def test_a_fault_in_the_function_is_the_packs(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(PackError, match=message):
        build(tmp_path, pack((1.0, 0.1), make=make), lossy={scaled.name: "*"})


def test_an_offer_is_checked_when_it_is_made() -> None:
    for bound in (0.0, -1.0, float("inf"), float("nan"), True, "much"):
        with pytest.raises(UsageError, match="a lossy claim has 1 fault") as caught:
            lp.lossy(scaled, lambda: scaled.bind(scale=torch.ones(4)), bound=bound)  # type: ignore[arg-type]
        assert caught.value.faults[0].startswith("bound: expected a finite number above 0, got ")
    with pytest.raises(UsageError) as caught:
        lp.lossy(scaled.bind(scale=torch.ones(4)), None, bound=0.1)  # type: ignore[arg-type]
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["layer", "make"]


def test_wishes_are_read_from_texts_and_mappings() -> None:
    wanted = (LossyWish("a::b", "model.*"), LossyWish("a::b", "head", 0.5))
    assert parse_lossy(["a::b=model.*", "a::b=head:0.5"]) == wanted
    assert parse_lossy({"a::b": {"model.*": float("inf"), "head": 0.5}}) == wanted
    assert (
        parse_lossy({"a::b": "model.*"}) == parse_lossy("a::b=model.*") == wanted[:1] == parse_lossy(("a::b=model.*",))
    )
    assert [str(one) for one in wanted] == ["a::b=model.*", "a::b=head:0.5"]
    for wrong in ("a::b", "a::b=", "=x", "a::b=x:much", "a::b=x:-1", "a::b=x:nan"):
        with pytest.raises(UsageError, match="wishes for lossy claims cannot be read"):
            parse_lossy([wrong])
    for mapping in ({"a::b": {"x": "much"}}, {"a::b": {1: 0.5}}, {"a::b": {"x": True}}):
        with pytest.raises(UsageError, match="wishes for lossy claims cannot be read"):
            parse_lossy(mapping)  # type: ignore[arg-type]
