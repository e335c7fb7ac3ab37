"""Packs: the switches, who owns a layer, and what comes out of the hooks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import layerport as lp
from asked_packs import export_parameters
from layerport.errors import PackError, UsageError
from layerport.packs import core_plugin
from layerport.packs.host import Packs, load
from layerport.packs.records import Rewrite
from packs.installer import Site

HOOK = "import layerport as lp\n\n"


def one(packs: Packs, name: str = "fake") -> Any:
    return next(pack for pack in packs if pack.info.name == name)


class Doubling(torch.nn.Module):
    doubling = True


class Moody(torch.nn.Module):
    def __init__(self, deed: str) -> None:
        super().__init__()
        self.deed = deed


# The switches


def test_a_disabled_pack_is_not_imported(site: Site) -> None:
    namespace = site.install("raise SystemExit\n", name="blocked")
    environ = {"LAYERPORT_DISABLE_PACKS": " Blocked , "}
    packs = load(environ=environ)
    assert [pack.status for pack in packs] == ["disabled"]
    assert packs.failed == () and packs.warnings == ()
    with pytest.raises(PackError) as caught:
        packs.layer("blocked::layer")
    assert str(caught.value) == (
        "layer blocked::layer is not there, because pack blocked (blocked-layers 1.0) is not loaded: "
        "it is disabled by LAYERPORT_DISABLE_PACKS\n  to repair: take it out of LAYERPORT_DISABLE_PACKS"
    )
    assert namespace


def test_an_unknown_name_in_the_disable_switch_is_reported(site: Site) -> None:
    site.install("good", name="swishes")
    assert load(environ={"LAYERPORT_DISABLE_PACKS": "swishs"}).warnings == (
        "LAYERPORT_DISABLE_PACKS names 'swishs', which is not an installed pack; did you mean swishes?",
    )
    assert load(environ={"LAYERPORT_DISABLE_PACKS": "zzz"}).warnings == (
        ("LAYERPORT_DISABLE_PACKS names 'zzz', which is not an installed pack; installed: swishes, swishes-layers"),
    )


def test_strict_makes_every_failure_fatal(site: Site) -> None:
    site.install("import not_there_at_all\n", name="broken")
    site.install("good", name="a", namespace="strict_conflict")
    site.install("good", name="b", namespace="strict_conflict")
    environ = {"LAYERPORT_STRICT": "1", "LAYERPORT_DISABLE_PACKS": "nobody"}
    with pytest.raises(PackError) as caught:
        load(environ=environ)
    assert caught.value.fault == "4 faults in the installed packs, and LAYERPORT_STRICT is set"
    text = str(caught.value)
    assert "pack broken (broken-layers 1.0): importing broken_pack" in text
    assert (
        "layer strict_conflict::swish is provided by 2 packs: version 3 from pack a (a-layers 1.0) and version 3 "
        "from pack b "
        "(b-layers 1.0)" in text
    )
    assert "LAYERPORT_DISABLE_PACKS names 'nobody'" in text
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert caught.value.exit_code == 3
    assert load(environ={**environ, "LAYERPORT_STRICT": "0"}).failed


def test_trace_prints_each_call_to_stderr(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    namespace = site.install("good")
    packs = load(environ={"LAYERPORT_TRACE": "1"})
    export_parameters(packs, Doubling(), "block.1")
    captured = capsys.readouterr()
    lines = [re.sub(r"\(\d+\.\d{3} ms\)$", "(t ms)", line) for line in captured.err.splitlines()]
    lines = [line for line in lines if " (Module) " not in line]  # what is around the module is asked about too
    start = "layerport trace: pack fake (fake-layers 1.0): "
    assert lines == [
        f"{start}layerport_layers -> (Layer {namespace}::swish, Layer {namespace}::double) (t ms)",
        (
            f"{start}layerport_export_parameters at block.1 (Doubling) -> "
            f"(BoundLayer {namespace}::double, rewrite with {namespace}::double) (t ms)"
        ),
    ]
    assert captured.out == ""


# Ownership


def test_one_identity_in_two_packs_is_an_error_that_names_both(site: Site) -> None:
    site.install("good", name="a", version="1.1", namespace="conflict_of_two")
    site.install("good", name="b", version="2.2", namespace="conflict_of_two")
    fine = site.install("good", name="fine")
    packs = load(environ={})
    assert [layer.name for layer in packs.layers] == [f"{fine}::double", f"{fine}::swish"]
    expected = (
        "layer conflict_of_two::double is provided by 2 packs\n"
        "  - version 1 from pack a (a-layers 1.1)\n"
        "  - version 1 from pack b (b-layers 2.2)\n"
        "  to repair: prefer one, as in --prefer a or prefer=['a'], or block the others with "
        "LAYERPORT_DISABLE_PACKS=name"
    )
    for ask in (
        lambda: packs.layer("conflict_of_two::double"),
        lambda: packs.owner("conflict_of_two::double"),
        lambda: export_parameters(packs, Doubling(), "x"),
    ):
        with pytest.raises(PackError) as caught:
            ask()
        assert str(caught.value) == expected
    packs = load(environ={"LAYERPORT_DISABLE_PACKS": "a"})
    assert packs.owner("conflict_of_two::double").info.name == "b"


def test_naming_a_pack_chooses_it(site: Site) -> None:
    site.install("good", name="a", namespace="conflict_chosen")
    site.install("good", name="b", namespace="conflict_chosen")
    packs = load("b-layers", environ={})
    layer = packs.layer("conflict_chosen::double")
    assert packs.owner(layer).info.name == "b" and not packs.conflicts
    # The chosen pack loads first, so the Torch operator is its own.
    torch.testing.assert_close(layer(torch.ones(2)), torch.full((2,), 2.0))
    ((pack, _),) = export_parameters(packs, Doubling(), "x")
    assert pack.info.name == "b"


def test_naming_both_is_still_a_conflict(site: Site) -> None:
    site.install("good", name="a", namespace="conflict_named")
    site.install("good", name="b", namespace="conflict_named")
    assert set(load("a", "b", environ={}).conflicts) == {"conflict_named::double", "conflict_named::swish"}


def test_an_unknown_layer_is_answered_with_near_names_and_what_is_there(site: Site) -> None:
    namespace = site.install("good")
    site.install("import not_there_at_all\n", name="broken")
    packs = load(environ={})
    for wrong in (f"{namespace}::doubl", "double", "elsewhere::double"):
        with pytest.raises(UsageError) as caught:
            packs.layer(wrong)
        text = str(caught.value)
        assert f"no loaded pack provides a layer {wrong!r}" in text
        assert f"did you mean {namespace}::double" in text
        assert f"installed layers: {namespace}::double, {namespace}::swish" in text
        assert "pack broken (broken-layers 1.0) is not loaded: importing broken_pack" in text


@pytest.mark.parametrize("namespace", ["broken", "broken_layers"])
def test_a_layer_of_a_failed_pack_is_answered_with_the_reason(site: Site, namespace: str) -> None:
    site.install("import not_there_at_all\n", name="broken")
    with pytest.raises(PackError) as caught:
        load(environ={}).layer(f"{namespace}::anything")
    assert caught.value.fault.startswith(
        f"layer {namespace}::anything is not there, because pack broken (broken-layers 1.0) is not loaded: importing"
    )
    assert "No module named 'not_there_at_all'" in caught.value.fault
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


# The hooks


def test_a_hook_may_answer_with_several_candidates_and_take_fewer_arguments(site: Site) -> None:
    namespace = site.install("good")
    packs = load(environ={})
    ((pack, (bound, rewrite)),) = export_parameters(packs, Doubling(), "block")
    assert pack.info.name == "fake"
    assert bound.layer.name == f"{namespace}::double"  # type: ignore[union-attr]
    assert isinstance(rewrite, Rewrite)
    assert export_parameters(packs, torch.nn.Linear(1, 1), "x") == []


def test_only_the_owner_converts_and_the_core_is_asked_last(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Core:
        @lp.hookimpl
        def layerport_convert_parameters(self, layer: Any, parameters: Any) -> Any:
            asked.append(layer.name)
            return None

        @lp.hookimpl
        def layerport_export_parameters(self, module: Any, name: str) -> Any:
            asked.append(name)

    monkeypatch.setattr(core_plugin, "CorePlugin", Core)
    namespace = site.install("good", name="a")
    site.install("misbehaves", name="b")
    packs = load(environ={})
    swish, double = packs.layer(f"{namespace}::swish"), packs.layer(f"{namespace}::double")
    standard = swish.bind(scale=torch.ones(4)).parameters
    converted = packs.convert_parameters(swish, standard, "raise")  # type: ignore[arg-type]
    assert converted["scale"].dtype == "float16" and asked == []
    empty = double.bind().parameters
    assert packs.convert_parameters(double, empty, "raise") is empty  # type: ignore[arg-type]
    assert asked == [f"{namespace}::double"]
    export_parameters(packs, Doubling(), "claimed")
    export_parameters(packs, torch.nn.Identity(), "free")
    assert [name for name in asked[1:] if name] == ["free"]  # "": what is around the modules


@pytest.mark.parametrize(
    ("deed", "message", "cause"),
    [
        ("raise", "raised ValueError: no such weight", ValueError),
        ("exit", "raised SystemExit: 7", SystemExit),
        ("text", "returned str 'nonsense', expected a bound layer or a rewrite", None),
        ("mixed", "returned int 5 at index 1, expected a bound layer or a rewrite", None),
        ("layer", "returned the layer {namespace}::moody without parameters", None),
    ],
)
def test_a_fault_in_a_hook_names_pack_version_hook_and_module(
    site: Site, deed: str, message: str, cause: type[BaseException] | None
) -> None:
    namespace = site.install("misbehaves", version="4.5")
    packs = load(environ={})
    with pytest.raises(PackError) as caught:
        export_parameters(packs, Moody(deed), "model.layers.3")
    text = str(caught.value)
    context = "pack fake (fake-layers 4.5): layerport_export_parameters at model.layers.3 (Moody)"
    assert text.startswith(f"{context} {message.format(namespace=namespace)}")
    assert "to repair: " in text
    assert type(caught.value.__cause__) is (cause or type(None))


def test_a_pack_may_not_answer_with_a_layer_that_nobody_provides(site: Site) -> None:
    namespace = site.install("misbehaves")
    with pytest.raises(PackError) as caught:
        export_parameters(load(environ={}), Moody("hidden"), "")
    assert str(caught.value) == (
        "pack fake (fake-layers 1.0): layerport_export_parameters at the root module (Moody) answers with "
        f"layer {namespace}::hidden, which no loaded pack provides\n"
        "  to repair: return that layer from layerport_layers too"
    )


def test_an_error_of_ours_from_a_hook_keeps_its_faults_and_its_repair(site: Site) -> None:
    namespace = site.install("misbehaves")
    packs = load(environ={})
    moody = packs.layer(f"{namespace}::moody")
    with pytest.raises(PackError) as caught:
        packs.convert_parameters(moody, moody.bind().parameters, "refuse", path="model.act")  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"pack fake (fake-layers 1.0): layerport_convert_parameters for layer {namespace}::moody at "
        "model.act: two faults\n  - first\n  - second\n  to repair: mend them"
    )
    assert isinstance(caught.value.__cause__, UsageError)


def test_a_wrong_record_from_the_step_hooks_is_refused(site: Site) -> None:
    namespace = site.install("misbehaves")
    packs = load(environ={})
    moody = packs.layer(f"{namespace}::moody")
    bound = moody.bind()
    with pytest.raises(PackError, match="returned str 'nonsense', expected Parameters"):
        packs.convert_parameters(moody, bound.parameters, "text")  # type: ignore[arg-type]
    with pytest.raises(PackError, match="returned str 'nonsense', expected a PluginSpec"):
        packs.create_plugin(moody, bound, "text")  # type: ignore[arg-type]


def test_ctrl_c_in_a_hook_passes(site: Site) -> None:
    site.install("misbehaves")
    with pytest.raises(KeyboardInterrupt):
        export_parameters(load(environ={}), Moody("interrupt"), "x")


def test_an_unknown_hook_cannot_be_called(site: Site) -> None:
    site.install("good")
    packs = load(environ={})
    with pytest.raises(UsageError, match="there is no hook 'layerport_nothing'"):
        packs.call("layerport_nothing", one(packs))


# Packs that the user names


def test_a_file_is_a_pack_and_is_imported_once(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "loose.py"
    file.write_text((Path(__file__).parents[2] / "packs/good.py").read_text().replace("NAMESPACE", "loose_file"))
    packs = load(str(file), environ={})
    assert packs.owner("loose_file::double").info.label == f"loose ({file})"
    assert load(file, environ={}).layers == packs.layers
    assert load(file, str(file), environ={}).layers == packs.layers


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.py", "there is no pack file 'nowhere.py'"),
        ("fak", "there is no pack 'fak'\n  to repair: did you mean fake? installed packs: fake"),
    ],
)
def test_a_named_pack_that_does_not_exist(site: Site, given: str, message: str) -> None:
    site.install("good")
    with pytest.raises(UsageError) as caught:
        load(given, environ={})
    assert str(caught.value).startswith(message)


def test_a_named_pack_that_is_disabled_or_fails_is_an_error(site: Site, tmp_path: Path) -> None:
    site.install("good")
    with pytest.raises(UsageError, match=r"pack fake \(fake-layers 1.0\) is disabled"):
        load("fake", environ={"LAYERPORT_DISABLE_PACKS": "fake"})
    file = tmp_path / "broken.py"
    file.write_text("1 / 0\n")
    with pytest.raises(PackError, match=r"raised ZeroDivisionError: division by zero") as caught:
        load(file, environ={})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_the_plugin_object_of_an_installed_pack_is_that_pack(site: Site) -> None:
    namespace = site.install("good")
    plugin = one(load(environ={})).plugin
    packs = load(plugin, environ={})
    assert [pack.info.label for pack in packs] == ["fake (fake-layers 1.0)"]
    assert packs.owner(f"{namespace}::double").explicit
