"""Doctor: what it says follows from what it finds, and no finding can take it down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hidden_names import hide
from layerport.commands import doctor, doctor_probe
from layerport.commands.doctor import DoctorReport, doctor_report, render_doctor, run_probe
from layerport.commands.tables import plain_table, print_table
from layerport.errors import BuildError
from layerport.foreign import tested
from packs.installer import Site

WORKING = {
    "driver": {"cuda": "13.1", "gpus": [{"name": "NVIDIA H200", "arch": "sm_90"}]},
    "nvrtc": {"version": "13.3"},
    "headers": {"folder": "/usr/include"},
    "tensorrt_rtx": {"version": "1.7.1"},
    "tensorrt": {"error": "not installed", "absent": True},
    "plugin library": {"takes": ["tensorrt_rtx 1.7.1"]},
}
LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "cuda-bindings")
VERSIONS = dict.fromkeys(LIBRARIES, "99.0")


def report(
    monkeypatch: pytest.MonkeyPatch, probe: dict[str, Any], versions: dict[str, str] | None = None
) -> DoctorReport:
    monkeypatch.setattr(doctor, "run_probe", lambda: {**WORKING, **probe})
    monkeypatch.setattr(doctor, "_installed", (VERSIONS if versions is None else versions).get)
    requirements = ["torch>=2.10", "tensorrt>=11; extra == 'tensorrt'", "onnx>=1.18"]
    monkeypatch.setattr(metadata, "requires", lambda name: requirements)
    return doctor_report(environ={})


def test_a_library_newer_than_the_tested_ones_is_a_note_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert report(monkeypatch, {}).warnings == ()
    versions = {"torch": "2.14.0+cpu", "triton": "4.0.0"}
    monkeypatch.setattr(tested.metadata, "version", versions.__getitem__)
    lacking = {"missing": ["it has no torch._C._any_requires_grad (a call): each argument is asked, in Python"]}
    answer = report(monkeypatch, {"torch names": lacking, "triton names": {"missing": []}})
    assert answer.warnings == (
        f"torch 2.14.0+cpu is newer than the tested {tested.NEWEST['torch']}: {lacking['missing'][0]}",
        f"triton 4.0.0 is newer than the tested {tested.NEWEST['triton']}: every private name that is used is there",
    )
    assert finding(answer, "Torch")["found"] and finding(answer, "Torch")["problem"] is None


def test_private_names_are_looked_up_where_a_library_is_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [name for name in doctor_probe.probe() if name.endswith(" names")]
    monkeypatch.setattr(doctor_probe, "newer_than_tested", {"torch": "2.14.0", "triton": None}.get)
    hide(monkeypatch, ["torch._C._any_requires_grad"])
    (said,) = doctor_probe.probe()["torch names"]["missing"]
    assert said.startswith("it has no torch._C._any_requires_grad (the Autograd implementation of a layer's")


def finding(answer: DoctorReport, what: str) -> dict[str, Any]:
    return next(item for item in answer.to_json()["findings"] if item["what"] == what)


def ability(answer: DoctorReport, what: str) -> dict[str, Any]:
    return next(item for item in answer.to_json()["abilities"] if item["what"] == what)


def test_a_machine_that_has_everything_for_rtx(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("good", name="swishes")
    answer = report(monkeypatch, {})
    json.dumps(answer.to_json())
    assert finding(answer, "GPU")["version"] == "NVIDIA H200 (sm_90)"
    assert finding(answer, "pack swishes")["version"] == "swishes-layers 1.0"
    assert ability(answer, "run engines of TensorRT for RTX") == {
        "what": "run engines of TensorRT for RTX",
        "works": True,
        "lacks": [],
    }
    assert ability(answer, "build engines with TensorRT")["lacks"] == ["TensorRT"]


def test_a_machine_without_a_gpu_still_builds(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = report(monkeypatch, {"driver": {"error": "OSError: libcuda.so.1"}})
    assert ability(answer, "build engines with TensorRT for RTX")["works"]
    assert ability(answer, "run engines of TensorRT for RTX")["lacks"] == ["NVIDIA driver", "GPU"]


def test_a_driver_older_than_the_compiler_is_a_problem(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = report(monkeypatch, {"driver": {"cuda": "12.4", "gpus": []}})
    assert finding(answer, "NVIDIA driver")["problem"] == (
        "it supports CUDA 12.4, but kernels are compiled by NVRTC 13.3; update it"
    )
    assert not finding(answer, "NVIDIA driver")["found"]


def test_a_version_that_is_too_old_is_a_problem(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = report(monkeypatch, {"tensorrt": {"version": "10.9"}}, {**VERSIONS, "torch": "2.4.0"})
    assert finding(answer, "Torch")["problem"] == "version 2.4.0 is there, >=2.10 is needed"
    assert finding(answer, "TensorRT")["problem"] == "version 10.9 is there, >=11 is needed"
    render_doctor(answer)
    out = capsys.readouterr().out
    assert "Torch: version 2.4.0 is there, >=2.10 is needed" in out
    assert "  no   build a portable bundle from a Torch model (lacks Torch)" in out


def test_a_library_that_is_installed_and_does_not_load_says_why(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"error": "ImportError: libnvinfer.so.11"}
    answer = report(monkeypatch, {"tensorrt": broken}, {**VERSIONS, "tensorrt": "11.1"})
    assert finding(answer, "TensorRT") == {
        "what": "TensorRT",
        "found": False,
        "version": "11.1",
        "enables": "engines for the GPU of this machine",
        "install": "pip install 'layerport[tensorrt]'",
        "problem": "ImportError: libnvinfer.so.11",
    }


def test_nothing_installed_says_what_to_install(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = {"error": "not installed", "absent": True}
    probe = dict.fromkeys(WORKING, absent)
    render_doctor(report(monkeypatch, probe, {}))
    out = capsys.readouterr().out
    for command in (
        "pip install 'layerport[build]'",
        "pip install 'layerport[rtx]'",
        "pip install layerport-builtin-layers",
    ):
        assert command in out
    assert "  yes" not in out


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import os; os.abort()", "looking at it ended the process with exit code -6"),
        ("print('not json')", "looking at it failed: JSONDecodeError"),
        ("pass", "looking at it failed: IndexError"),
    ],
)
def test_a_probe_that_dies_is_a_finding(code: str, fault: str) -> None:
    found = run_probe(("-c", code))
    assert set(found) == set(WORKING)
    assert {entry["error"] for entry in found.values()} == {fault}


def test_the_real_probe_answers_and_torch_is_not_imported() -> None:
    code = (
        "import json, sys\nfrom layerport.commands.doctor import doctor_report\n"
        "answer = doctor_report()\nheavy = {'torch', 'onnx'} & set(sys.modules)\n"
        "print(json.dumps([answer.to_json(), sorted(heavy)]))\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    answer, heavy = json.loads(child.stdout)
    assert heavy == []
    (torch,) = (item for item in answer["findings"] if item["what"] == "Torch")
    assert torch["version"] == metadata.version("torch")
    problems = [item["problem"] or "" for item in answer["findings"]]
    assert not [problem for problem in problems if problem.startswith("looking at it")]


def test_tables_are_aligned_and_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert plain_table(["a", "bb"], [["long", ""], ["x", "y"]]) == ["a     bb", "long", "x     y"]
    print_table(["a"], [["\x1b[31m[bold]red"]])
    assert capsys.readouterr().out == "a\n\\x1b[31m[bold]red\n"


def test_a_terminal_gets_a_rich_table_without_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    print_table(["name"], [["[bold]x"]], file=terminal)
    assert "[bold]x" in terminal.getvalue()


def test_whether_the_plugin_library_fits_the_tensorrt_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert finding(report(monkeypatch, {}), "plugin library")["install"] == "pip install layerport-native"
    installed = {**VERSIONS, "layerport-native": "0.1.0"}
    found = finding(report(monkeypatch, {}, installed), "plugin library")
    assert (found["found"], found["version"]) == (True, "0.1.0 (loads into tensorrt_rtx 1.7.1)")
    found = finding(report(monkeypatch, {"plugin library": {"takes": []}}, installed), "plugin library")
    assert (found["found"], found["version"]) == (True, "0.1.0")
    for fault in ("it was not compiled", "TensorRT 99.1 does not take the plugin library"):
        found = finding(report(monkeypatch, {"plugin library": {"error": fault}}, installed), "plugin library")
        assert (found["found"], found["problem"]) == (False, fault)


def test_the_library_is_really_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = SimpleNamespace(__version__="1.7.1")
    monkeypatch.setattr(doctor_probe.native, "library", lambda registers_itself=False: Path("library.so"))
    monkeypatch.setattr(doctor_probe.importlib, "import_module", {"tensorrt_rtx": trt}.__getitem__)
    monkeypatch.setattr(doctor_probe.native, "load", lambda module: module is trt)
    assert doctor_probe._plugin_library() == {"takes": ["tensorrt_rtx 1.7.1"]}

    def refuse(module: object) -> None:
        raise BuildError("TensorRT 1.7.1 does not take it", "update")

    monkeypatch.setattr(doctor_probe.native, "load", refuse)
    assert doctor_probe._plugin_library() == {"error": "TensorRT 1.7.1 does not take it"}
    monkeypatch.setattr(doctor_probe.native, "library", lambda registers_itself=False: None)
    assert doctor_probe._plugin_library() == {"error": "it was not compiled", "absent": True}
