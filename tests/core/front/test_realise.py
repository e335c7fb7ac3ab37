"""What becomes of a layer node for a target: a plugin, its body, or a function, each with the reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import layerport as lp
from layerport.bundle.kernel_code import KernelCode, KernelStep
from layerport.bundle.plugin_spec import PluginSet, PluginSpec
from layerport.dtypes import DType
from layerport.front.nodes import LayerNode
from layerport.front.realise import Realisation, realise
from layerport.front.ways import Ways
from layerport.layers.derivation import Derivation, derive
from layerport.layers.layer import BoundLayer
from layerport.parameters.standard_form import Parameters
from layerport.sizes.expressions import Symbol
from layerport.sizes.output_rules import SizeSymbol
from layerport.sizes.tensors import TensorType
from layerport.targets import Target
from plugin_specs import FIRST, IMAGES, RULE

RTX, PORTABLE = Target.parse("rtx:sm_89,sm_120"), Target.parse("portable")


@lp.layer("front_realise::scaled")
def scaled(x: Tensor, w: lp.Param) -> Tensor:
    return x * w


@lp.layer("front_realise::unwanted")
def unwanted(x: Tensor, w: lp.Param) -> Tensor:
    return x * w


def node(name: str, module: str = "", layer: lp.Layer = scaled) -> LayerNode:
    tensors = {
        "x": TensorType("x", DType.FLOAT32, (Symbol("rows"), 4)),
        "w": TensorType("w", DType.FLOAT32, (4,)),
    }
    given: Any = SimpleNamespace(name=name)
    return LayerNode(given, layer, tensors, layer.bind(w=torch.ones(4)), module)


class Packs:
    """Packs that answer what they are told, and note what they were asked."""

    def __init__(self, *, plugin: Any = None, converted: Parameters | None = None) -> None:
        self.plugin, self.converted = plugin or spec, converted
        self.paths: list[str] = []

    def layer(self, name: str) -> None:
        if name not in (scaled.name, unwanted.name):
            raise lp.errors.UsageError(f"no pack has the layer {name}")

    def convert_parameters(self, layer: Any, parameters: Parameters, target: Target, *, path: str) -> Parameters:
        self.paths.append(path)
        return self.converted or parameters

    def create_plugin(self, layer: Any, bound: BoundLayer, target: Target, *, path: str) -> PluginSpec | None:
        assert bound.place is not None and bound.place.module == path == self.paths[-1]
        made: PluginSpec | None = self.plugin(bound)
        return made


def spec(bound: BoundLayer, **types: DType) -> PluginSpec:
    return PluginSpec(
        scaled.name,
        1,
        (
            TensorType("x", types.get("x", DType.FLOAT32), (Symbol("x.0"), 4)),
            TensorType("w", types.get("w", DType.FLOAT32), (4,)),
        ),
        (TensorType("output", types.get("output", DType.FLOAT32), (Symbol("x.0"), 4)),),
        parameters=frozenset({"w"}),
        kernels=(KernelCode("scaled_0", (KernelStep("scaled", RULE, {"sm_89": FIRST}),)),),
        images={FIRST: IMAGES[FIRST]},
    )


def realised(
    *nodes: LayerNode,
    target: Target = RTX,
    packs: Packs | None = None,
    sizes: tuple[SizeSymbol, ...] = (),
    wrong: dict[str, str] | None = None,
    decompose: tuple[str, ...] = (),
    realise_as: Any = "auto",
) -> tuple[list[Realisation], PluginSet]:
    rule: Derivation = derive(scaled.reference, nodes[0].tensors, {}, layer=scaled.name)
    object.__setattr__(rule, "size_symbols", sizes)
    bodies: Any = SimpleNamespace(derivation=lambda node: rule)
    given: Any = packs or Packs()
    return realise(nodes, bodies, given, target, wrong or {}, Ways.of(realise_as, decompose))


def test_a_plugin_for_each_node_with_its_spec() -> None:
    packs = Packs()
    made, plugins = realised(node("a", "model.norm"), node("b"), packs=packs)
    assert [(one.realised, one.reason) for one in made] == [("plugin", "its kernel is built for sm_89, sm_120")] * 2
    assert packs.paths == ["model.norm", "b"]
    key = made[0].spec.key if made[0].spec else None
    assert plugins.nodes == {"a": key, "b": key} and list(plugins.specs) == [key]
    assert plugins.parameters == {}


def test_converted_parameters_are_kept_where_they_differ() -> None:
    (one,) = (node("a"),)
    changed = Parameters({"w": one.bound.parameters["w"] * 2})
    _, plugins = realised(one, packs=Packs(converted=changed))
    assert {name: list(arrays) for name, arrays in plugins.parameters.items()} == {"a": ["w"]}
    assert plugins.parameters["a"]["w"].tolist() == [2.0] * 4
    _, plugins = realised(one, packs=Packs(converted=Parameters({"w": one.bound.parameters["w"]})))
    assert plugins.parameters == {}


def test_a_portable_bundle_and_layers_that_the_user_wants_decomposed() -> None:
    made, plugins = realised(node("a"), target=PORTABLE, wrong={"a": "wrong"})
    assert [(one.realised, one.reason) for one in made] == [("function", "target portable holds no engine")]
    assert not plugins.nodes
    made, plugins = realised(node("a"), decompose=(scaled.name,))
    assert [(one.realised, one.reason) for one in made] == [("decomposed", "--decompose front_realise::scaled")]
    assert not plugins.nodes and not plugins.specs
    with pytest.raises(lp.errors.UsageError, match="no pack has the layer other::layer"):
        realised(node("a"), target=PORTABLE, decompose=("other::layer",))


def test_how_the_user_wants_layers() -> None:
    made, _ = realised(node("a"), realise_as={scaled.name: "decompose"})
    assert [(one.realised, one.reason) for one in made] == [("decomposed", f"--realise {scaled.name}=decompose")]
    made, _ = realised(node("a"), realise_as="decompose")
    assert [(one.realised, one.reason) for one in made] == [("decomposed", "--realise decompose")]
    made, _ = realised(node("a"), realise_as=["decompose", f"{scaled.name}=auto"])
    assert [one.realised for one in made] == ["plugin"]
    made, _ = realised(node("a"), realise_as="plugin")
    assert [one.realised for one in made] == ["plugin"]


def test_a_plugin_that_has_to_be_and_cannot() -> None:
    with pytest.raises(lp.UsageError, match="2 nodes cannot be a plugin, and --realise asks for one") as caught:
        realised(node("a", "model.norm"), node("b"), wrong={"a": "too wide", "b": "too long"}, realise_as="plugin")
    assert caught.value.faults == (f"{scaled.name}, model.norm: too wide", f"{scaled.name}, b: too long")
    with pytest.raises(lp.UsageError) as caught:
        realised(node("a"), target=PORTABLE, realise_as=[f"{scaled.name}=plugin"])
    assert caught.value.faults == (f"{scaled.name}, a: target portable holds no engine",)


@pytest.mark.parametrize(
    ("given", "decompose", "faults"),
    [
        ("fast", (), ["all layers: 'fast' is no way to realise a layer"]),
        (["plugin", "decompose"], (), ["all layers: asked for as plugin and as decompose"]),
        (
            ["a::b=plugin", "a::b"],
            ("a::b",),
            ["all layers: 'a::b' is no", "a::b: asked for as plugin and as decompose"],
        ),
        ([3], (), ["int 3: '' is no way"]),
    ],
)
def test_wishes_that_cannot_be(given: Any, decompose: tuple[str, ...], faults: list[str]) -> None:
    with pytest.raises(lp.UsageError, match="the layers cannot be realised as asked for") as caught:
        Ways.of(given, decompose)
    assert len(caught.value.faults) == len(faults)
    assert all(said.startswith(fault) for said, fault in zip(caught.value.faults, faults, strict=True))


def test_what_a_plugin_is_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaled, "purpose", "wrong in TensorRT")
    made, _ = realised(node("a"))
    assert made[0].reason == "its kernel is built for sm_89, sm_120; wrong in TensorRT"
    with pytest.raises(lp.UsageError, match="layer a::b: its purpose is str 'speed'") as caught:
        lp.layer("a::b", purpose="speed")(lambda x: x)
    assert "fusion that TensorRT lacks; not expressible" in str(caught.value.repair)


def test_a_rule_that_is_wrong_within_the_ranges_is_no_plugin() -> None:
    made, plugins = realised(node("a"), node("b"), wrong={"b": "its rule is wrong at x.0=3"})
    assert [(one.realised, one.reason) for one in made][1] == ("decomposed", "its rule is wrong at x.0=3")
    assert list(plugins.nodes) == ["a"]


def test_a_size_without_a_greatest_value_is_no_plugin() -> None:
    sizes = (SizeSymbol("u0", Symbol("x.0")), SizeSymbol("u1", None), SizeSymbol("u2", None))
    (one,), plugins = realised(node("a"), sizes=sizes)
    assert (
        one.realised == "decomposed" and "no greatest value is known for its data-dependent size u1, u2" in one.reason
    )
    assert "torch._check(size <= bound)" in one.reason and not plugins.nodes
    (one,), _ = realised(node("a"), sizes=sizes[:1])
    assert one.realised == "plugin"


def test_types_that_tensorrt_has_no_tensors_of() -> None:
    def with_types(**types: DType) -> Realisation:
        return realised(node("a"), packs=Packs(plugin=lambda bound: spec(bound, **types)))[0][0]

    one = with_types(x=DType.FLOAT64, output=DType.UINT8)
    assert (one.realised, one.reason) == (
        "decomposed",
        "TensorRT has no such tensors for a plugin: input x is float64, output output is uint8",
    )
    # a constant of packed bytes goes in under another type
    assert with_types(w=DType.UINT8).realised == "plugin"
    assert with_types(w=DType.FLOAT64).reason.endswith("input w is float64")


def test_no_plugin_and_why() -> None:
    (one,), plugins = realised(node("a"), packs=Packs(plugin=lambda bound: None))
    assert (one.realised, one.reason, one.spec) == ("decomposed", "the layer has no kernel", None)
    assert not plugins.nodes


def test_a_node_without_a_plugin_keeps_no_other_from_one() -> None:
    """Whatever the reason is, and wherever the node stands."""

    def only_for_b(bound: BoundLayer) -> PluginSpec | None:
        return spec(bound) if bound.place is not None and bound.place.module == "b" else None

    def other_types(bound: BoundLayer) -> PluginSpec:
        return spec(bound, **({} if bound.place is not None and bound.place.module == "b" else {"x": DType.FLOAT64}))

    cases: list[dict[str, Any]] = [
        {"decompose": (unwanted.name,)},
        {"wrong": {"a": "wrong", "c": "wrong"}},
        {"packs": Packs(plugin=only_for_b)},
        {"packs": Packs(plugin=other_types)},
    ]
    for options in cases:
        layer = unwanted if "decompose" in options else scaled
        made, plugins = realised(node("a", layer=layer), node("b"), node("c", layer=layer), **options)
        assert [one.realised for one in made] == ["decomposed", "plugin", "decomposed"]
        assert list(plugins.nodes) == ["b"]
    made, _ = realised(node("a"), node("b"), target=PORTABLE)
    assert [one.realised for one in made] == ["function"] * 2
