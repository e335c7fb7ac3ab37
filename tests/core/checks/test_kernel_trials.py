"""On which inputs a kernel is tried, and how often a model is run to find them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from layerport.checks.kernel_trials import Trial, make_trials
from layerport.checks.onnx_values import NodeInput
from layerport.sizes.dims import DimRange

DIMS = {"n": DimRange("n", 1, 9, 12)}
SAMPLE = {"x": NodeInput(np.arange(9, dtype=np.float32), ("n",), False)}


class Model:
    """Gives a node's input at other sizes, and notes which; `fails`: it has none to tell."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.asked: list[int] = []

    def __call__(self, env: Mapping[str, int]) -> Mapping[str, NodeInput] | None:
        self.asked.append(env["n"])
        return None if self.fails else {"x": NodeInput(np.ones(env["n"], np.float32), ("n",), False)}


def trials(model: Model, *, admits: Any = None, fits: Any = None) -> tuple[tuple[Trial, ...], str]:
    def always(shapes: Any) -> bool:
        return True

    return make_trials(SAMPLE, model, {"n": 9}, DIMS, admits or always, fits or always)


def sizes(found: tuple[Trial, ...]) -> list[int]:
    return [trial.inputs["x"].size for trial in found]


def test_the_sample_and_one_other_size() -> None:
    model = Model()
    found, why = trials(model)
    assert sizes(found) == [9, 3] and model.asked == [3] and why == ""
    assert found[0].what == "the sample" and found[1].what == "the sample at x [3], scaled down"
    assert found[1].inputs["x"].tolist() == [2.0**-10] * 3


def test_a_sample_that_is_too_large_gives_way_to_two_other_sizes() -> None:
    model = Model()
    found, _ = trials(model, fits=lambda shapes: shapes["x"][0] < 9)
    assert sizes(found) == model.asked and len(set(model.asked)) == 2


def test_a_model_that_does_not_run_is_asked_six_times_and_no_more() -> None:
    model = Model(fails=True)
    found, _ = trials(model)
    assert sizes(found) == [9, 9] and len(model.asked) == 6
    # the sample itself costs no run
    model = Model(fails=True)
    found, why = trials(model, fits=lambda shapes: shapes["x"][0] < 9)
    assert found == () and len(model.asked) == 6 and "beyond the budget" in why


@pytest.mark.parametrize("admitted", [False, True])
def test_why_there_is_nothing(admitted: bool) -> None:
    found, why = trials(Model(), admits=lambda shapes: admitted, fits=lambda shapes: False)
    wanted = "x [9] is beyond the budget for a run on the CPU, and so is every size tried"
    assert found == () and why == (wanted if admitted else "its predicate holds for none of the sizes tried")


def test_what_a_predicate_refuses_costs_no_run() -> None:
    model = Model()
    found, _ = trials(model, admits=lambda shapes: shapes["x"][0] in (9, 12))
    assert sizes(found) == [9, 12] and model.asked == [12]
