"""Rules of attributes: read from annotations, kept to in bind, in Torch and in defaults, shown with the layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
import torch
from torch import Tensor

import layerport as lp
from layerport.commands.packs import layers_report, render_layers
from layerport.errors import UsageError
from layerport.parameters.signature import Signature


@dataclass(frozen=True)
class Ge:
    """As in the package annotated-types, of which the core takes the names of the fields alone."""

    ge: Any


@dataclass(frozen=True)
class Interval:
    gt: Any = None
    ge: Any = None
    lt: Any = None
    le: Any = None


@dataclass(frozen=True)
class Len:
    min_length: Any = 0
    max_length: Any = None


@dataclass(frozen=True)
class MultipleOf:
    multiple_of: Any


def padded(
    x: Tensor,
    pads: Annotated[list[Annotated[int, Ge(0)]], Len(4, 4)],
    groups: Annotated[int, Interval(gt=0, le=64), MultipleOf(2)] = 2,
    eps: Annotated[float, Interval(gt=0.0, lt=1.0), "what other tools read"] = 1e-5,
    mode: Literal["constant", "reflect"] = "constant",
    axis: Literal[0, 1] | None = None,
    names: Optional[Annotated[list[Literal["a", "b"]], Len(1)]] = None,  # noqa: UP045
) -> Tensor:
    """x * groups."""
    return x * groups


SIGNATURE = Signature.of(padded)
RIGHT = {"pads": [1, 2, 0, 0]}


@pytest.mark.parametrize(
    "values",
    [{}, {"groups": 64, "eps": 0.5}, {"mode": "reflect", "axis": 1}, {"axis": None, "names": ["a", "b", "a"]}],
)
def test_values_that_keep_to_the_rules(values: dict[str, Any]) -> None:
    bound = SIGNATURE.bind_attributes(RIGHT | values)
    assert bound["pads"] == (1, 2, 0, 0) and all(bound[name] == _plain(one) for name, one in values.items())


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"pads": [1, 2]}, "layer.pads: expected int[] of length at least 4, got tuple (1, 2)"),
        ({"pads": [0] * 5}, "layer.pads: expected int[] of length at most 4, got tuple (0, 0, 0, 0, 0)"),
        ({"pads": [0, 0, 0, -1]}, "layer.pads: expected int[] each at least 0, got tuple (0, 0, 0, -1)"),
        ({"groups": 0}, "layer.groups: expected int above 0, got int 0"),
        ({"groups": 66}, "layer.groups: expected int at most 64, got int 66"),
        ({"groups": 3}, "layer.groups: expected int a multiple of 2, got int 3"),
        ({"eps": 1}, "layer.eps: expected float below 1.0, got float 1.0"),
        ({"eps": float("nan")}, "layer.eps: expected float above 0.0, got float nan"),
        ({"mode": "wrap"}, "layer.mode: expected str one of 'constant', 'reflect', got str 'wrap'"),
        ({"axis": 2}, "layer.axis: expected int? one of 0, 1, got int 2"),
        ({"names": ["c"]}, "layer.names: expected str[]? each one of 'a', 'b', got tuple ('c',)"),
        ({"names": []}, "layer.names: expected str[]? of length at least 1, got tuple ()"),
        ({"mode": 1}, "layer.mode: expected str, got int 1"),
    ],
)
def test_values_that_break_a_rule(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as error:
        SIGNATURE.bind_attributes(RIGHT | values, path="layer")
    assert says in error.value.faults


def test_all_broken_rules_are_said_at_once() -> None:
    with pytest.raises(UsageError) as error:
        SIGNATURE.bind_attributes({"pads": [-1], "groups": 65, "mode": ""}, path="layer")
    assert [fault.partition(":")[0] for fault in error.value.faults] == [
        *["layer.pads"] * 2,
        *["layer.groups"] * 2,
        "layer.mode",
    ]


@pytest.mark.parametrize(
    ("annotation", "default", "says"),
    [
        (Annotated[int, Ge(1)], 0, "default: expected int at least 1, got int 0"),
        (Literal["a", "b"], "c", "default: expected str one of 'a', 'b', got str 'c'"),
        (Annotated[list[int], Ge(0)], [], "ge is of numbers; annotate the items, as in list[Annotated[int, ...]]"),
        (Annotated[int, Len(2)], 0, "min_length is of lists and texts, not of int"),
        (Annotated[str, Ge("a")], "", "ge is of numbers, not of str"),
        (Annotated[int, Ge("1")], 2, "ge is '1', which is no number"),
        (Annotated[str, Len(0, 1.5)], "", "max_length is 1.5, which is no whole number"),
        (Annotated[int, MultipleOf(0)], 2, "nothing is a multiple of 0"),
        (Literal["a", 1], 1, "the values of a Literal are all of one of int, bool and str"),
        (Literal["a", None], "a", "the values of a Literal are all of one of int, bool and str"),
        (list[Optional[int]], [], "a list holds int, float, bool or str"),  # noqa: UP045
    ],
)
def test_a_rule_that_cannot_be_kept_is_a_fault_of_the_signature(annotation: Any, default: Any, says: str) -> None:
    def reference(x: Tensor, value: Any = default) -> Tensor:
        return x

    reference.__annotations__ = {"x": Tensor, "value": annotation, "return": Tensor}
    with pytest.raises(UsageError) as error:
        Signature.of(reference)
    assert says in error.value.faults[0]


def test_tensors_may_be_annotated_for_others() -> None:
    def reference(x: Annotated[Tensor, Ge(0)], w: Annotated[lp.Param, "per channel"]) -> Annotated[Tensor, "same"]:
        return x * w

    assert [str(one) for one in Signature.of(reference).arguments] == ["Tensor x", "Tensor w"]


@pytest.fixture(scope="module")
def layer() -> lp.Layer:
    return lp.layer("attribute_rules::padded")(padded)


def test_torch_keeps_to_them_too(layer: lp.Layer) -> None:
    x = torch.ones(2)
    assert torch.equal(layer(x, [0] * 4, 4), x * 4)
    for call in (layer, torch.ops.attribute_rules.padded):
        with pytest.raises(UsageError) as error:
            call(x, [0] * 3, 3)
        assert error.value.fault == "layer attribute_rules::padded: 2 attributes at fault"
        assert len(error.value.faults) == 2
    with pytest.raises(UsageError, match="1 attribute at fault"):
        layer(x.to("meta"), [0] * 4, mode="wrap")
    with pytest.raises(UsageError, match="at fault"):
        layer.bind(pads=[0] * 4, axis=5)
    torch.library.opcheck(layer.operator, (x, [0] * 4, 4))


def test_a_layer_without_rules_calls_its_reference_as_before() -> None:
    from layerport.layers.operator import _ruled

    plain = lp.layer("attribute_rules::plain")(_plain_reference)
    assert plain.signature.ruled == ()
    assert _ruled(plain, _plain_reference) is _plain_reference


def _plain_reference(x: Tensor, scale: float = 1.0) -> Tensor:
    return x * scale


PACK = """
from typing import Literal

