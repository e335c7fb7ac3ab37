"""`layerport check` and the pytest plugin: what they say, in which form, and packs that hang or end their process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from layerport.cli import main
from layerport.commands import checking
from layerport.commands.checking import check_pack
from layerport.errors import UsageError
from packs.zoo_conformance import TEXT

# A layer that takes next to no time to check: no parameters, no kernel, no case for most checks.
QUICK = '''
from torch import Tensor

import layerport as lp
from layerport.testing import CaseShape, LayerCase, Tolerance


@lp.layer("NAMESPACE::double")
def double(x: Tensor) -> Tensor:
    """2 * x."""
    return x * 2


CASE = LayerCase(double, [CaseShape("small", {"x": (2, 3)})], ["int32"], {})


@lp.hookimpl
def layerport_layers():
    return (double,)
'''


def write(folder: Path, text: str) -> str:
    file = folder / "checked.py"
    file.write_text(text.replace("NAMESPACE", "checked"))
    return str(file)


SPOILT = '''

@lp.layer("NAMESPACE::spoilt")
def spoilt(x: Tensor) -> Tensor:
    """2 * x."""
    return x.add_(1) * 2


OTHER = LayerCase(spoilt, [CaseShape("small", {"x": (2, 3)})], ["int32"], {})


@lp.hookimpl
def layerport_layers():
    return (double, spoilt)
'''


def test_the_command_says_what_fails_and_what_to_change(tmp_path: Path) -> None:
    file, junit = write(tmp_path, QUICK.partition("\n\n@lp.hookimpl")[0] + SPOILT), tmp_path / "report.xml"
    done = CliRunner().invoke(main, ["check", file, "--junit", str(junit)])
    assert done.exit_code == 3
    assert "checked::double int32: passed: reference, operator, shapes, onnx, network\n" in done.output
    assert "checked::double int32: not run: compilation, plugin, launch, kernel, sanitizer\n" in done.output
    assert "checked::spoilt int32: FAILED: reference, " in done.output
    assert (
        "FAILED checked::spoilt int32 reference: spoilt-small-int32: the reference changes its input x\n" in done.output
    )
    assert "  to repair: write it without in-place operations on its inputs" in done.output
    suite = ElementTree.parse(junit).getroot()
    (case,) = [one for one in suite.iter("testcase") if one.get("name") == "int32 reference" and len(one)]
    assert case.get("classname") == "checked::spoilt"
    (failure,) = case.findall("failure")
    assert failure.get("message") == "spoilt-small-int32: the reference changes its input x"


def test_the_command_says_what_runs_and_what_took_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_SLOW", 0.01)
    done = CliRunner().invoke(main, ["check", write(tmp_path, QUICK)])
    lines = [line.partition(" s] ")[2] for line in done.stderr.splitlines()]
    assert [line for line in lines if "has run" not in line] == ["checked::double", "checked::double int32"]
    assert "checked::double int32 onnx has run for 0.01 s" in lines
    *_, longest, last = done.stdout.splitlines()
    assert re.fullmatch(r"longest: (checked::double int32 \w+ \d+ s(; |$)){3}", longest)
    assert re.search(r"checked\.py: 1 layer, 7 passed, 0 failed, 6 not run in \d+ s; no GPU was asked$", last)


def test_the_command_on_one_layer_in_json(tmp_path: Path) -> None:
    file, junit = write(tmp_path, QUICK), tmp_path / "report.xml"
    done = CliRunner().invoke(main, ["check", file, "--json", "--junit", str(junit), "--layer", "double"])
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    said = json.loads(done.output)
    assert (said["pack"], said["passed"]) == (file, True)
    answers = {one["check"]: one["answer"] for one in said["checks"]}
    assert answers == {
        **dict.fromkeys(("pack", "record", "onnx", "reference", "operator", "shapes", "network"), "passed"),
        **dict.fromkeys(("gradients", "compilation", "plugin", "launch", "kernel", "sanitizer"), "not run"),
    }
    assert {one["reason"] for one in said["checks"] if one["check"] == "kernel"} == {"it has no kernel"}
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("13", "0", "6")


@pytest.mark.parametrize(
    ("old", "new", "seconds", "check", "fault"),
    [
        ("CASE =", "import time; time.sleep(99)\nCASE =", 6, "pack", "does not end within 6 s"),
        ("{})", "{}, lambda *_: __import__('os')._exit(7))", 60, "gradients", "ends its process with exit code 7"),
        ("import layerport as lp", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 60, "pack", "SIGSEGV"),
    ],
)
def test_a_pack_that_brings_its_process_down(
    old: str, new: str, seconds: float, check: str, fault: str, tmp_path: Path
) -> None:
    report = check_pack(write(tmp_path, QUICK.replace(old, new)), seconds=seconds)
    assert not report.passed
    assert [one.check for one in report.checks if one.answer == "failed"] == [check]
    assert fault in report.checks[-1].reason and "to repair: " in report.checks[-1].reason


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no pack 'nobody'"):
        check_pack("nobody")
    with pytest.raises(UsageError, match="has no layer 'triple'"):
        check_pack(write(tmp_path, QUICK), layers=["triple"])
    assert CliRunner().invoke(main, ["check", "nobody"]).exit_code == 2


def test_the_same_in_pytest(tmp_path: Path) -> None:
    file = write(tmp_path, TEXT.replace("* sum[0]", "+ sum[0]"))
    test = "import pytest\n@pytest.mark.layerport({!r})\ndef test_pack(layerport_check): layerport_check()\n"
    (tmp_path / "test_it.py").write_text(test.format(file))
    (tmp_path / "test_unmarked.py").write_text("def test_pack(layerport_check): layerport_check()\n")
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers"]
    chosen = ("--continue-on-collection-errors", "-k", "record or shapes or kernel or conversion")
    done = subprocess.run([*run, *chosen], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert "test_pack[checked::scaled-float32-kernel]" in done.stdout, done.stdout + done.stderr
    assert "elements are wrong" in done.stdout and "to repair: correct the kernel" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 failed, 3 passed")
    assert '@pytest.mark.layerport("my_pack")' in done.stdout + done.stderr
