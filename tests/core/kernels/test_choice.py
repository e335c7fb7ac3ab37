"""Which kernel takes a call, and in words why each one before it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from layerport.dtypes import DType
from layerport.errors import PackError
from layerport.kernels.choice import Candidate, candidates, dtypes_for, select, show_dtypes
from layerport.kernels.cuda_source import cuda
from layerport.kernels.declaration import Kernel, Launch
from layerport.parameters.signature import Argument, Kind, Signature
from layerport.sizes.expressions import Symbol
from layerport.sizes.tensors import TensorType

SIGNATURE = Signature(
    (
        Argument("x", Kind.INPUT, "tensor"),
        Argument("bias", Kind.INPUT, "tensor", optional=True, default=None),
        Argument("groups", Kind.ATTRIBUTE, "int", default=2),
    )
)
F32, F16, I64 = DType.FLOAT32, DType.FLOAT16, DType.INT64


@dataclass(frozen=True)
class Layer:
    kernels: tuple[Kernel, ...]
    name: str = "pack::layer"
    signature: Signature = SIGNATURE


def launch(x: Any, y: Any) -> Launch:
    return Launch(1, 1, (x, y))


def kernel(name: str, dtypes: Any = ("float32",), when: Any = None) -> Kernel:
    return Kernel(name, (cuda("void a();\n", "a"),), dtypes, launch, when)


def tensors(dtype: DType = F32, *shape: Any, bias: DType | None = None) -> dict[str, TensorType | None]:
    return {
        "x": TensorType("x", dtype, shape),
        "bias": None if bias is None else TensorType("bias", bias, (4,)),
        "output": TensorType("output", dtype, shape),
    }


HALF = kernel("half", ("float16",))
EVEN = kernel("even", when=lambda x: x.shape[0] % 2 == 0)
GROUPED = kernel("grouped", when=lambda x, groups: x.shape[0] % groups == 0)
ANY = kernel("any", ("float32", "float16"))
LAYER = Layer((HALF, EVEN, GROUPED, ANY))


def test_the_first_that_fits_takes_the_call() -> None:
    chosen = select(LAYER, tensors(F16, 3), {"groups": 2})
    assert chosen.kernel is HALF and chosen.reasons == () and chosen.dtypes["x"] is F16
    chosen = select(LAYER, tensors(F32, 4), {"groups": 3})
    assert chosen.kernel is EVEN
    assert chosen.reasons == ("half takes float16, here are float32",)
    chosen = select(LAYER, tensors(F32, 9), {"groups": 3})
    assert chosen.kernel is GROUPED and chosen.reasons[1] == "even: its predicate is false for x [9], output [9]"
    assert select(LAYER, tensors(F32, 9), {"groups": 2}).kernel is ANY


def test_one_may_be_asked_for_alone() -> None:
    assert select(LAYER, tensors(F16, 4), {"groups": 2}, only="any").kernel is ANY
    chosen = select(LAYER, tensors(F32, 3), {"groups": 2}, only="even")
    assert chosen.kernel is None and len(chosen.reasons) == 1 and chosen.reasons[0].startswith("even: its predicate")
    assert select(LAYER, tensors(F32, 3), {"groups": 2}, only="none").reasons == ("the layer has no kernel",)


def test_none_fits() -> None:
    chosen = select(Layer(()), tensors(F32, 3), {})
    assert (chosen.kernel, chosen.reasons) == (None, ("the layer has no kernel",))
    assert dict(chosen.dtypes) == {"x": F32, "output": F32}
    chosen = select(Layer((HALF,)), tensors(I64, 3, bias=F32), {})
    assert chosen.reasons == ("half takes float16, here are (x int64, bias float32, output int64)",)


def test_a_size_that_is_not_known_gives_a_guard() -> None:
    found = list(candidates(LAYER, tensors(F32, Symbol("x.0")), {"groups": 2}))
    assert found[0] == "half takes float16, here are float32"
    guards = [one.guard for one in found[1:] if isinstance(one, Candidate)]
    assert [str(guard) for guard in guards] == ["x.0 - 2*(x.0//2) == 0"] * 2 + ["None"]
    known = list(candidates(LAYER, tensors(F32, 4), {"groups": 3}))
    assert isinstance(known[1], Candidate) and known[1].guard is None
    assert isinstance(known[2], str) and known[2].startswith("grouped: its predicate is false for x [4]")


def test_a_predicate_at_fault() -> None:
    broken = kernel("broken", when=lambda x: x.shape[7] == 0)
    with pytest.raises(PackError, match="pack::layer"):
        select(Layer((broken,)), tensors(F32, 3), {})


def test_dtypes_by_argument() -> None:
    mixed = kernel("mixed", ({"x": "float16", "bias": "float32", "output": "float16"},))
    assert dtypes_for(mixed, SIGNATURE, tensors(F16, 3, bias=F32)) is not None
    assert dtypes_for(mixed, SIGNATURE, tensors(F16, 3)) is not None  # an absent tensor has no type
    assert dtypes_for(mixed, SIGNATURE, tensors(F16, 3, bias=F16)) is None
    assert dtypes_for(mixed, SIGNATURE, tensors(F32, 3, bias=F32)) is None
    assert show_dtypes({"x": F16, "y": F16}) == "float16" and show_dtypes({"x": F16}) == "float16"
    assert show_dtypes({"x": F16, "y": F32}) == "(x float16, y float32)"
