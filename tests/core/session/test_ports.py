"""What a model that ONNX Runtime has open takes and gives, against what the manifest says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from layerport.dtypes import DType
from layerport.session.onnxruntime import port_faults
from layerport.sizes.expressions import Symbol
from layerport.sizes.tensors import TensorType

X = TensorType("x", DType.FLOAT32, (Symbol("rows"), 4))
Y = TensorType("y", DType.BFLOAT16, (4,))


# Both sides by hand: the names of layerport, and those of ONNX Runtime.
_NAMES = {
    "bool": "bool",
    "float16": "float16",
    "float32": "float",
    "float64": "double",
    "bfloat16": "bfloat16",
    "uint8": "uint8",
    "int8": "int8",
    "int32": "int32",
    "int64": "int64",
}


def port(name: str, kind: str, *shape: Any) -> Any:
    """Stands in for what a session says of an input or an output."""
    return SimpleNamespace(name=name, type=f"tensor({kind})", shape=list(shape))


def faults(inputs: list[Any], outputs: list[Any]) -> list[str]:
    session = SimpleNamespace(get_inputs=lambda: inputs, get_outputs=lambda: outputs)
    return port_faults(session, (X,), (Y,))


@pytest.mark.parametrize("kind", ["bfloat16", "float"])
def test_what_fits(kind: str) -> None:
    assert faults([port("x", "float", "rows", 4)], [port("y", kind, 4)]) == []
    # An input that nothing takes may be gone; a model need not know its ranks.
    assert faults([], [port("y", kind)]) == []


@pytest.mark.parametrize("kind", ["double", "float16", "int64"])
def test_another_type(kind: str) -> None:
    said = [f"input x is tensor({kind}) in the model, the manifest says float32"]
    assert faults([port("x", kind, "rows", 4)], [port("y", "float", 4)]) == said
    said = [f"output y is tensor({kind}) in the model, the manifest says bfloat16"]
    assert faults([port("x", "float", "rows", 4)], [port("y", kind, 4)]) == said


@pytest.mark.parametrize("wanted", [DType(name) for name in _NAMES])
def test_each_type_is_told_from_each_other(wanted: DType) -> None:
    stated = TensorType("x", wanted, (4,))
    for dtype, name in _NAMES.items():
        session = SimpleNamespace(get_inputs=lambda name=name: [port("x", name, 4)], get_outputs=list)
        fits = dtype == wanted.value or (wanted.value, name) == ("bfloat16", "float")
        assert port_faults(session, (stated,), ()) == (
            [] if fits else [f"input x is tensor({name}) in the model, the manifest says {wanted}"]
        )


def test_other_ports() -> None:
    assert faults([port("x", "float", 4)], [port("y", "float", 4)]) == [
        "input x has 1 dims in the model, the manifest says x: float32[rows, 4]"
    ]
    assert faults([port("z", "float", 4)], []) == [
        "the model has the input z, which the manifest does not list",
        "the model has no output y",
    ]
    assert faults([port("x", "float", "rows", 4)] * 2, [port("y", "float", 4)]) == ["the model has the input x twice"]
