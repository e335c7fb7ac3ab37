"""The table of conversions: rules and steps, NumPy, Python, DLPack, safetensors, and the arguments of a layer."""

from __future__ import annotations

import array as python_array
import subprocess
import sys
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given

from layerport.conversion import ConversionTable, Hop, Step, from_standard, to_standard
from layerport.errors import PackError, UsageError
from layerport.parameters import conversion
from layerport.parameters.arrays import Array, standard_fault
from layerport.parameters.binding import convert_arguments
from layerport.parameters.signature import Param, Signature
from standard_arrays import TORCH, laid_out, pointer, same, standard


@given(st.data())
def test_numpy_in_any_layout(data: st.DataObject) -> None:
    array = data.draw(standard())
    given_ = data.draw(laid_out(array))
    if given_.dtype.kind in "fiu" and data.draw(st.booleans()):
        given_ = given_.astype(given_.dtype.newbyteorder(">"))
    converted = to_standard(given_)
    assert standard_fault(converted.array) is None and same(converted.array, array)
    (step,) = converted.steps
    assert (step.action == "view") is (standard_fault(given_) is None)
    if step.action == "view" and array.size:
        assert pointer(converted.array) == pointer(given_)
    assert (step.source_type, step.dtype, step.shape, step.nbytes, step.by) == (
        "numpy.ndarray", array.dtype.name, array.shape, array.nbytes, "layerport",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (True, "bool", True),
        (3, "int64", 3),
        (2.5, "float32", 2.5),
        ([], "float32", []),
        ([[]], "float32", [[]]),
        (range(3), "int64", [0, 1, 2]),
        ([1, 2.5], "float32", [1, 2.5]),
        (((1, 2), [3, 4]), "int64", [[1, 2], [3, 4]]),
        ([True, False], "bool", [True, False]),
        ([np.float16(1), np.float16(2)], "float16", [1, 2]),
        ([torch.tensor([1, 2]), np.array([3, 4])], "int64", [[1, 2], [3, 4]]),
        ([[torch.tensor(1.0)], [torch.tensor(2.0)]], "float32", [[1], [2]]),
        (np.float16(3), "float16", 3),
        (ml_dtypes.bfloat16(3), "bfloat16", 3),
    ],
)
def test_python_numbers_and_sequences(value: Any, dtype: str, expected: Any) -> None:
    array = to_standard(value).array
    assert standard_fault(array) is None and array.dtype.name == dtype
    assert array.tolist() == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "w: no array can be made of a str\n  to repair: give a tensor"),
        (None, "w: no array can be made of a NoneType"),
        ({"a": 1}, "w: no array can be made of a dict"),
        ([[1], [2, 3]], r"w: a nested sequence of uneven lengths: list \[\[1\], \[2, 3\]\]"),
        ([10**30], "w: list .* does not fit 64 bits"),
        ([1e300], "w: 1 of 1 values are beyond float32"),
        ([1, "a"], r"w: \[1\]: no array can be made of a str"),
        ([1, None], r"w: \[1\]: no array can be made of a NoneType"),
        ([torch.ones(2), torch.ones(3)], r"w: a sequence of unlike arrays: float32\[2\], float32\[3\]"),
        (np.ma.masked_array([1, 2], [0, 1]), "w: a masked array with 1 values masked"),
        (np.array(["a"]), "w: numpy dtype 'str32' has no standard form"),
        (np.array([object()]), "w: numpy dtype 'object' has no standard form"),
        (np.datetime64("2020"), "w: numpy dtype 'datetime64"),
        (python_array.array("f", [1.0]), "w: no conversion rule for array.array\n.*conversion.register"),
    ],
)
def test_values_without_a_form(value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        to_standard(value, path="w")
    assert caught.value.repair


def test_a_list_in_itself_ends() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(UsageError, match="nested more than 32 deep"):
        to_standard(endless)


def test_numpy_subclasses() -> None:
    assert to_standard(np.ma.masked_array([1, 2], [0, 0])).array.tolist() == [1, 2]
    assert type(to_standard(np.arange(3).view(np.recarray)).array) is np.ndarray


class Speaker:
    """Speaks DLPack and nothing else."""

    def __init__(self, tensor: torch.Tensor, device: tuple[int, int] | None = None) -> None:
        self.tensor, self.device = tensor, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.device or self.tensor.__dlpack_device__()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.bool, torch.bfloat16])
