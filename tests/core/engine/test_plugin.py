"""The TensorRT plugin without TensorRT: a module of stand-ins shows what it answers and what a run does.

What TensorRT itself makes of it is shown by the builds in `test_building`; only a GPU shows a run.
"""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any

import pytest

from core.engine.test_runner import Recorder
from layerport.bundle.plugin_spec import PluginSet, to_bytes
from layerport.engine import plugin as plugins
from layerport.engine.plan_fields import read_field, write_field
from layerport.errors import BuildError
from layerport.kernels.workspace import WORKSPACE
from plugin_specs import FIRST, IMAGES, spec, stepped_spec

Type = enum.Enum("Type", "FLOAT HALF BF16 INT64 INT32 INT8 BOOL CHAR")
Format = enum.Enum("Format", "LINEAR CHW32")
Phase = enum.Enum("Phase", "BUILD RUNTIME")


class Base:
    def __init__(self) -> None:
        pass


class Registry:
    def __init__(self, free: bool = True) -> None:
        self.creators: list[tuple[str, str, str]] = []
        self.free = free

    def register_creator(self, creator: Any, namespace: str) -> bool:
        self.creators.append((namespace, creator.name, creator.plugin_version))
        return self.free


def stand_in(registry: Registry | None = None) -> Any:
    bases = ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime", "IPluginCreatorV3One")
    return SimpleNamespace(
        **{name: type(name, (Base,), {}) for name in bases},
        DataType=Type,
        PluginFieldType=Type,
        TensorFormat=Format,
        TensorRTPhase=Phase,
        PluginField=lambda name, data, kind: SimpleNamespace(name=name, data=data, type=kind),
        PluginFieldCollection=list,
        get_plugin_registry=lambda: registry,
    )


def described(kind: Type, layout: Format = Format.LINEAR, dims: tuple[int, ...] = ()) -> Any:
    return SimpleNamespace(desc=SimpleNamespace(type=kind, format=layout), dims=dims)


def test_it_takes_exactly_the_types_of_its_spec() -> None:
    made = plugins.plugin_class(stand_in())(spec())
    assert (made.plugin_namespace, made.plugin_name, made.plugin_version) == ("layerport", "Kernel", "1")
    assert made.metadata_string == "pack::layer"
    assert made.num_outputs == 2
    assert made.get_output_data_types(None) == [Type.FLOAT, Type.INT64]
    right = [described(kind) for kind in (Type.HALF, Type.BF16, Type.FLOAT, Type.INT64)]
    assert all(made.supports_format_combination(place, right, 2) for place in range(4))
    assert not made.supports_format_combination(0, [described(Type.FLOAT)], 2)
    assert not made.supports_format_combination(0, [described(Type.HALF, Format.CHW32)], 2)
    assert made.get_capability_interface(None) is made
    most = [SimpleNamespace(max=(100, 2)), SimpleNamespace(max=(2,))]
    assert made.get_workspace_size(most, []) == 0
    # 4 bytes for each of 200 elements, and 7, each from a multiple of 256 on.
    assert plugins.plugin_class(stand_in())(stepped_spec()).get_workspace_size(most, []) == 1024 + 256
    assert made.get_valid_tactics() == [1, 2]  # its two kernels, in their order


def test_a_plan_holds_the_whole_spec_and_the_images_that_this_node_keeps() -> None:
    one = spec()
    for kept in ((), IMAGES, [FIRST]):
        made = plugins.plugin_class(stand_in())(one, kept)
        for asked in (made, made.clone(), made):
            (field,) = asked.get_fields_to_serialize()
            assert (field.name, field.type) == (plugins.KEY_FIELD, Type.INT8)
            read = read_field(field.data)
            assert (read.key, read.to_json()) == (one.key, one.to_json())
            assert dict(read.images) == {digest: IMAGES[digest] for digest in kept}


def test_a_run_launches_the_kernel_with_the_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    Recorder.made = []
    runner = plugins.KernelRunner
    monkeypatch.setattr(plugins, "native_architecture", lambda: "sm_89")
    monkeypatch.setattr(plugins, "KernelRunner", lambda one, device: runner(one, device, Recorder))
    build_time = plugins.plugin_class(stand_in())(spec())
    made = build_time.attach_to_context(None)
    assert made is not build_time
    made.set_tactic(0)
    for rows in (4, 6):
        made.on_shape_change([described(Type.HALF, dims=(rows, 2)), described(Type.BF16, dims=(2,))], [])
        made.enqueue(None, None, (10, 11), (12, 13), 14, 99)
    fast, slow = Recorder.made
    assert fast.sizes == [{"x.0": rows, "x.1": 2, "w.0": 2} for rows in (4, 6)]
    assert fast.launches == [({"x": 10, "w": 11, "y": 12, "u0": 13, WORKSPACE: 14}, 99)] * 2
    assert slow.launches == []


