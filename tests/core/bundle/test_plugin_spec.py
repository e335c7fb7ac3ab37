"""Plugin specs as bytes: what is written comes back, and damaged bytes are a BuildError and nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings

from layerport.bundle.kernel_code import KernelCode, KernelStep
from layerport.bundle.plugin_spec import LIMIT, PluginSet, from_bytes, to_bytes
from layerport.dtypes import DType
from layerport.errors import BuildError
from layerport.sizes.expressions import Const, Symbol, cdiv
from plugin_specs import FIRST, IMAGES, RULE, spec


def whole() -> PluginSet:
    one = spec()
    other = spec(layer="pack::own", kernels=(), images={}, plugin_class="pack.plugins:Own", sizes=())
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, ml_dtypes.bfloat16)}
    return PluginSet(
        {one.key: one, other.key: other},
        {"node_1": one.key, "node_2": one.key, "node_3": other.key},
        {"node_1": arrays, "node_2": {"w": arrays["w"]}},
    )


def test_the_safetensors_library_writes_the_same_bytes() -> None:
    data = to_bytes(whole())
    tensors = safetensors.numpy.load(data)
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    assert len(tensors) >= 3
    assert safetensors.numpy.save(tensors, metadata) == data


def test_what_is_written_comes_back() -> None:
    plugins = whole()
    data = to_bytes(plugins)
    read = from_bytes(data)
    assert read.nodes == plugins.nodes
    assert {key: one.to_json() for key, one in read.specs.items()} == {
        key: one.to_json() for key, one in plugins.specs.items()
    }
    one = next(one for one in read.specs.values() if one.kernels)
    assert dict(one.images) == IMAGES
    assert one.architectures == ("sm_89",)
    assert (one.namespace, one.short_name) == ("pack", "layer")
    assert one.kernels[0].steps[0].launch == RULE and one.kernels[1].guard is None
    assert read.parameters["node_1"]["b"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read.parameters["node_2"]["w"], plugins.parameters["node_2"]["w"])
    assert to_bytes(read) == data


def test_nothing_comes_back_too() -> None:
    read = from_bytes(to_bytes(PluginSet({}, {})))
    assert (read.specs, read.nodes, read.parameters) == ({}, {}, {})


def test_equal_content_has_equal_keys() -> None:
    assert spec().key == spec().key
    changed: dict[str, Any] = {
        "version": 3,
        "layer": "pack::other",
        "inputs": spec().inputs[:1],
        "outputs": (dataclasses.replace(spec().outputs[0], dtype=DType.FLOAT16),),
        "attributes": {"eps": 1e-5},
        "sizes": (),
        "kernels": spec().kernels[:1],
        "plugin_class": "a.b:C",
    }
    keys = {spec(**{name: value}).key for name, value in changed.items()} | {spec().key}
    assert len(keys) == len(changed) + 1


def test_equal_images_are_stored_once() -> None:
    one, other = spec(), spec(attributes={})
    both = to_bytes(PluginSet({one.key: one, other.key: other}, {}))
    assert both.count(b"ELF first") == 1


def rewritten(change: Callable[[dict[str, Any]], None]) -> bytes:
    """The bytes of the whole set with its JSON changed, sound as a safetensors file."""
    data = to_bytes(whole())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    content = json.loads(header["__metadata__"]["layerport"])
    change(content)
    header["__metadata__"]["layerport"] = json.dumps(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def refused(change: Callable[[dict[str, Any]], None]) -> BuildError:
    with pytest.raises(BuildError) as caught:
        from_bytes(rewritten(change))
    assert caught.value.repair
    return caught.value


def set_in_spec(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        first = next(key for key, one in content["specs"].items() if one["kernels"])
        content["specs"][first][name] = value

    return change


def set_in_kernel(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        first = next(one for one in content["specs"].values() if one["kernels"])
        first["kernels"][0][name] = value

    return change


def test_a_later_format() -> None:
    error = refused(lambda content: content.update(format=9))
    assert error.fault == "plugin specs have format 9, this layerport reads up to 2"


def test_a_spec_under_another_key() -> None:
    def swap(content: dict[str, Any]) -> None:
        (a, first), (b, second) = content["specs"].items()
        content["specs"] = {a: second, b: first}

    assert "has the content of" in refused(swap).fault


def test_a_node_without_its_spec() -> None:
    error = refused(lambda content: content["nodes"].update(stray="0" * 24))
    assert error.fault == f"nodes name plugin specs that are not there: {'0' * 24}"


def test_an_image_that_is_not_there() -> None:
    error = refused(set_in_kernel("images", {"sm_89": "0" * 64}))
    assert error.fault == "layer pack::layer: kernel image 000000000000 is not there"


@pytest.mark.parametrize(
    "change",
    [
        set_in_spec("layer", "pack"),
        set_in_spec("layer", "../pack::layer"),
        set_in_spec("layer", 5),
        set_in_spec("version", -1),
        set_in_spec("version", 10**40),
        set_in_spec("version", True),
        set_in_spec("version", 1.0),
        set_in_spec("inputs", [["x", "float99", 2, False]]),
        set_in_spec("inputs", [["x y", "float32", 2, False]]),
        set_in_spec("inputs", [["x", "float32"]]),
        set_in_spec("outputs", [["y", "float32", ["x.0 +"]]]),
        set_in_spec("outputs", [["y", "float32", ["(" * 5000]]]),
        set_in_spec("outputs", [["y", "float32", ["__import__('os')"]]]),
        set_in_spec("sizes", [["u0", 5]]),
        set_in_spec("attributes", 5),
        set_in_spec("plugin_class", "os:system; rm"),
        set_in_spec("plugin_class", ["a"]),
        set_in_spec("kernels", {"a": 1}),
        set_in_kernel("symbol", "a b"),
        set_in_kernel("symbol", "a" * 5000),
        set_in_kernel("images", {"sm_9000": FIRST}),
        set_in_kernel("images", {"compute_89": FIRST}),
        set_in_kernel("guard", "x.0 ** 2"),
        set_in_kernel("launch", {}),
        set_in_kernel("launch", None),
        lambda content: content.pop("specs"),
        lambda content: content.update(nodes=[]),
        lambda content: content.update(nodes={"a": 3}),
        lambda content: content.update(parameters={"node_1": {"w": ["0" * 64, "float32", [2]]}}),
        lambda content: content.update(parameters=7),
    ],
)
def test_content_that_is_not_what_was_written(change: Callable[[dict[str, Any]], None]) -> None:
    assert "plugin spec" in refused(change).fault or "cannot be read" in refused(change).fault


def test_a_parameter_of_another_shape() -> None:
    def reshape(content: dict[str, Any]) -> None:
        content["parameters"]["node_1"]["w"][2] = [7]

    assert refused(reshape).fault.startswith("plugin specs cannot be read: ValueError")


def test_bytes_that_are_too_few_or_cut() -> None:
    for data in (b"", b"1234567"):
        with pytest.raises(BuildError) as caught:
            from_bytes(data)
        assert caught.value.fault == f"plugin specs of {len(data)} bytes cannot be read"
        assert caught.value.repair == f"they have 8 to {LIMIT} bytes"
    with pytest.raises(BuildError, match="plugin specs are cut short: the header says"):
        from_bytes(to_bytes(whole())[:100])
    with pytest.raises(BuildError):
        from_bytes((2**63).to_bytes(8, "little") + b"{}")


def test_an_image_that_was_changed() -> None:
    data = to_bytes(whole())
    place = data.index(b"ELF first")
    with pytest.raises(BuildError) as caught:
        from_bytes(data[:place] + b"elf" + data[place + 3 :])
    assert caught.value.fault.startswith("image ")
    assert caught.value.fault.endswith("does not have the content it is named after")


WHOLE = to_bytes(whole())


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
@settings(max_examples=300, deadline=2000)
def test_one_changed_byte_is_a_build_error_or_harmless(place: int, change: int) -> None:
    data = bytearray(WHOLE)
    data[place] ^= change
    try:
        read = from_bytes(bytes(data))
    except BuildError as error:
        assert str(error)
    else:
        # Only a node's name, or white space, may change unseen.
        assert set(read.specs) == set(whole().specs)


@given(st.integers(0, len(WHOLE) - 1))
@settings(max_examples=100, deadline=2000)
def test_a_cut_file_is_a_build_error(length: int) -> None:
    with pytest.raises(BuildError):
        from_bytes(WHOLE[:length])


@given(st.binary(max_size=200), st.binary(max_size=50))
@settings(max_examples=150, deadline=2000)
def test_noise_is_a_build_error(noise: bytes, head: bytes) -> None:
    for data in (noise, len(noise).to_bytes(8, "little") + noise, WHOLE + b"x" + noise, head + WHOLE + b"."):
        with pytest.raises(BuildError):
            from_bytes(data)


@pytest.mark.parametrize("name", ["u0", "y.0", "w.1", "x.2"])
@pytest.mark.parametrize("place", ["launch", "guard"])
def test_a_launch_over_a_size_of_no_input_is_refused(name: str, place: str) -> None:
    size = Symbol(name)
    rule = dataclasses.replace(RULE, grid=(cdiv(size, 256), Const(1), Const(1))) if place == "launch" else RULE
    guard = size >= 1 if place == "guard" else None
    faulty = spec(kernels=(KernelCode("fast", (KernelStep("fast", rule, {"sm_89": FIRST}),), guard),))
    data = to_bytes(PluginSet({faulty.key: faulty}, {}))
    with pytest.raises(BuildError) as caught:
        from_bytes(data)
    assert caught.value.fault == (f"layer pack::layer, kernel fast: its launch uses {name}, a size of no input")
    assert "known after the launch only" in str(caught.value.repair)
