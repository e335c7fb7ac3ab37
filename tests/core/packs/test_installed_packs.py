"""Packs that pip has installed from wheels: where two answer, a version does not fit, the group is wrong."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from layerport import __version__
from layerport.building import BuildReport, build
from layerport.cli import main
from layerport.commands.explaining import explain
from layerport.commands.packs import layers_report, packs_report, render_packs
from layerport.errors import LayerportError, PackError, UsageError
from layerport.packs import conversions
from layerport.packs.host import load
from layerport.targets import TorchTarget
from layerport.testing import kernel_runs
from layerport.testing.conformance.kit import checks_of, judge
from packs.installer import show_only
from packs.wheels import Project, build_wheel, install

LAYER = """
import torch
from torch import Tensor

import layerport as lp



@lp.layer("{identity}")
def {name}(x: Tensor) -> Tensor:
    return {formula}


@lp.hookimpl
def layerport_layers():
    return ({name},)
"""
CLAIM = """

@lp.hookimpl
def layerport_export_parameters(module):
    return {name}.bind() if type(module).__name__ == "Twice" else None
"""
TWICE, GATE = "x * 2.0", "x * torch.sigmoid(x * 2.5)"


def pack(name: str, identity: str, formula: str = TWICE, *, claims: bool = False, **more: object) -> Project:
    short = identity.partition("::")[2]
    source = LAYER.format(identity=identity, name=short, formula=formula)
    return Project(name, source + (CLAIM.format(name=short) if claims else ""), **more)  # type: ignore[arg-type]


CONVERTS = """
from torch import Tensor

import layerport as lp


@lp.layer("lp_whl_converted::{name}")
def {name}(x: Tensor, weight: lp.Param) -> Tensor:
    return x * weight


SOURCE = '''
extern "C" __global__ void k(const float* x, const float* weight, float* y, long long n, int channels) {{
    const long long i = blockIdx.x * 64ll + threadIdx.x;
    if (i < n) y[i] = x[i] * weight[i % channels] / {factor}.0f;
}}
'''


@{name}.kernel(lp.cuda(SOURCE, "k"), dtypes=("float32",))
def launch(x, weight, y):
    n = x.numel()
    return lp.Launch(grid=lp.cdiv(n, 64), block=64, args=(x, weight, y, n, x.shape[-1]))


@lp.hookimpl
def layerport_layers():
    return ({name},)


@lp.hookimpl
def layerport_convert_parameters(layer, parameters):
    return parameters.replace(weight=parameters["weight"] * {factor})
"""

PROJECTS = (
    Project("one-converts", CONVERTS.format(name="one", factor=2)),
    Project("two-converts", CONVERTS.format(name="two", factor=3)),
    pack("one-same", "lp_whl_same::double", version="1.1"),
    pack("two-same", "lp_whl_same::double", version="2.2"),
    pack("one-preferred", "lp_whl_preferred::double"),
    pack("two-preferred", "lp_whl_preferred::double", "x + x"),
    pack("one-claims", "lp_whl_one::double", claims=True),
    pack("two-claims", "lp_whl_two::double", "x + x", claims=True),
    pack("one-found", "lp_whl_found_one::gate", GATE),
    pack("two-found", "lp_whl_found_two::gate", GATE),
    pack("larger-found", "lp_whl_found_larger::gate", f"{GATE} + 1.0"),
    pack("one-space", "lp_whl_space::double", claims=True),
    pack("two-space", "lp_whl_space::triple", "x * 3.0"),
    pack("one-twin", "lp_whl_twin_one::double", point="twin"),
    pack("two-twin", "lp_whl_twin_two::double", point="twin"),
    pack("shadowed", "lp_whl_shadowed::double", version="1.5"),
    pack("too-new", "lp_whl_new::double", requires=("layerport[build]>=99", "numpy>=1")),
    pack("too-old", "lp_whl_old::double", requires=("numpy>=1", "LayerPort<0.0.9,>=0.0.1")),
    pack("fits", "lp_whl_fits::double", requires=(f"layerport=={__version__}", 'layerport>=99; extra == "more"')),
    pack("elsewhere", "lp_whl_elsewhere::double", group="acme.plugins"),
    pack("no-group", "lp_whl_nowhere::double", group=""),
    Project("an-application", "import layerport as lp\n\nprint(lp.build)\n", group=""),
    pack("needs-nothing", "lp_whl_nothing::double", group="acme.plugins", requires=()),
)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x * 2.5) + 1.0


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    install([build_wheel(project, folder) for project in PROJECTS], site)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        importlib.invalidate_caches()
        yield site


@pytest.fixture
def only(site: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets these distributions be the only ones that are installed."""

    def choose(*names: str) -> None:
        show_only(monkeypatch, lambda: [one for one in metadata.distributions(path=[str(site)]) if one.name in names])

    return choose


