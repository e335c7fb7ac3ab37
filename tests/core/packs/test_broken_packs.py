"""A pack that fails in a hook stops only the builds that need it, whatever it raises or returns."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerport as lp
import warm
from layerport import building
from layerport.commands.explaining import explain, print_explanation
from layerport.errors import BuildError, PackError, UsageError
from layerport.packs import clock as pack_clock
from layerport.packs.host import load
from packs.installer import Site
from packs.zoo import PLAIN


@lp.layer("lp_broken::scaled")
def scaled(x: Tensor, weight: lp.Param) -> Tensor:
    return x * weight


class Tempered(nn.Module):
    """A module that `packs/temper.py` claims; what the pack does then is its deed."""

    def __init__(self, deed: str = "", seconds: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.deed, self.seconds = deed, seconds

    def forward(self, x: Tensor) -> Tensor:
        return x * 3.0


class Net(nn.Module):
    def __init__(self, *deeds: str, own: Any = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Tempered(deed) for deed in deeds)
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.own is None else self.own(x)


X = (torch.ones(2, 4),)
CALL = "layerport_export_parameters at blocks.1 (Tempered)"


def build(tmp_path: Path, model: nn.Module, **options: Any) -> building.BuildReport:
    tmp_path.mkdir(exist_ok=True)
    return building.build((model.eval(), X), tmp_path / "out.lp", target="portable", **options)


FAULTS = {
    "raise": "raised ValueError: no such weight",
    "exit": "raised SystemExit: 0",
    "generator exit": "raised GeneratorExit",
    "own": "raised Own: mine",
    "mute": "raised Mute: (its __str__ raises RuntimeError)",
    "forged": "raised Forged: (its __str__ raises ZeroDivisionError)",
    "traceless": "raised Traceless: no trace",
    "nameless": "raised Nameless: no name",
    "recursion": "raised RecursionError: maximum recursion depth exceeded",
    "memory": "raised MemoryError",
    "stop": "raised StopIteration",
    "faceless": "returned Faceless (its __repr__ raises SystemExit), expected a bound layer or a rewrite",
    "liar": "returned Liar <",
    "list": "returned list [",
    "later": "returned coroutine <coroutine object later at",
}


@pytest.mark.parametrize("deed", FAULTS)
def test_a_pack_that_fails_is_left_out_of_a_build_that_does_not_need_it(site: Site, tmp_path: Path, deed: str) -> None:
    namespace = site.install("temper", name="bad", version="4.5")
    report = build(tmp_path, Net("", deed, ""), verify=False)
    (warning,) = report.warnings
    assert warning.startswith(f"pack bad (bad-layers 4.5): {CALL} {FAULTS[deed]}"), warning
    assert warning.endswith("; the pack claims no module in this build")
    assert report.claims == () and report.layers == ()
    with pytest.raises(PackError) as caught:
        build(tmp_path / "claimed", Net("", deed, ""), claim=[f"{namespace}::plain"])
    assert caught.value.fault.startswith(f"pack bad (bad-layers 4.5): {CALL} {FAULTS[deed]}")
    assert caught.value.repair is not None and caught.value.exit_code == 3
    assert not (tmp_path / "claimed" / "out.lp").exists()


def test_the_other_packs_are_asked_all_the_same(site: Site, tmp_path: Path) -> None:
    site.install("temper", name="a")
    good = site.install(
        (Path(__file__).parents[2] / "packs/temper.py").read_text().replace("module.deed", "''"), name="b"
    )
    report = build(tmp_path, Net("", "raise"))
    assert [claim.layers for claim in report.claims] == [(f"{good}::plain",)] * 2
    assert [claim.status for claim in report.claims] == ["claimed"] * 2
    assert len(report.warnings) == 1 and report.lookalikes == ()


@pytest.mark.parametrize("how", ["strict", "environment", "named"])
def test_strict_mode_and_a_pack_that_is_named_stop_the_build(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    site.install("temper", name="bad")
    options: dict[str, Any] = {"strict": {"strict": True}, "named": {"packs": ["bad"]}}.get(how, {})
    if how == "environment":
        monkeypatch.setenv("LAYERPORT_STRICT", "1")
    with pytest.raises(PackError, match=r"layerport_export_parameters at blocks.1 \(Tempered\) raised ValueError"):
        build(tmp_path, Net("", "raise"), **options)


def test_a_layer_that_the_model_calls_is_asked_for(site: Site, tmp_path: Path) -> None:
    namespace = site.install("temper", name="bad")
    (pack,) = load(environ={})
    assert len(build(tmp_path, Net("", own=pack.layers[0])).layers) == 2
    with pytest.raises(PackError) as caught:
        build(tmp_path / "second", Net("", "raise", own=pack.layers[0]))
    assert caught.value.fault.startswith(f"layer {namespace}::plain is called at ")
    assert f"but its pack fails: pack bad (bad-layers 1.0): {CALL} raised ValueError" in caught.value.fault


def test_a_layer_that_the_model_calls_of_a_pack_that_does_not_load(site: Site, tmp_path: Path) -> None:
    namespace = site.install("temper", name="bad", points="bad = entry_of_bad")
    (site.folder / "entry_of_bad.py").write_text("import nowhere_to_be_found\n")
    importlib.invalidate_caches()
    layer = importlib.import_module(site.modules[0]).plain
    report = build(tmp_path, Net(""))
    assert report.warnings[0].startswith("pack bad (bad-layers 1.0) failed to load: importing entry_of_bad raised")
    renamed = (site.folder / "entry_of_bad.py").rename(site.folder / f"{site.modules[0]}_entry.py")
    assert renamed.exists()
    info = next(site.folder.glob("*.dist-info")) / "entry_points.txt"
    info.write_text(f"[layerport]\nbad = {site.modules[0]}:nothing\n")
    with pytest.raises(PackError) as caught:
        build(tmp_path / "second", Net(own=layer))
    assert caught.value.fault.startswith(
        f"layer {namespace}::plain is not there, because pack bad (bad-layers 1.0) is not loaded: its entry point"
    )


def test_a_layer_that_only_a_failed_pack_can_have_is_that_packs_fault(site: Site, tmp_path: Path) -> None:
    site.install("import nowhere_to_be_found\n", name="bad")
    with pytest.raises(PackError) as caught:
        build(tmp_path, Net(""), claim=["somebody::gelu"])
    assert caught.value.fault == "no loaded pack provides a layer 'somebody::gelu'"
    assert caught.value.faults[0].startswith("pack bad (bad-layers 1.0) is not loaded: importing bad_pack_")


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("forward exits", "SystemExit: 0"),
        ("forward raises", "Mute: (its __str__ raises RuntimeError)"),
        ("odd answer", ""),
    ],
)
def test_a_forward_that_fails_is_a_claim_that_does_not_hold(site: Site, tmp_path: Path, deed: str, reason: str) -> None:
    site.install("temper", name="bad")
    report = build(tmp_path, Net("", deed))
    assert [claim.status for claim in report.claims] == ["claimed", "refused"]
    assert reason in report.claims[1].reason


def test_an_answer_that_lists_itself_otherwise_is_taken_as_it_lies(site: Site, tmp_path: Path) -> None:
    site.install("temper", name="odd")
    report = build(tmp_path, Net("endless"))
    assert [claim.status for claim in report.claims] == ["claimed"] and not report.warnings


OWN_CLASS = f"""
import importlib.metadata
import shutil
{PLAIN}

