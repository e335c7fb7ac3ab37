"""Which plan of a bundle runs on a machine, what is said where none does, and the packs that a plan may need.

The driver is a double that names an architecture; TensorRT is real and opens no plan without a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import layerport as lp
from gpu_doubles import HostDriver
from layerport.bundle.bundle import Bundle, DamagedFile
from layerport.engine import creators, flavours, plans
from layerport.errors import BuildError, LayerportError
from small_models import sample
from small_setup import Built


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> HostDriver:
    double = HostDriver()
    monkeypatch.setattr("layerport.engine.gpu.require_driver", lambda: double)
    return double


def manifest_of(bundle: Built, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a bundle with another manifest."""
    path = bundle.copy(to)
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def entry(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["targets"][0].update(changes)


HERE = flavours.version_of("rtx")


@pytest.mark.parametrize(
    ("change", "architecture", "fault"),
    [
        (entry(), "sm_90", "rtx-sm_89.plan: built for sm_89, the GPU here is sm_90"),
        (
            entry(architectures=["sm_80", "sm_86"]),
            "sm_89",
            "rtx-sm_89.plan: built for sm_80, sm_86, the GPU here is sm_89",
        ),
        (
            entry(tensorrt="1.6.0.5"),
            "sm_89",
            f"rtx-sm_89.plan: built by tensorrt_rtx 1.6.0.5, here is {HERE}, which reads its own plans only",
        ),
        (
            entry(flavour="tensorrt", tensorrt="11.0.0"),
            "sm_89",
            'rtx-sm_89.plan: it needs tensorrt 11.0.0, which is not installed here (pip install "layerport[tensorrt]")',
        ),
        (entry(flavour="openvino"), "sm_89", "rtx-sm_89.plan: flavour 'openvino' is not known to this layerport"),
        (
            entry(options={"version_compatible": True}),
            "sm_89",
            "rtx-sm_89.plan: it carries a runtime of its own (version_compatible), which a session does not execute",
        ),
    ],
)
def test_a_plan_that_does_not_fit(
    engine_bundle: Built,
    tmp_path: Path,
    driver: HostDriver,
    change: Callable[[dict[str, Any]], None],
    architecture: str,
    fault: str,
) -> None:
    path = manifest_of(engine_bundle, tmp_path / "b.lp", change)
    driver.architecture = architecture
    with pytest.raises(BuildError) as caught:
        lp.load(path, device="cuda")
    assert caught.value.fault == f"no engine of {path} runs here: no plan of {path} fits this machine"
    assert caught.value.faults == (fault,)
    with lp.load(path) as session:
        reason = f"no engine runs here: no plan of {path} fits this machine; {fault}"
        assert session.why == f"ONNX Runtime on the CPU runs the portable model: {reason}"
        assert session(x=sample())["output"].shape == (3, 16)


@pytest.mark.parametrize(
    ("architectures", "plugins", "gpu", "fits"),
    [
        (["sm_80"], 2, "sm_86", True),
        (["sm_80"], 2, "sm_90", False),
        (["sm_80"], 0, "sm_90", True),
        (["sm_75"], 0, "sm_75", True),
        (["sm_80"], 0, "sm_75", False),
    ],
)
def test_hardware_compatible_plans(
    engine_bundle: Built, tmp_path: Path, architectures: list[str], plugins: int, gpu: str, fits: bool
) -> None:
    change = entry(architectures=architectures, plugins=plugins, options={"hardware_compatibility": "ampere_plus"})
    bundle = Bundle.open(manifest_of(engine_bundle, tmp_path / "b.lp", change))
    if fits:
        assert plans.plan_for(bundle, gpu).file == "rtx-sm_89.plan"
    else:
        with pytest.raises(BuildError, match=f"the GPU here is {gpu}"):
            plans.plan_for(bundle, gpu)


def test_the_first_plan_that_fits(engine_bundle: Built, tmp_path: Path) -> None:
    def two(manifest: dict[str, Any]) -> None:
        other = {**manifest["targets"][0], "architectures": ["sm_120"]}
        manifest["targets"].insert(0, other)

    bundle = Bundle.open(manifest_of(engine_bundle, tmp_path / "b.lp", two))
    assert plans.plan_for(bundle, "sm_89").architectures == ("sm_89",)
    assert plans.plan_for(bundle, "sm_120").architectures == ("sm_120",)
    assert plans.plan_for(bundle, "sm_89").layers == ("lp_small::norm", "lp_small::scale")


def test_no_driver(engine_bundle: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise LayerportError("no NVIDIA driver on this machine: libcuda is missing", "run on a machine with a GPU")

    monkeypatch.setattr("layerport.engine.gpu.require_driver", refuse)
    with pytest.raises(BuildError) as caught:
        lp.load(engine_bundle.path, device="cuda")
    assert caught.value.fault.endswith("runs here: no NVIDIA driver on this machine: libcuda is missing")
    assert caught.value.repair == "run on a machine with a GPU"
    assert "no NVIDIA driver on this machine: libcuda is missing" in lp.load(engine_bundle.path).why


def test_a_portable_bundle(half_bundle: Built, driver: HostDriver) -> None:
    with pytest.raises(BuildError, match="holds no engine, it is portable"):
        lp.load(half_bundle.path, device="cuda")
    assert lp.load(half_bundle.path).why.endswith("holds no engine, it is portable")
    assert lp.load(half_bundle.path, device="cpu").why.endswith("device cpu was asked for")


def test_a_damaged_plan_is_never_passed_over(engine_bundle: Built, tmp_path: Path, driver: HostDriver) -> None:
    path = engine_bundle.copy(tmp_path / "b.lp")
    data = bytearray((path / "rtx-sm_89.plan").read_bytes())
    data[1000] ^= 1
    (path / "rtx-sm_89.plan").write_bytes(data)
    for device in ("auto", "cuda"):
        with pytest.raises(DamagedFile, match="trust it no more"):
            lp.load(path, device=device)


def test_the_real_runtime_says_why_it_takes_no_plan(engine_bundle: Built, driver: HostDriver) -> None:
    """The driver is a double, TensorRT is real: on a machine without a GPU it refuses, in its own words."""
    with pytest.raises(BuildError) as caught:
        lp.load(engine_bundle.path, device="cuda")
    assert caught.value.fault.endswith("runs here: TensorRT cannot open rtx-sm_89.plan")
    assert any("CUDA" in fault for fault in caught.value.faults)
    assert creators._held == {} and driver.live()["contexts"] == 0
    assert "TensorRT cannot open rtx-sm_89.plan" in lp.load(engine_bundle.path).why


def node(layer: str, **changes: Any) -> dict[str, Any]:
    return {
        "layer": layer,
        "plugin_class": "json:loads",
        "pack": "p",
        "distribution": "some-layers",
        "pack_version": "1.2",
        **changes,
    }


def test_missing_packs_are_named_together() -> None:
    with pytest.raises(BuildError) as caught:
        plans.pack_classes(
            [
                node("b::two", distribution="other_layers", pack_version=None),
                node("a::one"),
                node("a::one"),
                node("c::three", distribution=None, pack="file.py"),
            ]
        )
    assert caught.value.fault == "layers with a plugin class of their own need packs that are not installed here"
    assert caught.value.faults == (
        "a::one: some-layers 1.2",
        "b::two: other_layers",
        "c::three: the pack file.py was a file when the bundle was built",
    )
    assert caught.value.repair == "pip install other_layers some-layers==1.2"
    with pytest.raises(BuildError) as caught:
        plans.pack_classes([node("c::three", distribution=None)])
    assert caught.value.repair == "build the bundle again with the pack installed, not as a file"


def test_a_bundle_names_classes_of_installed_packs_only() -> None:
    """`json:loads` is importable, but no pack's; the built-in pack's own package is."""
    with pytest.raises(BuildError):
        plans.pack_classes([node("a::one", distribution="layerport-builtin-layers")])
    one = node("a::one", distribution="layerport-builtin-layers", plugin_class="layerport_builtin_layers.x:make")
    assert plans.pack_classes([one]) == {"layerport_builtin_layers.x:make"}
    assert plans.pack_classes([]) == frozenset()


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["targets"][0].pop("tensorrt"),
        lambda manifest: manifest["targets"][0].update(architectures=None),
        lambda manifest: manifest["targets"][0].update(options=7),
        lambda manifest: manifest["targets"][0].update(flavour=[]),
        lambda manifest: manifest["layers"].append({"layer": "a::b", "realised": "plugin", "plugin_class": 3}),
    ],
)
def test_a_target_that_cannot_be_read(
    engine_bundle: Built, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    """A bundle is refused when it is opened, so nobody meets the target."""
    with pytest.raises(BuildError, match=r"manifest.json cannot be read: (targets|layers)\[\d\]\.\w+"):
        Bundle.open(manifest_of(engine_bundle, tmp_path / "b.lp", change))


def test_a_layer_s_name_is_checked(engine_bundle: Built, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["layers"][0]["layer"] = "no namespace"

    with pytest.raises(BuildError, match=r"layers\[0\].layer: expected namespace::name, got 'no namespace'"):
        Bundle.open(manifest_of(engine_bundle, tmp_path / "b.lp", change))