def built(inner: nn.Module, out: Path, **options: object) -> BuildReport:
    model = Holder(inner).eval()
    return build((model, (torch.randn(2, 4),)), out, target="portable", force=True, verify=False, **options)  # type: ignore[arg-type]


def refused(kind: type[LayerportError], call: Callable[[], object]) -> LayerportError:
    with pytest.raises(kind) as caught:
        call()
    return caught.value


# Two packs


def test_one_layer_in_two_packs(only: Callable[..., None], tmp_path: Path) -> None:
    only("one-same", "two-same")
    error = refused(PackError, lambda: built(Twice(), tmp_path / "a.lp", claim=["lp_whl_same::double"]))
    assert str(error) == (
        "layer lp_whl_same::double is provided by 2 packs\n"
        "  - version 1 from pack one_same (one-same 1.1)\n"
        "  - version 1 from pack two_same (two-same 2.2)\n"
        "  to repair: prefer one, as in --prefer one_same or prefer=['one_same'], or block the others with "
        "LAYERPORT_DISABLE_PACKS=name"
    )


def test_a_preferred_pack_has_the_layer(only: Callable[..., None]) -> None:
    only("one-preferred", "two-preferred")
    packs = load(prefer=["two-preferred", "one_preferred"], environ={})
    layer = packs.layer("lp_whl_preferred::double")
    assert packs.owner(layer).info.name == "two_preferred" and not packs.conflicts
    assert torch.equal(layer(torch.ones(2)), torch.full((2,), 2.0))  # the operator is its own
    assert packs.notes == (
        "layer lp_whl_preferred::double: version 1 from pack two_preferred (two-preferred 1.0) is used, "
        "not version 1 from pack one_preferred (one-preferred 1.0)",
    )


def test_two_packs_that_claim_one_module(only: Callable[..., None], tmp_path: Path) -> None:
    only("one-claims", "two-claims")
    error = refused(UsageError, lambda: built(Twice(), tmp_path / "a.lp"))
    assert error.fault == "two packs claim the same module (1 such)"
    assert error.faults == (
        "inner (Twice): lp_whl_one::double of one_claims (one-claims 1.0), candidate 1 and lp_whl_two::double of "
        "two_claims (two-claims 1.0), candidate 2 agree",
    )
    assert str(error.repair).startswith("prefer one, as in --prefer one_claims or prefer=['one_claims']")
    # The first of several, by the name of pack or distribution.
    for prefer, name in ((["one_claims"], "one"), (["two-claims", "one-claims"], "two")):
        report = built(Twice(), tmp_path / "a.lp", prefer=prefer)
        assert [one.layer for one in report.layers] == [f"lp_whl_{name}::double"]
        assert "and goes before" in report.claims[0].reason


def test_two_packs_whose_layers_are_found_at_one_place(only: Callable[..., None], tmp_path: Path) -> None:
    only("one-found", "two-found")
    error = refused(UsageError, lambda: built(Gate(), tmp_path / "a.lp"))
    assert error.fault == "layers of two packs are found at the same place (1 such)"
    (fault,) = error.faults
    assert fault.startswith("inner (") and fault.endswith(
        "): lp_whl_found_one::gate of pack one_found (one-found 1.0) and "
        "lp_whl_found_two::gate of pack two_found (two-found 1.0)"
    )
    assert "--prefer one_found" in str(error.repair) and "--no-find LAYER" in str(error.repair)
    source = tmp_path / "model.py"
    source.write_text(
        "import torch\n\n\nclass Gate(torch.nn.Module):\n    def forward(self, x):\n"
        "        return x * torch.sigmoid(x * 2.5)\n\n\ndef make():\n    return Gate(), (torch.ones(2, 4),)\n"
    )
    error = refused(UsageError, lambda: explain(f"{source}:make"))
    assert error.fault == "layers of two packs are found at the same place (1 such)"
    assert [one.layer for one in explain(f"{source}:make", prefer=["two_found"]).found] == ["lp_whl_found_two::gate"]
    report = built(Gate(), tmp_path / "a.lp", no_find=["lp_whl_found_two::gate"])
    assert [one.layer for one in report.found] == ["lp_whl_found_one::gate"]


