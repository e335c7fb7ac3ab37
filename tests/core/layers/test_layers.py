"""Layers: identity, versions, and the parameters that they are bound to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import layerport as lp
from layerport.errors import UsageError


@lp.layer("lp_layers::affine", version=3)
def affine(x: Tensor, weight: lp.Param, bias: lp.Param | None = None, power: int = 1, mode: str = "up") -> Tensor:
    """x * weight + bias."""
    y = x * weight**power
    return y if bias is None else y + bias


@lp.layer("lp_layers::needs_eps")
def needs_eps(x: Tensor, weight: lp.Param, eps: float) -> Tensor:
    return x * weight + eps


def identity(x: Tensor) -> Tensor:
    return x * 1.0


def test_what_a_layer_says_of_itself() -> None:
    assert (affine.name, affine.namespace, affine.short_name, affine.version) == (
        "lp_layers::affine",
        "lp_layers",
        "affine",
        3,
    )
    assert affine.__doc__ == "x * weight + bias."
    file, _, line = affine.origin.rpartition(":")
    assert Path(file) == Path(__file__) and int(line) > 0
    assert repr(affine) == "<layer lp_layers::affine version 3>"
    assert affine.operator is torch.ops.lp_layers.affine.v3  # its version


@pytest.mark.parametrize(
    "name",
    ["plain", "a.b::c", "a::", "::b", "a::b::c", "1a::b", "a::b c", "trt::x", "TensorRT::x", "aten::x", "", None],
)
def test_names_that_are_refused(name: Any) -> None:
    with pytest.raises(UsageError) as caught:
        lp.layer(name)(identity)
    assert caught.value.fault == (
        f"layer name {name!r} is not 'namespace::name' with two identifiers and a namespace of your own"
    )
    assert "'my_pack::my_layer'" in str(caught.value.repair) and "tensorrt" in str(caught.value.repair)


@pytest.mark.parametrize("version", [0, -1, 1.0, "1", True, None])
def test_versions_that_are_refused(version: Any) -> None:
    with pytest.raises(UsageError) as caught:
        lp.layer("lp_layers::versioned", version=version)(identity)
    assert caught.value.fault == f"layer lp_layers::versioned: version {version!r} is not a whole number from 1"


def test_one_identity_from_two_sources_is_refused_when_called(tmp_path: Path) -> None:
    file = tmp_path / "other.py"
    file.write_text("def identity(x: Tensor) -> Tensor:\n    return x * 5.0\n")
    names: dict[str, Any] = {"Tensor": Tensor}
    exec(compile(file.read_text(), str(file), "exec"), names)
    first = lp.layer("lp_layers::twice")(identity)
    second = lp.layer("lp_layers::twice")(names["identity"])
    with pytest.raises(UsageError) as caught:
        second(torch.ones(2))
    assert caught.value.fault == (f"layer lp_layers::twice is defined twice: at {first.origin} and at {file}:1")
    assert torch.equal(first(torch.ones(2)), torch.ones(2))


def test_bind_brings_everything_to_the_standard_form() -> None:
    weight = torch.arange(4.0)
    bound = affine.bind(weight=weight, bias=[1.0, 2.0, 3.0, 4.0], power=np.int64(2))
    assert bound.layer is affine
    assert dict(bound.parameters.attributes) == {"power": 2, "mode": "up"}
    assert bound.parameters["weight"].__array_interface__["data"][0] == weight.data_ptr()
    assert bound.parameters["bias"].shape == (4,)
    assert bound.sources["weight"] is weight
    assert "bias" not in affine.bind(weight=weight).parameters
    assert bound.place is None


def test_all_faults_of_a_binding_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        affine.bind(weight="w", bias=torch.ones(2, device="meta"), power=1.5, mode=3, scale=1, x=torch.ones(1))
    text = str(caught.value)
    assert caught.value.fault == "lp_layers::affine: 6 arguments at fault"
    for fault in (
        "lp_layers::affine.weight",
        "lp_layers::affine.bias",
        "meta",
        "lp_layers::affine.power: expected int, got float 1.5",
        "lp_layers::affine.mode: expected str, got int 3",
        "lp_layers::affine.scale: no such attribute, known: power, mode",
        "lp_layers::affine.x: a run-time input, not a parameter (give it when the layer is called)",
    ):
        assert fault in text, text
    assert "it takes Tensor weight, Tensor? bias" in str(caught.value.repair)


def test_a_missing_parameter_and_a_missing_attribute() -> None:
    with pytest.raises(UsageError) as caught:
        needs_eps.bind()
    weight, eps = caught.value.faults
    assert weight.startswith("lp_layers::needs_eps.weight: expected ") and weight.endswith(", got nothing")
    assert eps == "lp_layers::needs_eps.eps: expected float, got nothing"


def test_several_kernels_keep_their_order() -> None:
    layer = lp.layer("lp_layers::kernels")(identity)
    for name in ("first", None):
        layer.kernel(lp.cuda("// none\n", "none"), dtypes=("float32",), name=name)(lambda x, y: lp.Launch(1, 1, (x, y)))
    assert [kernel.name for kernel in layer.kernels] == ["first", "kernels_1"]


def test_a_module_shares_the_parameter_that_it_was_given() -> None:
    weight = torch.nn.Parameter(torch.arange(3.0))
    module = affine.module(weight=weight, power=2)
    assert module.weight is weight
    assert torch.equal(module(torch.ones(2, 3)), torch.ones(2, 3) * weight**2)
    assert list(dict(module.named_parameters())) == ["weight"]


def test_the_arguments_of_a_call_are_checked_by_torch() -> None:
    with pytest.raises((TypeError, RuntimeError), match="weight"):
        affine(torch.ones(2))
