"""`LayerCase`: its records are checked, its inputs are the same each time, and a wrong output is named."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

import layerport as lp
from layerport.testing import Case, CaseShape, LayerCase, Tolerance

_numbers = itertools.count()
CLOSE = {"float32": Tolerance(0.0, 1e-6), "float16": Tolerance(0.0, 1e-3)}


def scale_layer() -> lp.Layer:
    @lp.layer(f"case_tests::scale_{next(_numbers)}")
    def scale(x: Tensor, weight: lp.Param | None = None, factor: float = 2.0) -> Tensor:
        result = x * factor
        return result if weight is None else result * weight

    return scale


def case_of(choice: str | dict[str, str] = "float32", **shape: object) -> Case:
    shapes = {"x": (3, 5), "weight": (5,)} | shape
    layer_case = LayerCase(scale_layer(), (CaseShape("prime batch", shapes, {"factor": 3.0}),), (choice,), CLOSE)  # type: ignore[arg-type]
    (case,) = layer_case.cases()
    return case


def test_all_faults_of_a_record_come_at_once() -> None:
    with pytest.raises(lp.UsageError) as caught:
        LayerCase(
            scale_layer(),
            (
                CaseShape("one", {"x": None, "weights": (3,)}, {"size": 1}),
                CaseShape("two", {"x": (1,), "weight": None}, values={"weight": [1.0], "y": [1.0]}),
                CaseShape("two", {"x": (2,), "weight": None}),
            ),
            (),
            CLOSE,
        )
    assert caught.value.faults == (
        "'one' has no shape for weight",
        "'one' leaves out x, which is not optional",
        "'one' names size, which is no attribute",
        "'one' names weights, which is no tensor",
        "'two' gives values of weight, which is no tensor of it",
        "'two' gives values of y, which is no tensor of it",
        "it needs at least one shape and one dtype",
        "two shapes have the reason 'two'",
    )


def test_a_case_has_a_name_that_a_test_can_have() -> None:
    assert case_of().id.endswith("-prime_batch-float32")
    assert case_of({"weight": "float32", "*": "float16"}).id.endswith("-prime_batch-float32+float16")


def test_inputs_are_the_same_each_time_and_differ_by_seed_and_argument() -> None:
    case = case_of(weight=(3, 5))
    once, again, other = case.tensors(), case.tensors(), case.tensors(seed=1)
    assert torch.equal(once["x"], again["x"])  # type: ignore[arg-type]
    assert not torch.equal(once["x"], other["x"])  # type: ignore[arg-type]
    assert not torch.equal(once["x"], once["weight"])  # type: ignore[arg-type]


def test_values_that_are_given_are_not_drawn() -> None:
    shape = CaseShape("given", {"x": (2,), "weight": (2, 1)}, {"factor": 3.0}, values={"weight": [[0.5], [7]]})
    for seed in (0, 1):
        tensors = LayerCase(scale_layer(), (shape,), ("float16",), CLOSE).cases()[0].tensors(seed=seed)
        assert tensors["weight"] is not None and tensors["weight"].dtype == torch.float16
        assert tensors["weight"].tolist() == [[0.5], [7]]


def test_dtypes_and_absent_tensors() -> None:
    tensors = case_of({"weight": "float32", "*": "float16"}).tensors()
    assert {name: tensor.dtype for name, tensor in tensors.items() if tensor is not None} == {
        "x": torch.float16,
        "weight": torch.float32,
    }
    assert case_of(weight=None).tensors()["weight"] is None


def test_arguments_are_in_the_order_of_the_layer_with_the_attributes() -> None:
    case = case_of(weight=None)
    tensors = case.tensors()
    assert case.arguments(tensors) == (tensors["x"], None, 3.0)


def test_expected_is_computed_in_float64_from_the_rounded_inputs() -> None:
    case = case_of("float16")
    tensors = case.tensors()
    (expected,) = case.expected(tensors)
    assert expected.dtype == torch.float64
    assert torch.equal(expected, tensors["x"].double() * 3 * tensors["weight"].double())  # type: ignore[union-attr]


def test_cases_for_a_gpu_are_kept_apart() -> None:
    shapes = tuple(
        CaseShape(text, {"x": (2,), "weight": None}, gpu_only=text == "large") for text in ("small", "large")
    )
    layer_case = LayerCase(scale_layer(), shapes, ("float32", "float16"), CLOSE)
    assert [case.shape.reason for case in layer_case.cases()] == ["small"] * 2
    assert [case.shape.reason for case in layer_case.cases(gpu_only=True)] == ["large"] * 2


def test_a_right_output_passes_as_tensor_and_as_array() -> None:
    case = case_of()
    tensors = case.tensors()
    expected = case.expected(tensors)
    result = case.layer(*case.arguments(tensors))
    case.check(result, expected)
    case.check((np.asarray(result),), expected)


@pytest.mark.parametrize("wrong", [1.0, float("nan"), float("inf")])
def test_a_wrong_element_is_named(wrong: float) -> None:
    case = case_of()
    tensors = case.tensors()
    expected = case.expected(tensors)
    result = case.layer(*case.arguments(tensors)).clone()
    result[2, 1] += wrong
    with pytest.raises(AssertionError, match=r"output \(float32\): 1 of 15 elements are wrong; the worst is \[2, 1\]"):
        case.check(result, expected)


def test_infinities_and_nans_must_be_met_by_the_same() -> None:
    case = case_of()
    expected = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=torch.float64)
    case.check(expected.float(), (expected,))
    for place, other in enumerate((-torch.inf, torch.nan, 0.0)):
        got = expected.float()
        got[place] = other
        with pytest.raises(AssertionError, match=rf"1 of 3 elements are wrong; the worst is \[{place}\]"):
            case.check(got, (expected,))


def test_a_dtype_without_tolerance_must_be_exact() -> None:
    case = case_of()
    expected = torch.tensor([1.0, 2.0], dtype=torch.float64)
    case.check(expected.bfloat16(), (expected,))
    with pytest.raises(AssertionError, match=r"bfloat16.*allowed difference 0"):
        case.check(torch.tensor([1.0, 2.015625]).bfloat16(), (expected,))


def test_wrong_shapes_and_numbers_of_outputs_are_named() -> None:
    case = case_of()
    with pytest.raises(AssertionError, match=r"expected shape \[2\], got \[3\]"):
        case.check(torch.ones(3), (torch.ones(2),))
    with pytest.raises(AssertionError, match="expected 1 outputs, got 2"):
        case.check((torch.ones(2), torch.ones(2)), (torch.ones(2),))
