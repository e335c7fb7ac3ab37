"""Signatures read from annotations; what torch's own schema parser says is the judge of `schema`."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Optional

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from layerport.errors import UsageError
from layerport.parameters.signature import ATTRIBUTE_TYPES, MISSING, Argument, Kind, Param, Signature

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]


class Moments(NamedTuple):
    mean: Tensor
    variance: Tensor


def swish(x: Tensor, scale: Param, beta: float = 1.0) -> Tensor:
    return x * torch.sigmoid(beta * x) * scale


def everything(
    x: torch.Tensor,
    y: Optional[torch.Tensor],  # noqa: UP045
    w: Param,
    z: Annotated[Tensor, "channels last"],
    axis: int,
    axes: Sequence[int],
    sizes: tuple[int, ...] = (1, -2),
    b: Param | None = None,
    eps: float = 1e-5,
    scales: list[float] = [1, 2.5],  # noqa: B006
    mode: str = 'a "b" \\ \n é',
    flag: bool = True,
    flags: list[bool] = [True, False],  # noqa: B006
    names: list[str] | None = None,
    limit: int | None = None,
    top: float | None = 3,
) -> tuple[Tensor, Tensor]:
    raise NotImplementedError


def test_the_example() -> None:
    signature = Signature.of(swish)
    assert signature.schema("scaled_swish") == "scaled_swish(Tensor x, Tensor scale, float beta=1.0) -> Tensor"
    assert [a.name for a in signature.inputs] == ["x"]
    assert [a.name for a in signature.params] == ["scale"]
    assert [a.name for a in signature.tensors] == ["x", "scale"]
    assert [a.name for a in signature.attributes] == ["beta"]
    assert signature["beta"] == Argument("beta", Kind.ATTRIBUTE, "float", False, 1.0)
    assert signature["x"].default is MISSING and signature["x"].required
    assert (signature.outputs, signature.output_names) == (1, ("output",))


def test_everything_an_annotation_may_be() -> None:
    signature = Signature.of(everything)
    assert signature.schema("f") == (
        "f(Tensor x, Tensor? y, Tensor w, Tensor z, int axis, int[] axes, int[] sizes=[1, -2], Tensor? b=None, "
        "float eps=1e-05, float[] scales=[1.0, 2.5], "
        'str mode="a \\042b\\042 \\134 \\012 \\303\\251", bool flag=True, bool[] flags=[True, False], '
        "str[]? names=None, int? limit=None, float? top=3.0) -> (Tensor, Tensor)"
    )
    assert [a.kind for a in signature.tensors] == [Kind.INPUT, Kind.INPUT, Kind.PARAM, Kind.INPUT, Kind.PARAM]
    assert signature.output_names == ("output0", "output1")


def test_annotations_that_are_objects_and_local_names() -> None:
    local = int

    def f(x: Tensor, n: local) -> Tensor:  # type: ignore[valid-type]
        return x * local(n)

    assert Signature.of(f)["n"].type == "int"
    f.__annotations__ = {"x": Tensor, "n": float | None, "return": Tensor}
    assert Signature.of(f)["n"] == Argument("n", Kind.ATTRIBUTE, "float", True)


def test_named_outputs_and_names_kept_apart() -> None:
    def moments(x: Tensor) -> Moments:
        raise NotImplementedError

    def clash(output: Tensor) -> Tensor:
        return output

    assert Signature.of(moments).output_names == ("mean", "variance")
    assert Signature.of(moments).schema("m") == "m(Tensor x) -> (Tensor, Tensor)"
    assert Signature.of(clash).output_names == ("output_",)


def _faults(function: Callable[..., Any]) -> tuple[str, ...]:
    with pytest.raises(UsageError) as caught:
        Signature.of(function)
    assert function.__qualname__ in caught.value.fault
    assert "lp.Param" in str(caught.value.repair) and "list[...]" in str(caught.value.repair)
    return caught.value.faults


def test_all_faults_at_once() -> None:
    def wrong(  # type: ignore[no-untyped-def]
        a,
        b: Unknown,
        c: Tensor | int,
        c2: int | str | None,
        d: list,  # type: ignore[type-arg]
        e: list[Tensor],
        f: tuple[int, int],
        g: torch.nn.Parameter,
        h: np.ndarray,  # type: ignore[type-arg]
        é: int,
        plugin_version: str,
        i: int = 1.5,  # type: ignore[assignment]
        j: int = True,
        k: float = None,  # type: ignore[assignment]  # noqa: RUF013
        m: Tensor = 1,  # type: ignore[assignment]
        n: float = -math.inf,
        n2: list[float] = [5e-324],  # noqa: B006
        n3: float = math.nan,
        o: list[str] = ["a"],  # noqa: B006
        p: list[int] | None = [1],  # noqa: B006
        q: int = 2**63,
        *rest: Tensor,
        only: int = 3,
        **more: int,
    ) -> list[Tensor]:
        raise NotImplementedError

    faults = _faults(wrong)
    expected = [
        "argument 'a': no annotation",
        "argument 'b': annotation 'Unknown' cannot be resolved (name 'Unknown' is not defined); import its names",
        "argument 'c': unsupported annotation torch.Tensor | int; one type, or one type and None",
        "argument 'c2': unsupported annotation int | str | None; one type, or one type and None",
        "argument 'd': unsupported annotation list; say what it holds, as in list[int]",
        "argument 'e': unsupported annotation list[torch.Tensor]; a list holds int, float, bool or str",
        "argument 'f': unsupported annotation tuple[int, int]; a tuple attribute is written tuple[int, ...]",
        "argument 'g': unsupported annotation torch.nn.parameter.Parameter; use torch.Tensor for a run-time input",
        "argument 'h': unsupported annotation numpy.ndarray",
        "argument 'é': a torch schema and ONNX need a name of ASCII letters",
        "argument 'plugin_version': this name is reserved",
        "argument 'i': default: expected int, got float 1.5",
        "argument 'j': default: expected int, got bool True",
        "argument 'k': default: expected float, got None; annotate it as Optional",
        "argument 'm': default: expected no default, got int 1",
        "argument 'n': default float -inf: a torch schema has no infinite, NaN or subnormal default; make it Optional",
        "argument 'n2': default tuple (5e-324,): a torch schema has no infinite, NaN or subnormal default",
        "argument 'n3': default float nan: a torch schema has no infinite, NaN or subnormal default",
        "argument 'o': default tuple ('a',): a torch schema has no default for str[] except None",
        "argument 'p': default tuple (1,): a torch schema has no default for int[]? except None",
        "argument 'q': default: expected int of 64 bits, got 9223372036854775808",
        "argument *rest: a layer has a fixed list of arguments",
        "argument 'only': keyword-only; take the bare * or / out",
        "argument **more: a layer has a fixed list of arguments",
        "return: unsupported annotation list[torch.Tensor]; use torch.Tensor",
    ]
    assert len(faults) == len(expected)
    for fault, start in zip(faults, expected, strict=True):
        assert fault.startswith(start), fault


@pytest.mark.parametrize(
    ("annotation", "fault"),
    [
        (None, "return: unsupported annotation NoneType"),
        (Optional[Tensor], "return: unsupported annotation "),  # noqa: UP045
        (tuple[Tensor], "return: unsupported annotation tuple[torch.Tensor]"),
        (tuple[Tensor, ...], "return: unsupported annotation tuple[torch.Tensor, ...]"),
        (tuple[Tensor, int], "return: unsupported annotation tuple[torch.Tensor, int]"),
        (int, "return: unsupported annotation int"),
    ],
)
def test_returns_that_are_refused(annotation: Any, fault: str) -> None:
    def f(x):  # type: ignore[no-untyped-def]
        return x

    f.__annotations__ = {"x": Tensor, "return": annotation}
    (found,) = _faults(f)
    assert found.startswith(fault) and "NamedTuple" in found


def test_no_return_and_no_input() -> None:
    def no_return(x: Tensor):  # type: ignore[no-untyped-def]
        return x

    def no_input(w: Param, x: Tensor | None = None) -> Tensor:
        return w

    assert _faults(no_return) == ("return: no annotation; use torch.Tensor, or tuple[Tensor, Tensor] for several",)
    assert _faults(no_input) == ("no run-time tensor input: annotate at least one argument as torch.Tensor",)


def test_records_are_checked_when_made() -> None:
    x = Argument("x", Kind.INPUT, "tensor")
    with pytest.raises(UsageError, match="argument 'x': input cannot have type 'int'\n.*tensor"):
        Argument("x", Kind.INPUT, "int")
    with pytest.raises(UsageError, match="names used twice in one signature: x"):
        Signature((x, x))
    with pytest.raises(UsageError, match="2 outputs, but 1 output names"):
        Signature((x,), 2, ("y",))
    with pytest.raises(UsageError, match="at least one output, got 0"):
        Signature((x,), 0)
    with pytest.raises(KeyError):
        Signature((x,))["y"]


_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False),
    "bool": st.booleans(),
    "str": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
}
_library = torch.library.Library("layerport_test_signature", "FRAGMENT")
_defined = 0


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_torch_accepts_every_schema_and_reads_the_same_defaults(data: st.DataObject) -> None:
    global _defined
    _defined += 1
    type_name = data.draw(st.sampled_from(ATTRIBUTE_TYPES))
    optional = data.draw(st.booleans())
    scalar = type_name.removesuffix("[]")
    default: Any = None if optional else MISSING
    if not type_name.endswith("[]"):
        default = data.draw(_VALUES[scalar])
    elif scalar != "str" and not optional:
        default = tuple(data.draw(st.lists(_VALUES[scalar], max_size=4)))
    signature = Signature(
        (Argument("x", Kind.INPUT, "tensor"), Argument("a", Kind.ATTRIBUTE, type_name, optional, default)),
        data.draw(st.integers(1, 3)),
    )
    _library.define(signature.schema(f"op{_defined}"))
    schema = getattr(torch.ops.layerport_test_signature, f"op{_defined}").default._schema
    assert len(schema.returns) == signature.outputs
    read = schema.arguments[1]
    assert read.has_default_value() is (default is not MISSING)
    if default is not MISSING:
        value = tuple(read.default_value) if isinstance(read.default_value, list) else read.default_value
        assert value == default and type(value) is type(default)


class Mode(enum.StrEnum):
    FAST = "fast"


def test_bind_attributes_normalises() -> None:
    signature = Signature.of(everything)
    bound = signature.bind_attributes(
        {
            "axis": np.int64(3),
            "axes": torch.Size([1, 2]),
            "sizes": np.array([4, 5], np.int32),
            "eps": torch.tensor(0.5, dtype=torch.bfloat16),
            "scales": [1, np.float32(0.5), ml_dtypes.bfloat16(2)],
            "mode": Mode.FAST,
            "flag": np.bool_(False),
            "flags": torch.tensor([True, False]),
            "names": ["a", "é"],
            "limit": torch.tensor(7),
            "top": 2,
        }
    )
    assert bound == {
        "axis": 3, "axes": (1, 2), "sizes": (4, 5), "eps": 0.5, "scales": (1.0, 0.5, 2.0), "mode": "fast",
        "flag": False, "flags": (True, False), "names": ("a", "é"), "limit": 7, "top": 2.0,
    }  # fmt: skip
    plain = {int, float, bool, str, tuple}
    assert {type(value) for value in bound.values()} == plain
    assert {type(item) for value in bound.values() if isinstance(value, tuple) for item in value} < plain


def test_small_integers_are_ints_as_attributes() -> None:
    for name in ("int4", "uint4"):
        small = np.array([1, 7]).astype(getattr(ml_dtypes, name))
        bound = Signature.of(everything).bind_attributes({"axis": small[0], "axes": small})
        assert bound["axis"] == 1 and bound["axes"] == (1, 7) and set(map(type, bound["axes"])) == {int}


def test_bind_attributes_fills_defaults_in() -> None:
    bound = Signature.of(everything).bind_attributes({"axis": 0, "axes": range(2), "names": None})
    assert list(bound) == [a.name for a in Signature.of(everything).attributes]
    assert bound["axes"] == (0, 1) and bound["sizes"] == (1, -2) and bound["names"] is None


def test_bind_attributes_reports_all_faults_with_paths() -> None:
    with pytest.raises(UsageError) as caught:
        Signature.of(everything).bind_attributes(
            {
                "axes": [1, 2.5],
                "sizes": 3,
                "eps": True,
                "scales": [1.0, "x"],
                "mode": b"fast",
                "flag": 1,
                "names": ["a\0"],
                "limit": 2**64,
                "top": torch.ones(2, 2),
                "colour": 1,
            },
            path="model.act",
        )
    assert caught.value.fault == "model.act: 11 attributes at fault"
    assert caught.value.faults == (
        "model.act.axis: expected int, got nothing",
        "model.act.axes: expected int[], got float 2.5 at index 1",
        "model.act.sizes: expected int[], got int 3",
        "model.act.eps: expected float, got bool True",
        "model.act.scales: expected float[], got str 'x' at index 1",
        "model.act.mode: expected str, got bytes b'fast'",
        "model.act.flag: expected bool, got int 1",
        "model.act.names: expected str[]? of UTF-8 text without NUL, got 'a\\x00' at index 0",
        "model.act.limit: expected int? of 64 bits, got 18446744073709551616",
        "model.act.top: expected float?, got float32[2, 2]",
        "model.act.colour: no such attribute, known: axis, axes, sizes, eps, scales, mode, flag, flags, names, "
        "limit, top",
    )


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (None, "None"),
        ("3", "str '3'"),
        (3.0, "float 3.0"),
        (np.float32(3), "float 3.0"),
        (torch.tensor(True), "bool True"),
        (torch.ones((), device="meta"), "Tensor tensor(..., device='meta', size=())"),
        (object, "type <class 'object'>"),
        ([1], "list [1]"),
    ],
)
def test_an_int_is_an_int(value: Any, got: str) -> None:
    signature = Signature((Argument("x", Kind.INPUT, "tensor"), Argument("n", Kind.ATTRIBUTE, "int")))
    with pytest.raises(UsageError) as caught:
        signature.bind_attributes({"n": value})
    assert caught.value.faults == (f"n: expected int, got {got}",)


def test_an_int_has_64_bits() -> None:
    signature = Signature((Argument("x", Kind.INPUT, "tensor"), Argument("n", Kind.ATTRIBUTE, "int")))
    for value in (-(2**63), 2**63 - 1):
        assert signature.bind_attributes({"n": value}) == {"n": value}
    for value in (-(2**63) - 1, 2**63):
        with pytest.raises(UsageError) as caught:
            signature.bind_attributes({"n": value})
        assert caught.value.faults == (f"n: expected int of 64 bits, got {value}",)


def test_the_arguments_of_a_call_by_name() -> None:
    signature = Signature.of(everything)
    names = [argument.name for argument in signature.arguments]
    values = {name: object() for name in names if signature[name].required}
    bound = signature.bind((), values, layer="p::l")
    assert list(bound) == names
    assert all(bound[name] is value for name, value in values.items())
    left = [argument for argument in signature.arguments if not argument.required]
    assert left and all(bound[argument.name] == argument.default for argument in left)
    assert signature.bind(tuple(bound.values()), {}, layer="p::l") == bound


def test_every_fault_of_a_call_is_told() -> None:
    def two(x: Tensor, weight: Param, eps: float = 1e-5) -> Tensor:
        raise NotImplementedError

    signature = Signature.of(two)
    with pytest.raises(UsageError, match=r"layer p::l takes x, weight, eps") as caught:
        signature.bind((1,), {"x": 2, "other": 3}, layer="p::l")
    assert caught.value.faults == ("weight is missing", "x is given twice", "other is not an argument")
    with pytest.raises(UsageError) as caught:
        signature.bind((1, 2, 3, 4), {}, layer="p::l")
    assert caught.value.faults == ("4 arguments are given",)
