"""The conformance kit: a pack without fault passes, and each planted fault is found by its check, which says what."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from layerport.errors import UsageError
from layerport.targets import RTX_ARCHITECTURES
from layerport.testing.conformance.kit import NAMES, checks_of, judge
from packs.zoo_conformance import FAULTS, TEXT, Planted

_numbers = itertools.count()
# Of installed packs, and of a GPU: these have tests of their own.
ELSEWHERE = {"distribution", "gpu_numbers", "gpu_streams", "gpu_graph"}


def write(folder: Path, text: str, name: str = "pack") -> tuple[str, str]:
    """The file of a pack with a namespace of its own, and that namespace."""
    namespace = f"conformance_{next(_numbers)}"
    file = folder / f"{name}_{namespace}.py"
    file.write_text(text.replace("NAMESPACE", namespace))
    return str(file), namespace


def test_a_pack_without_fault_passes_every_check(tmp_path: Path) -> None:
    file, namespace = write(tmp_path, TEXT)
    checks = checks_of(file)
    assert {one.name for one in checks} == set(NAMES) - ELSEWHERE
    assert len({one.id for one in checks}) == len(checks)
    assert f"{namespace}::scaled-float32-kernel" in {one.id for one in checks}
    verdicts = {one.name: judge(one) for one in checks}
    assert {name: one.reason for name, one in verdicts.items()} == dict.fromkeys(verdicts, "")
    noted = verdicts["compilation"].notes
    assert all(
        re.fullmatch(r"kernel scaled_0: \d+ registers, 0 bytes of local memory, 256 bytes .* on sm_.*", one)
        for one in noted
    )
    assert set(", ".join(one.partition(" on ")[2] for one in noted).split(", ")) == set(RTX_ARCHITECTURES)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_planted_fault_is_found(fault: Planted, tmp_path: Path) -> None:
    file, _ = write(tmp_path, fault.text("NAMESPACE"))
    (verdict,) = [judge(one) for one in checks_of(file) if one.name == fault.check]
    assert verdict.answer == "failed"
    assert fault.says in verdict.reason, verdict.reason
    assert "to repair: " in verdict.reason


def test_there_are_enough_faults_for_every_check() -> None:
    assert {one.check for one in FAULTS} == set(NAMES) - ELSEWHERE
    assert len({one.name for one in FAULTS}) == len(FAULTS) >= 40


def test_only_some_layers(tmp_path: Path) -> None:
    file, namespace = write(tmp_path, TEXT)
    assert {one.layer for one in checks_of(file, layers=["scaled"])} == {None, f"{namespace}::scaled"}
    with pytest.raises(UsageError, match="has no layer 'scale'"):
        checks_of(file, layers=["scale"])
    with pytest.raises(UsageError, match="there is no pack 'nobody'"):
        checks_of("nobody")
