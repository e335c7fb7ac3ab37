"""What becomes of each condition on sizes that a model's export relied on, by what running both showed."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from layerport.dtypes import DType
from layerport.errors import BuildError
from layerport.front.evidence import AGREES, DIFFERS, REJECTED, UNKNOWN, Outcome
from layerport.front.guards import Guards
from layerport.front.size_checks import Checked, _at_size_one, as_size, check_model, leave_out_size_one
from layerport.sizes.dims import DimRange
from layerport.sizes.expressions import Symbol, parse
from layerport.sizes.tensors import TensorType

N, OPEN = DimRange("n", 1, 4, 8), DimRange("n", 1, 4, None)
N_DIM = Symbol("n")
SAYS = {AGREES: "same", DIFFERS: "other numbers", REJECTED: "it fails", UNKNOWN: "too large"}


def guards(*conditions: str, unread: tuple[str, ...] = ()) -> Guards:
    program: Any = None
    return Guards(tuple(map(parse, conditions)), unread, program, {})


class Tried:
    """Answers what it was told for some sizes of n, AGREES for all others; notes what it was asked."""

    def __init__(self, **verdicts: str) -> None:
        self.verdicts = {int(size[1:]): verdict for size, verdict in verdicts.items()}
        self.asked: list[int] = []

    def __call__(self, point: Mapping[str, int]) -> Outcome:
        self.asked.append(point["n"])
        verdict = self.verdicts.get(point["n"], AGREES)
        return Outcome(verdict, SAYS[verdict])


def checked(condition: str, tried: Tried | None, dim: DimRange = N) -> Checked:
    result = Checked()
    check_model(guards(condition), tried, {"n": dim}, result)
    return result


def fault(condition: str, tried: Tried | None, dim: DimRange = N) -> str:
    with pytest.raises(BuildError, match="a part of the range of sizes only") as caught:
        checked(condition, tried, dim)
    (said,) = caught.value.faults
    return said


def everywhere(verdict: str) -> Tried:
    return Tried(**{f"n{size}": verdict for size in range(100)})


def test_what_holds_in_the_range_is_not_tried() -> None:
    for dim, condition in ((N, "n <= 8"), (OPEN, "n >= 1")):
        tried = Tried()
        assert checked(condition, tried, dim) == Checked() and tried.asked == []


def test_caution_is_dropped_with_its_evidence() -> None:
    tried = Tried()
    result = checked("n != 1", tried)
    assert tried.asked == [1] and result.conditions == [] and result.warnings == []
    assert result.notes == [
        "the model: Torch's condition n != 1 was dropped: "
        "at all 1 sizes without it, such as n=1, the numbers are the same"
    ]
    (note,) = checked("n % 2 == 0", Tried(n3=UNKNOWN)).notes
    assert "at all 3 sizes tried without it, such as n=1," in note


def test_one_size_that_differs_is_enough_to_refuse() -> None:
    for size in (1, 3, 5, 7):
        said = fault("n % 2 == 0", Tried(**{f"n{size}": DIFFERS}))
        assert said == (
            f"the model is exported for sizes where n % 2 == 0 only: n={size} is within its range, and other numbers"
        )
    # a size that differs counts for more than one that the model refuses
    assert "n=3 is within its range, and other numbers" in fault("n % 2 == 0", Tried(n1=REJECTED, n3=DIFFERS))
    assert checked("n % 2 == 0", Tried(n2=DIFFERS)).notes


@pytest.mark.parametrize("verdict", [REJECTED, UNKNOWN])
def test_what_the_model_refuses_or_nobody_could_try_is_left_to_the_session(verdict: str) -> None:
    result = checked("n > 3", everywhere(verdict))
    assert [one.text for one in result.conditions] == ["3 < n"] and result.notes == []
    (warning,) = result.warnings
    assert warning.startswith("a session will take sizes where 3 < n only: n=1 is within its range, and ")
    assert warning.endswith("it fails" if verdict == REJECTED else "what it gives there could not be tried")
    # nobody asked for all sizes, so nobody is warned
    result = checked("n > 3", everywhere(verdict), OPEN)
    assert [one.text for one in result.conditions] == ["3 < n"] and result.warnings == result.notes == []


def test_some_agree_and_one_is_refused() -> None:
    (warning,) = checked("n > 3", Tried(n2=REJECTED)).warnings
    assert "n=2 is within its range, and it fails" in warning


def test_a_difference_beyond_what_anybody_stated_is_left_to_the_session() -> None:
    result = checked("n > 3", everywhere(DIFFERS), OPEN)
    assert [one.text for one in result.conditions] == ["3 < n"] and len(result.warnings) == 1
    assert fault("n > 3", everywhere(DIFFERS))


def test_a_program_alone_cannot_be_tried() -> None:
    assert fault("n > 3", None) == "the model is exported for sizes where 3 < n only: n=1 is within its range"
    result = checked("n > 3", None, OPEN)
    assert [one.text for one in result.conditions] == ["3 < n"] and result.warnings == [] and result.notes == []


def test_many_sizes_are_tried_at_both_ends() -> None:
    tried = Tried()
    checked("n < 50", tried, DimRange("n", 1, 4, 113))
    assert tried.asked == [*range(50, 66), *range(98, 114)]
    few = Tried()
    checked("n < 50", few, DimRange("n", 1, 4, 81))
    assert few.asked == list(range(50, 82))


def test_a_condition_on_data_is_a_warning() -> None:
    result = Checked()
    check_model(guards("u0 < n"), everywhere(REJECTED), {"n": N}, result)
    assert result.conditions == []
    assert result.warnings[-1] == (
        "the model is exported for sizes where u0 < n only, which depends on data and is not checked"
    )


def test_one_condition_is_kept_once() -> None:
    result = Checked()
    check_model(guards("n > 3", "n > 3", "n > 2"), everywhere(REJECTED), {"n": OPEN}, result)
    assert [one.text for one in result.conditions] == ["3 < n", "2 < n"]


def test_unread_conditions_are_tried_at_the_ends_and_the_example() -> None:
    for dim, sizes in ((N, [1, 2, 4, 8]), (OPEN, [1, 2, 4, 5]), (DimRange("n", 8, 8, 8), [8, 8, 8, 8])):
        tried, result = Tried(), Checked()
        check_model(guards(unread=("odd thing",)), tried, {"n": dim}, result)
        assert tried.asked == sizes
        assert result.warnings == [
            "the model is exported for sizes where odd thing only, which was tried at a few sizes"
        ]
    for verdict in (DIFFERS, REJECTED):
        with pytest.raises(BuildError) as caught:
            check_model(guards(unread=("odd thing",)), Tried(n8=verdict), {"n": N}, Checked())
        assert caught.value.faults == (f"the model is exported for sizes where odd thing only: {SAYS[verdict]}",)
    result = Checked()
    check_model(guards(unread=("odd thing",)), None, {"n": N}, result)
    assert len(result.warnings) == 1


def test_size_one_is_left_out_where_the_model_is_another_there() -> None:
    dims = {"n": DimRange("n", 1, 4, 8), "m": DimRange("m", 2, 4, 8), "k": DimRange("k", 1, 1, 8)}
    asked: list[Mapping[str, int]] = []

    def tried(point: Mapping[str, int]) -> Outcome:
        asked.append(point)
        return Outcome(DIFFERS, "other numbers")

    result, said = leave_out_size_one(dims, tried)
    assert asked == [{"n": 1}]
    assert {name: dim.min for name, dim in result.items()} == {"n": 2, "m": 2, "k": 1} and dims["n"].min == 1
    assert said == ["dim n starts at 2: at 1 the model takes another way, and other numbers"]
    for verdict in (AGREES, REJECTED, UNKNOWN):
        assert leave_out_size_one(dims, lambda point, verdict=verdict: Outcome(verdict, "")) == (dims, [])


def test_sizes_of_an_example() -> None:
    assert (as_size(7, None, {}), as_size(None, None, {}), as_size(None, 9, {})) == (7, 3, 9)
    assert as_size(2 * Symbol("n") + Symbol("u0"), None, {"n": 5}) == 13


@pytest.mark.parametrize(
    ("shape", "dim", "asked"), [((N_DIM, 3), N, [1]), ((3, 4), N, []), ((N_DIM,), DimRange("n", 2, 4, 8), [])]
)
def test_a_layer_is_tried_at_size_one_where_a_dim_may_be_one(shape: Any, dim: DimRange, asked: list[int]) -> None:
    node: Any = SimpleNamespace(tensors={"x": TensorType("x", DType.FLOAT32, shape), "absent": None})
    for verdict in (AGREES, REJECTED, UNKNOWN, DIFFERS):
        tried = Tried(n1=verdict)
        faults = _at_size_one(node, "layer a::b", tried, {"n": dim})
        assert tried.asked == asked
        wanted = ["layer a::b is exported for sizes where n != 1 only: other numbers"]
        assert faults == (wanted if asked and verdict == DIFFERS else [])
