"""Where a model's tensors keep their data: every place is found, and every false one told."""

from __future__ import annotations

import pytest
from onnx import TensorProto

from layerport.bundle.external_data import external_tensors, locations_of, tensors_of
from small_bundles import external, place

WHERE = [
    *("initializer", "attribute", "attribute list", "subgraph", "subgraph in a subgraph", "function"),
    *("sparse values", "sparse indices", "sparse attribute", "training"),
]


def faults(tensor: TensorProto, size: int = 16) -> list[str]:
    """What is wrong with a tensor beside a file `model.onnx.data` of this many bytes."""
    files = {"model.onnx.data": size}
    found, said = locations_of(place("initializer", tensor), files.get)
    assert found == (set() if said else {"model.onnx.data"})
    return said


@pytest.mark.parametrize("where", WHERE)
def test_a_tensor_is_found_wherever_it_is(where: str) -> None:
    model = place(where, external("w", location="model.onnx.data"))
    assert [one.name for one in external_tensors(model)] == ["w"]
    kept = [one.name for one in external_tensors(model, initializers=False)]
    assert kept == ([] if where in ("initializer", "training") or where.startswith("subgraph") else ["w"])


def test_tensors_that_hold_their_data_are_no_external_ones() -> None:
    model = place("initializer", TensorProto(name="w", dims=[1], data_type=TensorProto.FLOAT, raw_data=b"1234"))
    assert [one.name for one in tensors_of(model)] == ["w"] and list(external_tensors(model)) == []
    forgotten = external("w", location="model.onnx.data")
    forgotten.data_location = TensorProto.DEFAULT  # a runtime may read the place all the same
    assert [one.name for one in external_tensors(place("initializer", forgotten))] == ["w"]


def test_sound_places() -> None:
    at = {"location": "model.onnx.data"}
    for tensor in (
        external("w", **at),
        external("w", **at, offset="0", length="16"),
        external("w", dims=(2,), offset="8", **at),
        external("w", dims=(), offset="12", **at),
        external("w", dims=(31,), kind=TensorProto.INT4, **at),
        external("w", dims=(16,), kind=TensorProto.BOOL, **at),
        external("w", dims=(2,), kind=TensorProto.COMPLEX64, length="16", **at),
    ):
        assert faults(tensor) == []


@pytest.mark.parametrize(
    ("tensor", "fault"),
    [
        (external("w", location="secret"), "tensor 'w' keeps its data in 'secret', no file beside the model"),
        (external("w"), "tensor 'w' keeps its data in '', no file beside the model"),
        (external("w", location="model.onnx.data", offset="-1"), "has the place {'offset': '-1'}"),
        (external("w", location="model.onnx.data", length="1" * 19), "has the place {'length':"),
        (external("w", location="model.onnx.data", where="x"), "may stand once, as text"),
        (external("w", location="model.onnx.data", offset="1"), "names bytes 1 to 17 of model.onnx.data, which has 16"),
        (external("w", location="model.onnx.data", length="8"), "takes 16 bytes, and names 8 of model.onnx.data"),
        (external("w", location="model.onnx.data", dims=(-4,)), "has the dims [-4]"),
        (
            external("w", location="model.onnx.data", dims=(33,), kind=TensorProto.INT4),
            "names bytes 0 to 17 of model.onnx.data, which has 16",
        ),
        (
            external("w", location="model.onnx.data", kind=TensorProto.COMPLEX64),
            "does not say how many bytes of model.onnx.data it takes",
        ),
    ],
)
def test_false_places(tensor: TensorProto, fault: str) -> None:
    (said,) = faults(tensor)
    assert fault in said


def test_a_place_that_is_stated_twice() -> None:
    tensor = external("w", location="model.onnx.data")
    tensor.external_data.add(key="location", value="secret")
    assert "may stand once" in faults(tensor)[0]


@pytest.mark.parametrize(
    ("count", "said", "last"), [(10, 10, "tensor 'w9'"), (11, 11, "and 1 more"), (50, 11, "and 40 more")]
)
def test_many_false_places_are_counted(count: int, said: int, last: str) -> None:
    model = place("initializer", external("w0", location="secret"))
    model.graph.initializer.extend(external(f"w{number}", location="secret") for number in range(1, count))
    told = locations_of(model, {}.get)[1]
    assert len(told) == said and told[-1].startswith(last)
