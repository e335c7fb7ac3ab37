"""Targets: what may be built for, and what each wrong text is told."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from layerport.errors import UsageError
from layerport.targets import RTX_ARCHITECTURES, Target


def test_architectures_are_sorted_by_number() -> None:
    target = Target.parse("rtx: sm_120, sm_89")
    assert target == Target("rtx", ("sm_89", "sm_120"))
    assert str(target) == "rtx:sm_89,sm_120"
    assert target.plan_name == "rtx-sm_89+sm_120.plan"
    assert Target.parse("tensorrt").plan_name == "tensorrt-native.plan"
    assert str(Target.parse("portable")) == "portable"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuda:sm_89", "target flavour 'cuda' is not known"),
        ("", "target flavour '' is not known"),
        ("RTX:sm_89", "target flavour 'RTX' is not known"),
        ("portable:sm_89", "target portable takes no architectures, got sm_89"),
        ("rtx", "no architecture is named"),
        ("rtx:", "no architecture is named"),
        ("rtx:sm_90", "sm_90 is not built by TensorRT for RTX"),
        ("rtx:sm89", "'sm89' is not a GPU architecture"),
        ("rtx:sm_89,sm_89", "an architecture is named twice"),
        ("tensorrt:hopper", "'hopper' is not a GPU architecture"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Target.parse(text)
    assert message in str(caught.value)
    assert caught.value.repair


def test_all_faults_of_a_target_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        Target.parse("rtx:sm_90,ampere,sm_90")
    assert caught.value.faults == (
        "'ampere' is not a GPU architecture",
        "sm_90 is not built by TensorRT for RTX",
        "sm_90 is not built by TensorRT for RTX",
        "an architecture is named twice",
    )
    assert caught.value.repair == "choose from sm_75, sm_80, sm_86, sm_89, sm_120, sm_121"


@given(st.lists(st.sampled_from(RTX_ARCHITECTURES), min_size=1, unique=True))
def test_text_and_target_are_inverse(names: list[str]) -> None:
    target = Target("rtx", tuple(names))
    assert Target.parse(str(target)) == target
    assert set(target.architectures) == set(names)
