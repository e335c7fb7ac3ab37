"""Versions of one layer: side by side, read from old files, upgraded where only the attributes' schema has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import layerport as lp
from layerport.building import build
from layerport.bundle.plugin_spec import from_bytes
from layerport.errors import LayerportError, UsageError
from layerport.front import portable
from layerport.front.nodes import VERSION
from layerport.packs.host import load
from layerport.system.python_files import import_file
from layerport.testing.conformance.kit import checks_of
from packs.installer import Site

HEAD = "import torch\nfrom torch import Tensor\n\nimport layerport as lp\n\n"
FIRST = """
@lp.layer("NAMESPACE::swish", version=1)
def swish(x: Tensor, beta: float = 1.0, tails: list[bool] = (True, False)) -> Tensor:
    return x * torch.sigmoid(beta * x)
"""
SECOND = """
@lp.layer("NAMESPACE::swish", version=2)
def swish_2(x: Tensor, temperature: float, shift: float = 0.0) -> Tensor:
    return x * torch.sigmoid(x / temperature) + shift
"""
UPGRADE = """
@swish_2.upgrade(from_version=1)
def from_beta(attributes):
    assert attributes["tails"] == (1, 0), attributes
    return UPGRADED
"""
RIGHT = '{"temperature": 1.0 / attributes["beta"]}'
LAYERS = "\n\n@lp.hookimpl\ndef layerport_layers():\n    return (GIVEN,)\n"
CLAIM = """

@lp.hookimpl
def layerport_export_parameters(module):
    return swish.bind(beta=2.5) if type(module).__name__ == "Swish" else None
"""


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(2.5 * x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Swish(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def write(folder: Path, namespace: str, *parts: str, layers: str, upgraded: str = RIGHT) -> str:
    file = folder / f"{namespace}_{len(list(folder.iterdir()))}.py"
    text = HEAD + "".join(parts) + LAYERS.replace("GIVEN", layers)
    file.write_text(text.replace("NAMESPACE", namespace).replace("UPGRADED", upgraded))
    return str(file)


def old_bundle(folder: Path, namespace: str) -> Path:
    """A bundle whose one layer is of version 1."""
    pack = write(folder, namespace, FIRST, CLAIM, layers="swish")
    report = build((Net().eval(), (torch.randn(2, 4),)), folder / "old.lp", target="portable", packs=[pack], find=())
    assert [(one.layer, one.version) for one in report.layers] == [(f"{namespace}::swish", 1)]
    return folder / "old.lp/model.onnx"


def nodes_of(model: Path) -> list[tuple[str | None, dict[str, Any]]]:
    proto = onnx.load(model)
    return [
        (
            {one.key: one.value for one in node.metadata_props}.get(VERSION),
            {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute},
        )
        for node in proto.graph.node
        if node.op_type == "swish"
    ]


def refused(kind: type[LayerportError], source: Path, out: Path, **options: Any) -> LayerportError:
    with pytest.raises(kind) as caught:
        build(str(source), out, target="portable", **options)
    assert not out.exists()
    return caught.value


# Side by side


def test_two_versions_are_two_operators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = import_file(Path(write(tmp_path, "lp_versions_two", FIRST, SECOND, layers="swish, swish_2")))
    x = torch.linspace(-2, 2, 5)
    assert torch.equal(module.swish(x, 2.0), x * torch.sigmoid(2.0 * x))
    assert torch.equal(module.swish_2(x, 2.0), x * torch.sigmoid(x / 2.0))
    assert str(module.swish.operator) == "lp_versions_two.swish.default"
    assert str(module.swish_2.operator) == "lp_versions_two.swish.v2"
    for layer, given in ((module.swish, (x, 2.0, (True,))), (module.swish_2, (x.clone().requires_grad_(), 2.0))):
        torch.library.opcheck(layer.operator, given, test_utils=("test_schema", "test_faketensor"))
    assert capsys.readouterr().err == ""


def test_a_host_gives_the_newest_unless_a_version_is_asked_for(tmp_path: Path) -> None:
    packs = load(write(tmp_path, "lp_versions_host", FIRST, SECOND, layers="swish, swish_2"), environ={})
    name = "lp_versions_host::swish"
    assert [packs.layer(name, version).version for version in (None, 1, 2)] == [2, 1, 2]
    assert [one.version for one in packs.layers if one.name == name] == [2]
    assert [one.version for one in packs.every_version if one.name == name] == [2, 1]
    with pytest.raises(UsageError, match="version 3 is asked for, pack lp_versions_host_0 .* has version 1 and 2"):
        packs.layer(name, 3)


def test_a_model_that_calls_both_versions(tmp_path: Path) -> None:
    pack = write(tmp_path, "lp_versions_both", FIRST, SECOND, layers="swish_2, swish")
    module = import_file(Path(pack))

    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return module.swish(x, 0.5) + 10.0 * module.swish_2(x, 0.5)

    report = build((Both(), (torch.randn(2, 4),)), tmp_path / "a.lp", target="portable", packs=[pack])
    assert sorted((one.layer, one.version) for one in report.layers) == [
        ("lp_versions_both::swish", 1),
        ("lp_versions_both::swish", 2),
    ]
    assert report.verification is not None and report.verification.passed
    assert [version for version, _ in nodes_of(tmp_path / "a.lp/model.onnx")] == ["1", "2"]
    # Each node is found again as what it is.
    again = build(str(tmp_path / "a.lp/model.onnx"), tmp_path / "b.lp", target="portable", packs=[pack])
    assert sorted(one.version for one in again.layers) == [1, 2]
    assert again.verification is not None and again.verification.passed


def test_a_version_returned_twice(site: Site) -> None:
    namespace = site.install(HEAD + SECOND + LAYERS.replace("GIVEN", "swish_2, swish_2"))
    (pack,) = load(environ={})
    assert pack.failure == f"layerport_layers returned {namespace}::swish more than once"


# Old files


@pytest.mark.parametrize("is_said", [True, False])
def test_an_old_bundle_is_upgraded_and_compared_with_its_samples(
    is_said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = f"lp_versions_up_{is_said}".lower()
    if not is_said:  # those of before say it in the manifest only
        monkeypatch.setattr(portable, "VERSION", "nothing")
    old = old_bundle(tmp_path, namespace)
    monkeypatch.undo()
    assert nodes_of(old) == [("1" if is_said else None, {"beta": 2.5, "tails": [1, 0]})]
    pack = write(tmp_path, namespace, SECOND, UPGRADE, layers="swish_2")
    report = build(str(old), tmp_path / "new.lp", target="portable", packs=[pack])
    assert [(one.version, one.via) for one in report.layers] == [(2, "written")]
    assert report.verification is not None and report.verification.passed
    ((version, attributes),) = nodes_of(tmp_path / "new.lp/model.onnx")
    assert (version, sorted(attributes)) == ("2", ["shift", "temperature"])
    assert attributes["temperature"] == pytest.approx(0.4)


KERNEL = """
SOURCE = '''
extern "C" __global__ void k(const float* x, float* y, long long n, float slope, float shift) {
    const long long i = blockIdx.x * 64ll + threadIdx.x;
    if (i < n) y[i] = x[i] / (1.0f + expf(-slope * x[i])) + shift;
}
'''