def test_dlpack(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    converted = to_standard(Speaker(tensor))
    assert same(converted.array, to_standard(tensor).array)
    assert pointer(converted.array) == pointer(tensor)
    assert converted.steps[0].source_type == f"{__name__}.Speaker"
    assert to_standard(Speaker(tensor.T)).array.tolist() == tensor.T.tolist()


def test_dlpack_from_a_device_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=f"w: {__name__}.Speaker cannot be converted"):
        to_standard(Speaker(torch.ones(2), (2, 0)), path="w")


@pytest.mark.parametrize("framework", ["np", "pt"])
@given(array=standard(TORCH))
def test_safetensors_slices(framework: str, array: Array, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("slices") / "w.safetensors"
    safetensors.torch.save_file({"w": from_standard(array, "torch")}, path)
    with safetensors.safe_open(path, framework) as file:
        if framework == "np" and array.dtype.name.startswith("float8") and array.size:
            with pytest.raises(UsageError, match="slice of F8_.*without that type\n.*framework='pt'"):
                to_standard(file.get_slice("w"))
            return
        converted = to_standard(file.get_slice("w"))
    assert same(converted.array, array)
    assert converted.steps[0].source_type == "PySafeSlice"


def test_looking_imports_nothing() -> None:
    code = (
        "import sys, numpy as np; from layerport.conversion import *; from layerport.errors import UsageError\n"
        "to_standard(np.ones(3)); to_standard([1, 2])\n"
        "try: to_standard(object())\n"
        "except UsageError: pass\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'tensorrt_rtx', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> tuple[ConversionTable, ConversionTable]:
    """Fresh tables for one test, in place of the module's own."""
    fresh = conversion.core_tables()
    monkeypatch.setattr(conversion, "_forward", fresh[0])
    monkeypatch.setattr(conversion, "_back", fresh[1])
    return fresh


class Box:
    def __init__(self, content: Any) -> None:
        self.content = content


class SmallBox(Box): ...


@pytest.mark.usefixtures("tables")
def test_a_pack_adds_a_rule_for_its_type() -> None:
    with pytest.raises(UsageError) as caught:
        to_standard(Box(1), path="m.w")
    assert str(caught.value) == (
        f"m.w: no conversion rule for {__name__}.Box\n  to repair: register one with "
        f"layerport.conversion.register('{__name__}.Box', rule, by='your pack')"
    )
    conversion.register(Box, lambda box: box.content, by="boxes")
    tensor = torch.arange(6.0).reshape(2, 3)
    converted = to_standard(SmallBox(tensor), path="m.w")
    assert pointer(converted.array) == pointer(tensor)
    assert converted.steps == (
        Step(f"{__name__}.SmallBox", "", (), 0, "convert", "boxes", "m.w"),
        Step("torch.Tensor", "float32", (2, 3), 24, "view", "layerport", "m.w"),
    )
    conversion.register(SmallBox, lambda box: Hop(np.zeros((3, 2)).T, "unpack"), by="boxes")
    assert [s.action for s in to_standard(SmallBox(1)).steps] == ["unpack", "copy"]
    assert [s.action for s in to_standard(Box(np.ones(1))).steps] == ["convert"]


@pytest.mark.usefixtures("tables")
def test_rules_by_name_and_predicate() -> None:
    conversion.register(f"{__name__}.SmallBox", lambda box: [1, 2], by="names")
    conversion.register(lambda value: isinstance(value, Box), lambda box: [3], by="predicates")
    assert to_standard(SmallBox(0)).array.tolist() == [1, 2]
    assert to_standard(Box(0)).array.tolist() == [3]
    conversion.register(lambda value: hasattr(value, "content"), lambda box: [4], by="others")
    with pytest.raises(
        UsageError, match="Box is claimed by the conversion rules of predicates, others\n.*DISABLE_PACKS"
    ):
        to_standard(Box(0))


@pytest.mark.usefixtures("tables")
def test_two_rules_for_one_type_are_an_error() -> None:
    conversion.register(Box, list, by="one")
    for key in (Box, f"{__name__}.Box"):
        with pytest.raises(UsageError, match=f"two conversion rules for {__name__}.Box: one by one, one by two"):
            conversion.register(key, list, by="two")
    with pytest.raises(UsageError, match="for torch.Tensor: one by layerport, one by two"):
        conversion.register(torch.Tensor, list, by="two")


@pytest.mark.usefixtures("tables")
def test_a_packs_rule_at_fault_is_named() -> None:
    def raises(value: Any) -> Any:
        raise KeyError("oops")

    conversion.register(Box, raises, by="boxes")
    with pytest.raises(
        PackError, match=f"m.w: the conversion rule for {__name__}.Box by boxes raised KeyError: 'oops'"
    ) as caught:
        to_standard(Box(0), path="m.w")
    assert isinstance(caught.value.__cause__.__cause__, KeyError)  # type: ignore[union-attr]
    conversion.register(SmallBox, lambda box: box, by="boxes")
    with pytest.raises(PackError, match="SmallBox is still no array after 8 conversion rules"):
        to_standard(SmallBox(0))
    conversion.register(raises, list, by="guess")
    with pytest.raises(PackError, match="the predicate of a conversion rule by guess raised KeyError: 'oops'"):
        to_standard(object())


@pytest.mark.usefixtures("tables")
def test_a_rule_back() -> None:
    conversion.register_back(Box, lambda array, name, target: (target or Box)(array), by="boxes")
    array = np.ones(2)
    assert type(from_standard(array, SmallBox)) is SmallBox
    assert from_standard(array, f"{__name__}.Box").content is array
    assert from_standard(array, "numpy") is array
    with pytest.raises(UsageError, match="no conversion rule for jax.Array\n.*register_back"):
        from_standard(array, "jax.Array")
    with pytest.raises(UsageError, match="w: .* is not C-contiguous"):
        from_standard(np.ones((2, 3)).T, "torch", name="w")


def norm(
    x: torch.Tensor,
    weight: Param,
    bias: Param | None = None,
    eps: float = 1e-5,
    axes: list[int] | None = None,
) -> torch.Tensor:
    raise NotImplementedError


def test_convert_arguments() -> None:
    weight = torch.ones(4)
    parameters, steps = convert_arguments(
        Signature.of(norm), {"weight": weight, "bias": None, "axes": np.array([1])}, path="m.norm"
    )
    assert list(parameters) == ["weight"] and pointer(parameters["weight"]) == pointer(weight)
    assert dict(parameters.attributes) == {"eps": 1e-5, "axes": (1,)}
    assert [step.path for step in steps] == ["m.norm.weight"]


def test_convert_arguments_reports_all_faults_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        convert_arguments(
            Signature.of(norm),
            {
                "x": torch.ones(1),
                "weight": torch.ones(1, 768),
                "bias": torch.ones(2, device="meta"),
                "eps": "small",
                "wieght": 1,
            },
            path="model.layers.3.norm",
        )
    assert str(caught.value) == (
        "model.layers.3.norm: 4 arguments at fault\n"
        "  - model.layers.3.norm.bias: a tensor on the meta device, which has no data: shape [2] "
        "(load the model's weights first)\n"
        "  - model.layers.3.norm.eps: expected float, got str 'small'\n"
        "  - model.layers.3.norm.wieght: no such attribute, known: eps, axes\n"
        "  - model.layers.3.norm.x: a run-time input, not a parameter (give it when the layer is called)\n"
        "  to repair: it takes Tensor weight, Tensor? bias=None, float eps=1e-05, int[]? axes=None"
    )


def test_convert_arguments_that_are_missing() -> None:
    for values, got in [({}, "nothing"), ({"weight": None}, "None")]:
        with pytest.raises(UsageError) as caught:
            convert_arguments(Signature.of(norm), values, path="n")
        assert caught.value.faults == (f"n.weight: expected a tensor, got {got}",)
