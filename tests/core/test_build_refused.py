"""Builds that cannot be made: each says why, and leaves nothing behind.

The faults of a pack by itself are in `test_packs`; here is what a build makes of them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from layerport import building
from layerport.errors import BuildError, LayerportError, PackError, UsageError
from packs.installer import Site
from small_models import ROWS, WIDTH, SmallScale, net, sample
from small_setup import ENGINE, MODELS, SMALL, python

PLAIN = "import layerport as lp\nfrom torch import Tensor\n\n"
LAYER = PLAIN + "@lp.layer('NAMESPACE::one')\ndef one(x: Tensor) -> Tensor:\n    return x * 1.0\n\n"
LAYERS = "@lp.hookimpl\ndef layerport_layers():\n    return (one,)\n\n"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder / "out.lp"


def refused(kind: type[LayerportError], source: Any, out: Path, **options: Any) -> LayerportError:
    """The error of a build, which must leave its folder as it was."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(kind) as caught:
        building.build(source, out, **{"target": "portable", "packs": [SMALL], **options})
    assert sorted(out.parent.rglob("*")) == before
    assert caught.value.exit_code == kind.exit_code
    return caught.value


# Names and ranges


@pytest.mark.parametrize("option", ["claim", "no_claim", "decompose"])
def test_an_unknown_layer(out: Path, option: str) -> None:
    target = ENGINE if option == "decompose" else "portable"
    error = refused(UsageError, net(), out, target=target, **{option: ["lp_small::nrom"]})
    assert error.fault == "no loaded pack provides a layer 'lp_small::nrom'"
    assert "did you mean lp_small::norm" in str(error.repair)


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("cuda:sm_89", "target flavour 'cuda' is not known"),
        ("rtx:sm_90", "sm_90 is not built by TensorRT for RTX"),
        ("rtx:ampere", "'ampere' is not a GPU architecture"),
        ("rtx", "no architecture is named"),
    ],
)
def test_an_unknown_target_or_architecture(out: Path, target: str, fault: str) -> None:
    assert fault in str(refused(UsageError, net(), out, target=target))


def test_the_flavour_that_needs_the_gpu_it_builds_for(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerport.engine.flavours.native_architecture", lambda: None)
    error = refused(BuildError, net(), out, target="tensorrt")
    assert error.fault == "target tensorrt builds on the GPU that it targets, and there is none here"


@pytest.mark.parametrize(
    ("ranges", "fault"),
    [
        (["rows=1..65"], "dim rows: 1..65 goes beyond 1..64, which the model was exported for"),
        (["rows=9..2..30"], "range of dim rows contradicts itself: min 9, usual 2, max 30"),
        (["columns=1..2..3"], "the model has no dynamic dim columns; it has: rows"),
        (["rows=1-64"], "'rows=1-64' is not NAME=MIN..USUAL..MAX or NAME=MIN..MAX"),
        (["rows=1..2", "rows=1..3"], "dim rows is given twice"),
    ],
)
def test_ranges_that_contradict_each_other_or_the_model(out: Path, ranges: list[str], fault: str) -> None:
    assert fault in str(refused(UsageError, net(), out, ranges=ranges))


def test_a_dim_without_a_greatest_size(out: Path) -> None:
    model, args, _ = net()
    error = refused(UsageError, (model, args, ({0: Dim("rows")},)), out, target=ENGINE)
    assert error.fault == "target rtx:sm_89 needs a greatest size for every dynamic dim; none is known for rows"
    assert "--range rows=1..3..512" in str(error.repair)


def test_dims_that_the_model_makes_equal(out: Path) -> None:
    class Add(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    shapes = ({0: Dim("a", max=64)}, {0: Dim("b", max=64)})
    error = refused(BuildError, (Add().eval(), (sample(), sample()), shapes), out)
    assert error.fault.startswith("torch.export cannot export model")
    assert error.__cause__ is not None


# A model that torch cannot export


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), inner])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_a_module_that_torch_export_does_not_take(out: Path) -> None:
    error = refused(BuildError, (Around(Branches()).eval(), (sample(),), ROWS), out)
    assert error.fault.startswith("torch.export cannot export model in module blocks.1 (Branches): ")
    assert "make that module a layer of a pack" in str(error.repair)
    assert error.__cause__ is not None and not isinstance(error.__cause__, LayerportError)


