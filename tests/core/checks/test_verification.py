"""What is said of a bundle when its outputs and kernels were compared: passed, failed, not run, none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from layerport.bundle.bundle import SAMPLES, Bundle
from layerport.checks.kernel_checks import KernelCheck
from layerport.checks.verification import Verification, verify
from layerport.parameters.comparison import OutputCheck
from layerport.parameters.standard_form import Parameters
from layerport.session.session import Session
from small_bundles import identity_bundle, sign
from small_setup import SMALL, Built

GOOD = OutputCheck("y", "float32", (3,), 0.0, 0.0, 1.0, True)
BAD = OutputCheck("z", "float32", (3,), 1.0, 1.0, 0.5, False)


def kernel(answer: str) -> KernelCheck:
    return KernelCheck("0123", "small::norm", "norm<float>", ("model.norm",), answer)


@pytest.mark.parametrize(
    ("outputs", "on_gpu", "has_engine", "portable", "engine", "passed"),
    [
        ((GOOD,), False, False, "passed", "none", True),
        ((GOOD,), False, True, "passed", "not run", True),
        ((GOOD, BAD), False, True, "failed", "not run", False),
        ((BAD, GOOD), False, False, "failed", "none", False),
        ((GOOD,), True, True, "not run", "passed", True),
        ((GOOD, BAD), True, True, "not run", "failed", False),
        ((), False, False, "failed", "none", False),
        ((), True, True, "not run", "failed", False),
    ],
)
def test_what_ran_passed_or_failed_and_the_rest_did_not_run(
    outputs: tuple[OutputCheck, ...], on_gpu: bool, has_engine: bool, portable: str, engine: str, passed: bool
) -> None:
    result = Verification(outputs, "here", on_gpu=on_gpu, has_engine=has_engine)
    assert (result.portable, result.engine, result.passed) == (portable, engine, passed)
    told = result.to_json()
    assert (told["portable"], told["engine"], told["passed"], told["on_gpu"]) == (portable, engine, passed, on_gpu)
    assert [one["name"] for one in told["outputs"]] == [one.name for one in outputs]


def test_a_wrong_kernel_fails_and_one_that_did_not_run_does_not() -> None:
    result = Verification((GOOD,), "here", kernels=(kernel("right"), kernel("not run")))
    assert result.passed and result.wrong_kernels == ()
    result = Verification((GOOD,), "here", kernels=(kernel("right"), kernel("wrong")))
    assert not result.passed and [one.answer for one in result.wrong_kernels] == ["wrong"]
    assert [one["answer"] for one in result.to_json()["kernels"]] == ["right", "wrong"]


def samples(path: Path, **outputs: np.ndarray) -> Path:
    """Put other outputs into a bundle's samples."""
    kept = {name: array for name, array in Parameters.load(path / SAMPLES).items() if name.startswith("input.")}
    Parameters(kept | {f"output.{name}": array for name, array in outputs.items()}).save(path / SAMPLES)
    return sign(path)


def test_each_output_is_compared_with_its_own_sample(tmp_path: Path) -> None:
    bundle = identity_bundle(tmp_path / "a.lp", ["y", "z"])
    path = samples(bundle, y=np.array([0, 1, 2], np.float32), z=np.array([0, 1, 2.25], np.float32))
    result = verify(path)
    assert [(one.name, one.passed, one.max_abs) for one in result.outputs] == [("y", True, 0.0), ("z", False, 0.25)]
    assert (result.passed, result.portable, result.engine, result.kernels) == (False, "failed", "none", ())
    assert verify(path, atol=0.2501).passed and not verify(path, atol=0.24).passed
    assert verify(path, atol=0.0, rtol=0.12).passed and not verify(path, atol=0.0, rtol=0.1).passed


def test_an_output_without_its_like_on_the_other_side_fails(tmp_path: Path) -> None:
    path = samples(identity_bundle(tmp_path / "a.lp", ["y"]), z=np.zeros(2, np.float32))
    found = {one.name: one for one in verify(path).outputs}
    assert found["y"].fault == "the samples lack this output, so nothing was compared"
    assert found["y"].shape == (3,)
    assert found["z"].fault == "expected float32[2], got nothing"


def test_a_session_that_is_open_stays_open(engine_bundle: Built) -> None:
    with Session(Bundle.open(engine_bundle.path), device="cpu") as session:
        result = verify(session, kernels=False)
        assert (result.passed, result.engine, result.kernels) == (True, "not run", ())
        assert verify(session, kernels=False).passed
    assert verify(engine_bundle.path, packs=[SMALL]).kernels