def test_the_larger_place_of_two_packs_is_taken_unless_the_other_is_preferred(
    only: Callable[..., None], tmp_path: Path
) -> None:
    only("one-found", "larger-found")
    report = built(Gate(), tmp_path / "a.lp")
    assert [one.layer for one in report.found] == ["lp_whl_found_larger::gate"]
    report = built(Gate(), tmp_path / "a.lp", prefer=["one-found"])
    assert [one.layer for one in report.found] == ["lp_whl_found_one::gate"]


def test_one_namespace_in_two_packs(
    only: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only("one-space", "two-space")
    error = refused(PackError, lambda: built(Twice(), tmp_path / "a.lp"))
    assert str(error) == (
        "layer lp_whl_space::double is of the namespace lp_whl_space, which 2 packs use and one may\n"
        "  - pack one_space (one-space 1.0): lp_whl_space::double\n"
        "  - pack two_space (two-space 1.0): lp_whl_space::triple\n"
        "  to repair: prefer one, as in --prefer one_space or prefer=['one_space'], or block the others with "
        "LAYERPORT_DISABLE_PACKS=name"
    )
    shared = (
        "namespace lp_whl_space is used by one_space (one-space 1.0) and two_space (two-space 1.0), and one may; "
        "choose with --prefer name or LAYERPORT_DISABLE_PACKS=name"
    )
    assert layers_report(environ={}).warnings == (shared,) and layers_report(environ={}).conflicts == ()
    # Who says which goes first has looked: then each has what is its own.
    packs = load(prefer=["two_space"], environ={})
    assert [layer.name for layer in packs.layers] == ["lp_whl_space::double", "lp_whl_space::triple"]
    report = built(Twice(), tmp_path / "a.lp", prefer=["two_space"])
    assert [one.pack for one in report.layers] == ["one_space"]


def test_a_call_in_torch_finds_the_conversion_of_its_own_pack(
    only: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only("one-converts", "two-converts")
    packs = load(environ={})
    assert set(packs.conflicts) == {"lp_whl_converted::one", "lp_whl_converted::two"}
    monkeypatch.setattr(conversions, "installed_packs", lambda: packs)
    for factor, pack in enumerate(packs, 2):
        (layer,) = pack.layers
        assert conversions.has_conversion(layer)
        made = conversions.convert(layer, layer.bind(weight=torch.ones(2)).parameters, TorchTarget("sm_90"))
        assert made["weight"].tolist() == [factor, factor]
    # The kernel alone, which undoes the conversion.
    monkeypatch.setattr(kernel_runs, "installed_packs", lambda: packs)
    monkeypatch.delattr(packs.packs[0].plugin, "layerport_layers")
    (layer,) = packs.packs[0].layers
    x, weight = torch.randn(3, 4), torch.randn(4)
    torch.testing.assert_close(torch.from_numpy(kernel_runs.run_kernel(layer, x, weight)), x * weight)


def test_one_entry_point_name_in_two_distributions(only: Callable[..., None]) -> None:
    only("one-twin", "two-twin")
    packs = load(environ={})
    assert [pack.status for pack in packs] == ["failed", "failed"]
    assert packs.packs[0].failure == (
        "2 entry points are named 'twin': one-twin 1.0 and two-twin 1.0; uninstall all but one, name the wanted "
        "distribution, as in --prefer one-twin, or the other one in LAYERPORT_DISABLE_PACKS"
    )
    error = refused(PackError, lambda: load(prefer=["twin"], environ={}))
    assert "2 entry points are named 'twin': one-twin 1.0 and two-twin 1.0" in error.fault
    packs = load(prefer=["two-twin"], environ={"LAYERPORT_STRICT": "1"})
    assert [(pack.info.distribution, pack.status) for pack in packs] == [("two-twin", "loaded")]


def test_a_preferred_pack_that_is_not_there(only: Callable[..., None]) -> None:
    only("fits")
    error = refused(UsageError, lambda: load(prefer=["fit"], environ={}))
    assert str(error) == "there is no pack 'fit'\n  to repair: did you mean fits? installed packs: fits"


def test_a_file_that_shadows_an_installed_layer_says_so(
    only: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only("shadowed")
    file = tmp_path / "mine.py"
    file.write_text(
        LAYER.format(identity="lp_whl_shadowed::double", name="double", formula=TWICE).replace(
            '::double")', '::double", version=2)'
        )
    )
    note = (
        f"layer lp_whl_shadowed::double: version 2 from pack mine ({file}) is used, "
        "not version 1 from pack shadowed (shadowed 1.5)"
    )
    report = built(Twice(), tmp_path / "a.lp", packs=[str(file)])
    assert note in report.warnings
    assert note in layers_report(explicit=[str(file)], environ={}).warnings
    assert judge(checks_of(str(file))[0]).notes == (note,)
    assert packs_report(explicit=[str(file)], environ={}).warnings == (
        f"layer lp_whl_shadowed::double is provided by mine and shadowed (shadowed 1.5); that of mine ({file}) is used",
    )


def test_the_command_takes_preferences(only: Callable[..., None], tmp_path: Path) -> None:
    only("one-claims", "two-claims")
    model = tmp_path / "model.py"
    model.write_text(
        "import torch\n\n\nclass Twice(torch.nn.Module):\n    def forward(self, x):\n        return x * 2.0\n\n\n"
        "def make():\n    return Twice(), (torch.ones(2, 4),)\n"
    )
    out = str(tmp_path / "a.lp")
    command = ["build", f"{model}:make", "-o", out, "--target", "portable", "--json"]
    refused_run = CliRunner().invoke(main, command)
    assert refused_run.exit_code == 2 and "--prefer one_claims" in refused_run.stderr
    done = CliRunner().invoke(main, [*command, "--prefer", "two-claims"])
    assert done.exit_code == 0, done.stderr
    assert [one["pack"] for one in json.loads(done.stdout)["layers"]] == ["two_claims"]
    said = CliRunner().invoke(main, ["explain", f"{model}:make", "--prefer", "one_claims", "--json"])
    assert [one["layers"] for one in json.loads(said.stdout)["claims"]] == [["lp_whl_one::double"]]
    assert CliRunner().invoke(main, ["verify", out, "--prefer", "two-claims"]).exit_code == 0


# What a pack requires, and what it registers


@pytest.mark.parametrize(
    ("name", "wanted", "pip"),
    [
        ("too-new", ">=99", "pip install 'layerport>=99', or --upgrade too-new"),
        ("too-old", "<0.0.9,>=0.0.1", "pip install 'layerport<0.0.9,>=0.0.1', or --upgrade too-old"),
    ],
)
def test_a_pack_that_takes_another_core(only: Callable[..., None], name: str, wanted: str, pip: str) -> None:
    only(name, "fits")
    packs = load(environ={})
    by_name = {pack.info.distribution: pack for pack in packs}
    assert by_name[name].failure == f"{name} 1.0 takes layerport {wanted}, and here is {__version__}; {pip}"
    assert by_name["fits"].status == "loaded"
    assert packs_report(environ={}).packs[-1].status == "installed"  # from the metadata alone
    error = refused(PackError, lambda: load(name, environ={}))
    assert f"takes layerport {wanted}, and here is {__version__}" in error.fault


def test_a_pack_of_another_group_is_listed_with_the_line_to_write(
    only: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    only("elsewhere", "no-group", "an-application", "needs-nothing", "fits")
    report = packs_report(environ={})
    assert [(one.name, one.status) for one in report.packs] == [
        ("elsewhere", "failed"),
        ("fits", "installed"),
        ("no-group", "failed"),
    ]
    assert report.packs[0].reason == (
        "its entry point is in the group 'acme.plugins'; write elsewhere = \"elsewhere\" under "
        "[project.entry-points.layerport] in its pyproject.toml"
    )
    assert report.packs[2].reason == (
        'it registers no pack, though no_group has hooks; write no_group = "no_group" under '
        "[project.entry-points.layerport] in its pyproject.toml"
    )
    render_packs(report)
    assert "elsewhere (elsewhere) failed: its entry point is in the group" in capsys.readouterr().out
    # A build is not told: who passes the module itself needs no entry point.
    assert [pack.info.name for pack in load(environ={})] == ["fits"]
    error = refused(PackError, lambda: load("no-group", environ={}))
    assert "it registers no pack, though no_group has hooks" in error.fault
    checked = CliRunner().invoke(main, ["check", "elsewhere"])
    assert checked.exit_code == 3
    assert "FAILED pack: pack elsewhere (elsewhere 1.0): its entry point is in the group 'acme.plugins'; write" in (
        checked.stdout
    )
    checked = CliRunner().invoke(main, ["check", "fit"])
    assert checked.exit_code == 2 and "did you mean fits?" in checked.stderr