def test_an_operator_that_torch_onnx_does_not_translate(out: Path) -> None:
    error = refused(BuildError, (Around(Unknown()).eval(), (sample(),), ROWS), out)
    assert error.fault == (
        "torch.onnx cannot translate model in module blocks.1 (Unknown): operator prims::bessel_j0 has no ONNX form"
    )
    assert error.__cause__ is not None


def test_a_layer_without_an_onnx_form(out: Path, small: Any) -> None:
    class Uses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return small.untranslatable(x)

    error = refused(BuildError, (Uses().eval(), (sample(),)), out)
    assert "layer lp_small::untranslatable" in error.fault and "has no ONNX form" in error.fault
    assert "bessel_j0" in str(error)


def test_outputs_that_are_no_tensors(out: Path) -> None:
    class Number(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x * 2, 3

    error = refused(UsageError, (Number().eval(), (sample(),)), out)
    assert error.fault == "the model's outputs are not all tensors"
    assert error.faults == ("output output_1 is a int, not a tensor",)


# Parameters


def test_parameters_of_the_wrong_kind_several_at_once(out: Path, site: Site) -> None:
    namespace = site.install(
        PLAIN + "@lp.layer('NAMESPACE::affine')\ndef affine(x: Tensor, weight: lp.Param, eps: float) -> Tensor:\n"
        "    return x * weight + eps\n\n@lp.hookimpl\ndef layerport_layers():\n    return (affine,)\n\n"
        "@lp.hookimpl\ndef layerport_export_parameters(module, name):\n"
        "    if type(module).__name__ == 'SmallScale':\n"
        "        return affine.bind(weights=module.weight, weight=module.weight.to('meta'), eps='small', x=1)\n"
    )
    claim = [f"{namespace}::affine"]  # a pack that fails is left out of a build that does not ask for it
    error = refused(PackError, (SmallScale().eval(), (sample(),)), out, packs=[], claim=claim)
    text = str(error)
    assert "pack fake (fake-layers 1.0): layerport_export_parameters at the root module (SmallScale)" in text
    for fault in (".weight: ", "meta", ".eps: expected float, got str 'small'", ".weights: no such", ".x: a run-time"):
        assert fault in text, text


@pytest.mark.parametrize(("kind", "shape"), [("width", [WIDTH + 1]), ("rank", [3, 1, 1, 1])])
def test_a_parameter_of_the_wrong_shape(out: Path, site: Site, kind: str, shape: list[int]) -> None:
    site.install(
        PLAIN + "import torch\n\n@lp.layer('NAMESPACE::scale')\ndef scale(x: Tensor, w: lp.Param) -> Tensor:\n"
        "    return x * w\n\n@lp.hookimpl\ndef layerport_layers():\n    return (scale,)\n\n"
        "@lp.hookimpl\ndef layerport_export_parameters(module):\n"
        f"    return scale.bind(w=torch.ones({shape})) if type(module).__name__ == 'SmallScale' else None\n"
    )
    model = Around(SmallScale()).eval()
    report = building.build((model, (sample(),)), out, target="portable")
    (claim,) = report.claims
    assert claim.status == "refused" and claim.module == "blocks.1"
    assert ("must match" in claim.reason) == (kind == "width"), claim.reason
    assert report.layers == () and report.verification is not None and report.verification.passed


# Packs


BROKEN = {
    "imports": ("import not_there_at_all\n", "ModuleNotFoundError: No module named 'not_there_at_all'"),
    "misspelt": (LAYER + "@lp.hookimpl\ndef layerport_layer():\n    return (one,)\n", "layerport_layer"),
    "raises": (LAYER + "@lp.hookimpl\ndef layerport_layers():\n    raise ValueError('no')\n", "raised ValueError: no"),
    "answers": (LAYER + "@lp.hookimpl\ndef layerport_layers():\n    return [one]\n", "expected a tuple of layers"),
    "exits": ("raise SystemExit(5)\n", "SystemExit: 5"),
}


def test_broken_packs_stop_nobody_who_does_not_need_them(out: Path, site: Site) -> None:
    for name, (text, _) in BROKEN.items():
        site.install(text, name=name)
    report = building.build(net(), out, target="portable", packs=[SMALL])
    assert report.counts["lp_small::norm"] == {"function": 2}
    told = {warning.split()[1]: warning for warning in report.warnings}
    assert told.keys() == BROKEN.keys()
    for name, (_, why) in BROKEN.items():
        assert told[name].startswith(f"pack {name} ({name}-layers 1.0) failed to load: ") and why in told[name]


def test_a_pack_that_prints_leaves_the_answer_on_stdout_alone(out: Path, site: Site) -> None:
    site.install("prints")
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\nfrom layerport.cli import main\n"
        f"main(['build', {f'{MODELS}:net'!r}, '-o', sys.argv[2], '--target', 'portable', '--json'])\n"
    )
    done = python(code, str(site.folder), str(out))
    assert done.returncode == 0, done.stderr
    note = next(one for one in json.loads(done.stdout)["warnings"] if "fake" in one)
    assert note.startswith("pack fake (fake-layers 1.0): printed to stdout at import: hello from python")