def test_a_run_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "native_architecture", lambda: None)
    made = plugins.plugin_class(stand_in())(spec())
    with pytest.raises(BuildError) as caught:
        made.on_shape_change([], [])
    assert caught.value.fault == "layer pack::layer cannot run: no CUDA driver or GPU"


def field(data: bytes) -> Any:
    return [SimpleNamespace(name="other", data=b""), SimpleNamespace(name=plugins.KEY_FIELD, data=data)]


def creator(specs: dict[str, Any] | None = None, *, allow: bool = False) -> Any:
    return plugins.creator_class(stand_in())("pack", "layer", specs or {}, allow)


def test_a_creator_finds_the_spec_in_the_node_and_in_a_plan() -> None:
    one = spec()
    maker = plugins.creator_class(stand_in())("layerport", "Kernel", {}, False)
    assert [declared.name for declared in maker.field_names] == [plugins.KEY_FIELD]
    for kept in ([], [FIRST], IMAGES):
        written = write_field(one, kept)
        # The parser ends a string with a NUL.
        for data, phase in ((written + b"\0", Phase.BUILD), (written, Phase.BUILD), (written, Phase.RUNTIME)):
            made = maker.create_plugin("node", field(data), phase)
            assert made.spec.key == one.key and made.kept == set(kept)
    # Plans of before name each layer, and hold a whole set of specs in a field.
    again = creator().create_plugin("node", field(to_bytes(PluginSet({one.key: one}, {}))), Phase.RUNTIME)
    assert again.spec.key == one.key


def test_a_creator_keeps_its_reason() -> None:
    maker = creator()
    with pytest.raises(BuildError, match="node lonely names no plugin spec"):
        maker.create_plugin("lonely", [], Phase.BUILD)
    assert isinstance(maker.failure, BuildError)
    with pytest.raises(BuildError, match="plugin specs of 0 bytes cannot be read"):
        maker.create_plugin("node", field(b""), Phase.RUNTIME)


def test_a_pack_s_own_class_only_where_it_is_allowed() -> None:
    own = spec(kernels=(), images={}, plugin_class=f"{__name__}:Own")
    with pytest.raises(BuildError) as caught:
        creator({own.key: own}).create_plugin("node", field(own.key.encode()), Phase.BUILD)
    assert caught.value.fault == f"layer pack::layer has its own plugin class {__name__}:Own"
    assert caught.value.repair == "install the pack that provides it"
    made = creator({own.key: own}, allow=True).create_plugin("node", field(own.key.encode()), Phase.BUILD)
    assert isinstance(made, Own) and made.spec is own


class Own:
    def __init__(self, trt: Any, spec: Any) -> None:
        self.spec = spec


def test_the_base_of_a_pack_s_own_class_answers_from_the_spec() -> None:
    one = spec(kernels=(), images={}, plugin_class=f"{__name__}:Own")
    base = plugins.plugin_base(stand_in())

    class Mine(base):  # type: ignore[misc, valid-type]
        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
            return 64

    made = Mine(one)
    for each in (made, made.clone(), made.attach_to_context(None)):
        assert type(each) is Mine and each.spec is one
        assert (each.plugin_namespace, each.plugin_name, each.plugin_version) == ("pack", "layer", "1")
    assert made.get_output_data_types([]) == [Type.FLOAT, Type.INT64]
    assert made.get_workspace_size([], []) == 64 and made.get_valid_tactics() == []
    (kept,) = made.get_fields_to_serialize()
    assert (kept.name, read_field(kept.data).key) == (plugins.KEY_FIELD, one.key)
    with pytest.raises(NotImplementedError, match=r"the plugin class .*test_plugin:Own has no enqueue"):
        made.enqueue([], [], [], [], 0, 0)


def test_registering_twice_is_an_error() -> None:
    registry = Registry()
    made = plugins.register_creators(stand_in(registry), ["pack::b", "pack::a", "pack::b"], {})
    assert registry.creators == [("pack", "a", "1"), ("pack", "b", "1")]
    assert len(made) == 2
    with pytest.raises(BuildError) as caught:
        plugins.register_creators(stand_in(Registry(free=False)), ["pack::a"], {})
    assert caught.value.fault == "TensorRT has a plugin creator pack::a version 1 already"
