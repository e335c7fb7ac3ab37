"""The conformance kit on layers whose sizes are special: given by attributes, all equal, or known to the case alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from layerport.front import bodies
from layerport.testing.conformance import network_checks
from layerport.testing.conformance.kit import checks_of, judge
from layerport.testing.conformance.records import Verdict
from layerport.testing.conformance.subjects import Subject
from packs.zoo_conformance import TEXT

_numbers = itertools.count()

SIZES = """
import torch
from torch import Tensor

import layerport as lp
from layerport.testing import CaseShape, LayerCase, Tolerance

CLOSE = {"float32": Tolerance(1e-5, 1e-5)}


@lp.layer("NAMESPACE::placed")
def placed(x: Tensor, places: Tensor, rows: int) -> Tensor:
    \"\"\"Rows written into a map of so many.  x: (N, C); places: int64 (N,).\"\"\"
    if places.shape != x.shape[:1]:
        raise ValueError("placed: shapes do not fit")
    number = torch.arange(1, x.shape[0] + 1)
    last = torch.zeros(rows, dtype=torch.int64).scatter_reduce(0, places, number, "amax")
    known = torch.cat((x.new_zeros(1, x.shape[1]), x))
    return known[last].reshape(1, rows, 1, x.shape[1]).permute(0, 3, 1, 2)


@lp.layer("NAMESPACE::turned")
def turned(x: Tensor) -> Tensor:
    \"\"\"The transposed matrix, of which the case has a square one.  x: (N, C).\"\"\"
    return x.T + 0.0


@turned.shape_rule
def rule(x):
    return (x.dtype, x.shape)


@lp.layer("NAMESPACE::gated")
def gated(x: Tensor, gate: Tensor) -> Tensor:
    \"\"\"x by the sum of both halves of a gate.  x: (N, C); gate: (N, 2 C).\"\"\"
    if gate.shape[0] != x.shape[0] or gate.shape[1] != 2 * x.shape[1]:
        raise ValueError("gated: shapes do not fit")
    return x * gate.reshape(x.shape[0], 2, x.shape[1]).sum(1)


@lp.layer("NAMESPACE::halved")
def halved(x: Tensor) -> Tensor:
    \"\"\"The product of both halves of the last axis.  x: (..., 2 C).\"\"\"
    if x.shape[-1] % 2 != 0:
        raise ValueError("halved: x is not (..., 2 C)")
    one, other = x.chunk(2, -1)
    return one * other


@lp.layer("NAMESPACE::smoothed")
def smoothed(x: Tensor, weight: lp.Param) -> Tensor:
    \"\"\"Each channel by one filter; ONNX wants to know how many there are.  x: (N, C, L); weight: (1, 1, 3).\"\"\"
    return torch.conv1d(x, weight.expand(x.shape[1], 1, 3), groups=x.shape[1])


@lp.hookimpl
def layerport_layers():
    return (placed, turned, gated, smoothed, halved)


ONE = CaseShape("one place", {"x": (1, 1), "places": (1,)}, {"rows": 1}, values={"places": [0]})
CASES = (
    LayerCase(placed, (ONE,), ({"places": "int64", "*": "float32"},), CLOSE),
    LayerCase(turned, (CaseShape("square", {"x": (4, 4)}),), ("float32",), CLOSE),
    LayerCase(gated, (CaseShape("some", {"x": (3, 5), "gate": (3, 10)}),), ("float32",), CLOSE),
    LayerCase(
        halved,
        (CaseShape("one of each", {"x": (2,)}), CaseShape("some", {"x": (2, 3, 8)})),
        ("float32",),
        CLOSE,
    ),
    LayerCase(
        smoothed,
        (
            CaseShape("three channels", {"x": (2, 3, 8), "weight": (1, 1, 3)}),
            CaseShape("five channels", {"x": (4, 5, 9), "weight": (1, 1, 3)}),
        ),
        ("float32",),
        CLOSE,
    ),
)
"""


def verdict_of(folder: Path, layer: str, check: str, text: str = SIZES) -> Verdict:
    namespace = f"conformance_sizes_{next(_numbers)}"
    file = folder / f"{namespace}.py"
    file.write_text(text.replace("NAMESPACE", namespace))
    (verdict,) = [judge(one) for one in checks_of(str(file), layers=[layer]) if one.name == check]
    return verdict


def test_sizes_by_attributes_with_one_row_and_one_channel(tmp_path: Path) -> None:
    """The row stays one, as its place is given; the channels need not, though they are one too."""
    verdict = verdict_of(tmp_path, "placed", "shapes")
    assert (verdict.answer, verdict.reason) == ("passed", "")


def test_a_rule_that_is_right_for_equal_sizes_only(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, "turned", "shapes")
    assert verdict.answer == "failed"
    assert "the rule says float32[x.0, x.1] of output 0, the reference gives" in verdict.reason


def test_sizes_that_only_the_case_knows_have_a_body(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, "gated", "onnx")
    assert (verdict.answer, verdict.reason) == ("passed", "")


def test_channels_are_known_where_onnx_takes_their_number(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, "smoothed", "onnx")
    assert (verdict.answer, verdict.reason) == ("passed", "")
    (note,) = verdict.notes
    assert note.startswith("it has an ONNX form only where the sizes of axis 1 are known: the reference of layer ")


def test_a_last_axis_is_known_where_onnx_cuts_it(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, "halved", "onnx")
    assert (verdict.answer, verdict.reason) == ("passed", "")
    (note,) = verdict.notes
    assert note.startswith("it has an ONNX form only where the sizes of the last axis are known: ")


def test_a_network_is_of_more_than_a_few_elements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr(network_checks, "_build", lambda subject, cases, target: built.extend(one.id for one in cases))
    assert verdict_of(tmp_path, "halved", "network").answer == "passed"
    assert built == ["halved-some-float32"]


def test_one_derivation_serves_rule_and_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(bodies, "derive", lambda *args, **named: made.append(args))
    assert verdict_of(tmp_path, "scaled", "onnx", TEXT).answer == "passed"
    assert not made


def test_launches_need_no_derivation_where_the_reference_tells_its_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr(Subject, "_derive", lambda *args: made.append(args))
    assert verdict_of(tmp_path, "scaled", "launch", TEXT).answer == "passed"
    assert not made