@LAYER.kernel(lp.cuda(SOURCE, "k"), dtypes=("float32",))
def launch_LAYER(x, y, GIVEN_ATTRIBUTES):
    return lp.Launch(grid=lp.cdiv(x.numel(), 64), block=64, args=(x, y, x.numel(), SLOPE))
"""


def kernel(layer: str, attributes: str, slope: str) -> str:
    return KERNEL.replace("LAYER", layer).replace("GIVEN_ATTRIBUTES", attributes).replace("SLOPE", slope)


def test_the_plan_of_an_old_bundle_is_built_again_with_the_new_kernel(tmp_path: Path) -> None:
    namespace = "lp_versions_plan"
    first = write(tmp_path, namespace, FIRST, kernel("swish", "beta", "beta, 0.0"), CLAIM, layers="swish")
    old = build((Net().eval(), (torch.randn(2, 4),)), tmp_path / "old.lp", target="rtx:sm_89", packs=[first])
    assert [(one.version, one.realised) for one in old.layers] == [(1, "plugin")]
    newer = kernel("swish_2", "temperature, shift", "1.0 / temperature, shift")
    second = write(tmp_path, namespace, SECOND, UPGRADE, newer, layers="swish_2")
    new = build(str(tmp_path / "old.lp/model.onnx"), tmp_path / "new.lp", target="rtx:sm_89", packs=[second])
    assert [(one.version, one.realised) for one in new.layers] == [(2, "plugin")]
    assert new.verification is not None and new.verification.passed
    assert [one.answer for one in new.verification.kernels] == ["right"]
    (spec,) = from_bytes(lp.Bundle.open(tmp_path / "new.lp").read("plugins.safetensors")).specs.values()
    assert (spec.version, dict(spec.attributes)) == (2, {"temperature": pytest.approx(0.4), "shift": 0.0})
    # The old bundle is what it was: nothing of it asks for the pack's version but the kernel's check.
    assert lp.load(tmp_path / "old.lp").run({"x": torch.ones(2, 4)})["output"].shape == (2, 4)
    (check,) = lp.verify(tmp_path / "old.lp", packs=[second]).kernels
    assert check.reason == "the installed pack has version 2 of the layer, the bundle 1"


def test_a_check_of_both_versions_names_each(tmp_path: Path) -> None:
    file = write(tmp_path, "lp_versions_checked", FIRST, SECOND, layers="swish, swish_2")
    named = [one.layer for one in checks_of(file) if one.name == "record"]
    assert named == ["lp_versions_checked::swish version 1", "lp_versions_checked::swish version 2"]


def test_a_pack_that_still_has_the_old_version_needs_no_upgrade(tmp_path: Path) -> None:
    old = old_bundle(tmp_path, "lp_versions_kept")
    pack = write(tmp_path, "lp_versions_kept", FIRST, SECOND, UPGRADE, layers="swish, swish_2", upgraded="1 / 0")
    report = build(str(old), tmp_path / "new.lp", target="portable", packs=[pack])
    assert [one.version for one in report.layers] == [1]


def test_a_wrong_upgrade_does_not_pass(tmp_path: Path) -> None:
    old = old_bundle(tmp_path, "lp_versions_wrong")
    pack = write(tmp_path, "lp_versions_wrong", SECOND, UPGRADE, layers="swish_2", upgraded='{"temperature": 1.0}')
    report = build(str(old), tmp_path / "new.lp", target="portable", packs=[pack])
    assert report.verification is not None and not report.verification.passed


ODD = {
    "[1.0]": "its upgrade from version 1 (from_beta) returned list [1.0]",
    "{}": "upgraded from version 1 of lp_versions_odd::swish.temperature: expected float, got nothing",
    '{"temperature": "warm"}': "swish.temperature: expected float, got str 'warm'",
    '{"temperature": 1.0, "beta": 1.0}': "swish.beta: no such attribute, known: temperature, shift",
    "1 / 0": "from_beta (",
}


def test_an_upgrade_that_gives_no_attributes(tmp_path: Path) -> None:
    old = old_bundle(tmp_path, "lp_versions_odd")
    file = Path(write(tmp_path, "lp_versions_odd", SECOND, UPGRADE, layers="swish_2", upgraded="FIRST"))
    text = file.read_text()
    for upgraded, said in ODD.items():
        file.write_text(text.replace("FIRST", upgraded))
        assert said in str(refused(LayerportError, old, tmp_path / "new.lp", packs=[str(file)]))


def test_a_version_without_an_upgrade(tmp_path: Path) -> None:
    old = old_bundle(tmp_path, "lp_versions_none")
    pack = write(tmp_path, "lp_versions_none", SECOND, layers="swish_2")
    error = refused(UsageError, old, tmp_path / "new.lp", packs=[pack])
    name = Path(pack).stem
    assert error.fault == f"layer lp_versions_none::swish version 1 is asked for, pack {name} ({pack}) has version 2"
    assert error.repair == (
        f"install a release of {name} that has version 1, or have the pack say what such attributes are now, with "
        "@swish_2.upgrade(from_version=1)"
    )


def test_attributes_that_the_layer_does_not_know_are_no_defaults(tmp_path: Path) -> None:
    old = old_bundle(tmp_path, "lp_versions_loose")
    model = onnx.load(old)
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, tmp_path / "loose.onnx")
    pack = write(
        tmp_path, "lp_versions_loose", SECOND.replace("temperature: float", "t: float = 1.0"), layers="swish_2"
    )
    error = refused(UsageError, tmp_path / "loose.onnx", tmp_path / "new.lp", packs=[pack])
    assert any("beta: no such attribute, known: t, shift" in fault for fault in error.faults)


@pytest.mark.parametrize("version", [0, 2, 3, True, "1"])
def test_what_cannot_be_upgraded_from(version: Any) -> None:
    @lp.layer(f"lp_versions_decorated::swish_{version}", version=2)
    def swish(x: Tensor) -> Tensor:
        return x * 2

    with pytest.raises(UsageError) as caught:
        swish.upgrade(from_version=version)
    assert "version 2 cannot be upgraded from" in caught.value.fault
    assert caught.value.repair == "name a version from 1 to 1"
    swish.upgrade(from_version=1)(lambda attributes: attributes)
    with pytest.raises(UsageError, match="it upgrades from 1 already"):
        swish.upgrade(from_version=1)