def test_a_broken_pack_whose_layer_is_needed(out: Path, site: Site) -> None:
    site.install("import not_there_at_all\n")
    error = refused(PackError, net(), out, claim=["fake::one"])
    assert error.fault.startswith("layer fake::one is not there, because pack fake (fake-layers 1.0) is not loaded: ")
    assert "not_there_at_all" in error.fault
    assert isinstance(error.__cause__, ModuleNotFoundError)


def test_strict_makes_a_broken_pack_fatal(out: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("import not_there_at_all\n")
    monkeypatch.setenv("LAYERPORT_STRICT", "1")
    assert "LAYERPORT_STRICT is set" in refused(PackError, net(), out).fault


@pytest.mark.parametrize(
    ("hook", "body", "why"),
    [
        ("layerport_export_parameters(module)", "raise KeyError('weight')", "raised KeyError: 'weight'"),
        ("layerport_export_parameters(module)", "raise SystemExit(2)", "raised SystemExit: 2"),
        ("layerport_export_parameters(module)", "return 5", "returned int 5, expected a bound layer or a rewrite"),
        ("layerport_convert_parameters(layer)", "raise OSError('gone')", "raised OSError: gone"),
        ("layerport_convert_parameters(layer)", "return {}", "returned dict {}, expected Parameters"),
        ("layerport_create_plugin(layer)", "raise RuntimeError('x')", "raised RuntimeError: x"),
        ("layerport_create_plugin(layer)", "return 'plugin'", "returned str 'plugin', expected a PluginSpec"),
    ],
)
def test_a_pack_that_fails_in_a_hook(out: Path, site: Site, hook: str, body: str, why: str) -> None:
    claim = (
        ""
        if "export" in hook
        else "@lp.hookimpl\ndef layerport_export_parameters(module):\n"
        "    return lp.rewrite(lambda m, x: one(x), layers=(one,)) if type(module).__name__ == 'Identity' else None\n\n"
    )
    namespace = site.install(LAYER + LAYERS + claim + f"@lp.hookimpl\ndef {hook}:\n    {body}\n")
    asked = [f"{namespace}::one"]  # a pack that fails to export is left out of a build that does not ask for it
    error = refused(PackError, (Around(nn.Identity()).eval(), (sample(),)), out, target=ENGINE, packs=[], claim=asked)
    name = hook.partition("(")[0]
    assert error.fault.startswith(f"pack fake (fake-layers 1.0): {name}") and why in error.fault
    if "raise" in body:
        assert error.__cause__ is not None
    if "export" not in hook:
        assert "for layer test_fake_" in error.fault and "at blocks." in error.fault


def test_two_packs_that_claim_one_module(out: Path, site: Site) -> None:
    claim = (
        "@lp.hookimpl\ndef layerport_export_parameters(module):\n"
        "    return lp.rewrite(lambda m, x: one(x), layers=(one,)) if type(module).__name__ == 'Identity' else None\n"
    )
    names = [site.install(LAYER + LAYERS + claim, name=name) for name in ("left", "right")]
    error = refused(UsageError, (Around(nn.Identity()).eval(), (sample(),)), out, packs=[])
    assert error.fault == "two packs claim the same module (2 such)"
    assert "left (left-layers 1.0)" in error.faults[0] and "right (right-layers 1.0)" in error.faults[0]
    assert f"--no-claim LAYER for one of {names[0]}::one, {names[1]}::one" in str(error.repair)


def test_two_packs_with_one_layer(out: Path, site: Site) -> None:
    for name in ("left", "right"):
        site.install(LAYER + LAYERS, name=name, namespace="lp_contested")
    error = refused(PackError, net(), out, claim=["lp_contested::one"])
    assert error.fault == "layer lp_contested::one is provided by 2 packs"
    assert error.faults == (
        "version 1 from pack left (left-layers 1.0)",
        "version 1 from pack right (right-layers 1.0)",
    )


def test_a_claim_that_is_required_and_wrong(out: Path, site: Site) -> None:
    namespace = site.install(
        LAYER + LAYERS + "@lp.hookimpl\ndef layerport_export_parameters(module):\n"
        "    return one.bind() if type(module).__name__ == 'SmallScale' else None\n"
    )
    error = refused(UsageError, net(), out, claim=[f"{namespace}::one"], packs=[])
    assert error.fault == "claims that must hold do not: 1"
    assert f"scale (SmallScale): refused: {namespace}::one of fake (fake-layers 1.0), candidate 1" in error.faults[0]
    report = building.build(net(), out, target="portable")
    claim = next(one for one in report.claims if one.module == "scale")
    assert claim.status == "refused" and (claim.candidates[0].max_relative_error or 0.0) > 0.01
    assert report.verification is not None and report.verification.passed


# Kernels


def kernel_pack(site: Site, source: str, launch: str = "lp.Launch(1, 1, (x, y))") -> str:
    return site.install(
        LAYER
        + f"@one.kernel(lp.cuda({source!r}, 'one'), dtypes=('float32',))\ndef launch(x, y):\n    return {launch}\n\n"
        + LAYERS
        + "@lp.hookimpl\ndef layerport_export_parameters(module):\n"
        "    return lp.rewrite(lambda m, x: one(x), layers=(one,)) if type(module).__name__ == 'Unclaimed' else None\n"
    )


class Unclaimed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0


def test_a_kernel_that_does_not_compile(out: Path, site: Site) -> None:
    namespace = kernel_pack(site, "__global__ void one(const float* x, float* y) {\n  y[0] = oops;\n}\n")
    error = refused(PackError, (Around(Unclaimed()).eval(), (sample(),)), out, target=ENGINE, packs=[])
    text = str(error)
    assert f'layer {namespace}::one, kernel one_0: inline.cu (inline source), line 2: identifier "oops"' in text
    assert "pack fake (fake-layers 1.0): " in text and "at blocks.1" in text
    assert "compiled for sm_89 as one with -arch=sm_89 --std=c++17" in text


def test_a_launch_rule_that_cannot_be_traced(out: Path, site: Site) -> None:
    kernel_pack(
        site,
        "__global__ void one(const float* x, float* y) {\n}\n",
        "lp.Launch(1 if x.shape[0] > 3 else 2, 1, (x, y))",
    )
    source = (Around(Unclaimed()).eval(), (sample(),), ROWS)
    error = refused(PackError, source, out, target=ENGINE, packs=[])
    text = str(error)
    assert "launch" in text and "fake_pack_" in text
    assert "lp.where" in text and "lp.minimum" in text


def test_a_kernel_with_other_arguments_than_its_rule(out: Path, site: Site) -> None:
    kernel_pack(site, "__global__ void one(const float* x, float* y, int n) {\n}\n")
    error = refused(PackError, (Around(Unclaimed()).eval(), (sample(),)), out, target=ENGINE, packs=[])
    assert "::one, kernel one_0" in str(error) and "3" in str(error) and "2" in str(error)


# Disks


def test_an_existing_output_is_kept_before_any_work(out: Path) -> None:
    out.mkdir()
    (out / "manifest.json").write_text("{}")
    assert refused(UsageError, "not_there_at_all:model", out).fault == f"{out} exists and was kept"
    (out / "manifest.json").rename(out / "notes.txt")
    error = refused(UsageError, net(), out, force=True)
    assert error.fault == f"{out} is not a bundle and was kept, also with --force"


def test_a_disk_that_fills_up_in_the_front_half(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("layerport.bundle.bundle.HashedFile.write", full)
    error = refused(BuildError, net(), out)
    assert error.fault == f"writing {out} failed: No space left on device; nothing was written"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a small disk needs root")
def test_a_disk_that_fills_up_in_the_build_process(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no mount here: {mounted.stderr.decode()}")
    try:
        error = refused(BuildError, net(), disk / "out.lp", target=ENGINE)
        assert "No space left on device" in str(error)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