@lp.hookimpl
def layerport_export_parameters(module):
    return plain.bind() if type(module).__name__ == "Tempered" else None


@lp.hookimpl
def layerport_create_plugin(layer, bound, target):
    DEED
    return lp.PluginSpec.of(bound, plugin_class=f"{{__name__}}:make")
"""
UNINSTALL = "shutil.rmtree(importlib.metadata.distribution('own-layers')._path)"


def test_a_pack_that_is_uninstalled_between_export_and_engine(site: Site, tmp_path: Path) -> None:
    namespace = site.install(OWN_CLASS.replace("DEED", UNINSTALL), name="own", version="4.5")
    with pytest.raises(BuildError) as caught:
        building.build((Net("").eval(), X), tmp_path / "out.lp", target="rtx:sm_89")
    assert str(caught.value) == (
        "packs whose plugin classes the engine needs have changed since the model was exported\n"
        f"  - {namespace}::plain: own-layers 4.5, now not installed\n"
        "  to repair: pip install own-layers==4.5"
    )
    assert not (tmp_path / "out.lp").exists()


def test_a_plugin_class_that_is_not_in_the_wheel(site: Site, tmp_path: Path) -> None:
    site.install(OWN_CLASS.replace("DEED", ""), name="own")
    with pytest.raises(BuildError) as caught:
        building.build((Net("").eval(), X), tmp_path / "out.lp", target="rtx:sm_89")
    module = site.modules[0]
    assert f"its plugin class {module}:make cannot be imported: ModuleNotFoundError: No module" in str(caught.value)
    assert "install the pack that provides it, where the engine is built and run" in str(caught.value)


def test_a_reference_that_exits_while_it_is_exported(site: Site, tmp_path: Path) -> None:
    site.install("temper", name="bad")
    module = load(environ={}).packs[0].plugin

    class Twice(Tempered):
        pass

    Twice.__name__ = "Tempered"
    net = Net("reference exits")
    real = torch.onnx.export

    def export(*args: Any, **kwargs: Any) -> Any:
        module.DEEDS_OF_THE_REFERENCE.add("leaves")  # type: ignore[union-attr]
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(PackError) as caught:
        patch.setattr(torch.onnx, "export", export)
        build(tmp_path, net)
    assert caught.value.fault.startswith(f"pack bad (bad-layers 1.0): leaves ({module.__file__}:")  # type: ignore[union-attr]
    assert caught.value.fault.endswith("raised SystemExit: 0")
    assert not (tmp_path / "out.lp").exists()


def test_a_change_that_cannot_be_put_back_stops_every_build(site: Site, tmp_path: Path) -> None:
    site.install("temper", name="bad")
    with pytest.raises(PackError) as caught:
        build(tmp_path, Net("", "behind"))
    assert "changed the values of blocks.1.weight (behind Torch's back: they cannot be put back)" in caught.value.fault
    model = Net("", "zero")
    report = build(tmp_path / "second", model)
    assert "layerport_export_parameters changed the values of blocks.1.weight; the pack claims" in report.warnings[0]
    assert torch.equal(model.blocks[1].weight, torch.ones(4))  # type: ignore[arg-type]


def test_explain_says_which_pack_is_left_out(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("temper", name="bad")
    monkeypatch.setattr(sys.modules[__name__], "made", lambda: (Net("", "raise").eval(), X), raising=False)
    result = explain(f"{__name__}:made")
    print_explanation(result)
    assert f"note: pack bad (bad-layers 1.0): {CALL} raised ValueError" in capsys.readouterr().out


def test_a_slow_hook_is_named_while_it_runs(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("temper", name="slow")
    monkeypatch.setattr(pack_clock, "PATIENCE", 0.2)
    notes = []
    model = Net("", "slow")
    model.blocks[1].seconds = 0.8  # type: ignore[assignment]
    build(tmp_path, model, progress=lambda event: notes.append(event.text) if event.kind == "note" else None)
    start = f"pack slow (slow-layers 1.0): {CALL} has been running for "
    assert 1 <= len(notes) <= 3 and all(note.startswith(start) for note in notes)
    assert notes[0].endswith(" s; Ctrl-C stops the build")


MODEL = "import torch\n\ndef make():\n    {}\n    return torch.nn.Linear(2, 2).eval(), (torch.ones(1, 2),)\n"
COMMAND = "from layerport.cli import main; main(['build', 'model.py:make', '-o', 'out.lp', '--target', 'portable'])"


def run_build(folder: Path, *, site: Path | None = None, line: str = "pass") -> subprocess.CompletedProcess[str]:
    (folder / "model.py").write_text(MODEL.format(line))
    path = os.pathsep.join([*([str(site)] if site else []), *filter(None, sys.path)])
    return subprocess.run(
        [warm.python(), "-c", COMMAND],
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_thread_that_a_pack_has_left_does_not_keep_the_command_from_ending(site: Site, tmp_path: Path) -> None:
    site.install(
        "import threading\nimport layerport as lp\nthreading.Thread(target=threading.Event().wait).start()\n"
        "@lp.hookimpl\ndef layerport_layers():\n    return ()\n",
        name="stays",
    )
    done = run_build(tmp_path, site=site.folder)
    assert done.returncode == 0, done.stderr
    assert "note: pack stays (stays-layers 1.0): it left a thread running (Thread-" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("wrote out.lp (")


def test_a_source_that_exits_is_no_success(tmp_path: Path) -> None:
    done = run_build(tmp_path, line="raise SystemExit(0)")
    assert done.returncode not in (0, 3) and "SystemExit" in done.stderr and not (tmp_path / "out.lp").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_in_a_slow_hook_ends_the_build(site: Site, tmp_path: Path) -> None:
    site.install(
        "import time\nimport layerport as lp\n@lp.hookimpl\ndef layerport_layers():\n    return ()\n\n"
        "@lp.hookimpl\ndef layerport_export_parameters(module, name):\n    open('asked', 'w')\n    time.sleep(1000)\n",
        name="slow",
    )
    (tmp_path / "model.py").write_text(MODEL.format("pass"))
    path = os.pathsep.join([str(site.folder), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", f"import signal; signal.signal(2, signal.default_int_handler); {COMMAND}"]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        limit = time.monotonic() + 100
        while not (tmp_path / "asked").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        time.sleep(6.5)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(20) == 130 and time.monotonic() - start < 10
    hook = "note: pack slow (slow-layers 1.0): layerport_export_parameters at the root module (Linear) has been running"
    assert hook in said and "error: interrupted; nothing was written" in said and "Traceback" not in said
    assert not (tmp_path / "out.lp").exists()


def test_one_buffer_for_all_answers_is_refused() -> None:
    buffer = np.zeros(4, np.float32)

    class Reuses:
        @lp.hookimpl
        def layerport_layers(self) -> Any:
            return (scaled,)

        @lp.hookimpl
        def layerport_convert_parameters(self, layer: Any, parameters: Any) -> Any:
            buffer[:] = parameters["weight"] * 2
            return parameters.replace(weight=buffer)

    packs = load(Reuses(), environ={})
    one, other = (scaled.bind(weight=torch.full((4,), value)).parameters for value in (1.0, 5.0))
    first = packs.convert_parameters(scaled, one, None)  # type: ignore[arg-type]
    assert first["weight"].tolist() == [2.0] * 4
    with pytest.raises(PackError) as caught:
        packs.convert_parameters(scaled, other, None)  # type: ignore[arg-type]
    assert caught.value.fault.endswith(
        "layerport_convert_parameters changed the values of weight, which it had answered with before"
    )


def test_a_layer_keeps_its_identity() -> None:
    for name, value in (("name", "elsewhere::scaled"), ("version", 2), ("reference", len), ("signature", None)):
        with pytest.raises(UsageError, match=f"layer lp_broken::scaled: its {name} is fixed"):
            setattr(scaled, name, value)


def test_a_name_of_a_class_of_its_own_is_a_plain_name() -> None:
    class Name(str):
        def __eq__(self, other: object) -> bool:
            raise ValueError("incomparable")

        __hash__ = str.__hash__

    def twice(x: Tensor) -> Tensor:
        return x * 2.0

    twice.name = "elsewhere::twice"  # type: ignore[attr-defined]
    layer = lp.layer(Name("lp_broken::twice"))(twice)
    assert type(layer.name) is str and layer.name == "lp_broken::twice"