from torch import Tensor

import layerport as lp


@lp.layer("rules_pack::pad")
def pad(x: Tensor, mode: Literal["constant", "reflect"]) -> Tensor:
    return x * 1


@lp.hookimpl
def layerport_layers():
    return (pad,)
"""


def test_layers_shows_them(site: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rules_pack.py"
    file.write_text(PACK)
    report = layers_report(explicit=[str(file)])
    (listed,) = [one for one in report.layers if one.name == "rules_pack::pad"]
    assert listed.rules == {"mode": ("one of 'constant', 'reflect'",)}
    render_layers(report)
    assert "rules_pack::pad: mode is one of 'constant', 'reflect'" in capsys.readouterr().out


def test_the_real_constraint_types_are_known() -> None:
    types = pytest.importorskip("annotated_types")

    def reference(
        x: Tensor,
        size: Annotated[int, types.Ge(1), types.MultipleOf(2)],
        pads: Annotated[list[int], types.Len(2, 2)],
        eps: Annotated[float, types.Interval(gt=0, lt=1)] = 0.5,
    ) -> Tensor:
        return x

    reference.__annotations__["x"] = Tensor
    found = {one.name: [str(rule) for rule in one.rules] for one in _signature(reference, types).attributes}
    assert found == {
        "size": ["at least 1", "a multiple of 2"],
        "pads": ["of length at least 2", "of length at most 2"],
        "eps": ["above 0", "below 1"],
    }

    def refused(x: Tensor, size: Annotated[int, types.Predicate(bool)]) -> Tensor:
        return x

    with pytest.raises(UsageError) as error:
        _signature(refused, types)
    assert "is not kept here; use ranges, multiples and lengths, or Literal" in error.value.faults[0]


def _signature(reference: Any, types: Any) -> Signature:
    text = {"types": types, "Annotated": Annotated, "Tensor": Tensor}
    reference.__annotations__ = {
        name: eval(one, text) if isinstance(one, str) else one for name, one in reference.__annotations__.items()
    }
    return Signature.of(reference)
