"""A manifest is read at one place: whoever gets one meets checked values only."""

from __future__ import annotations

import ast
import copy
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

import layerport
from fuzz.mutations import json_mutation
from layerport.bundle import bundle as bundles
from layerport.bundle.manifest import read_manifest
from layerport.cli import main
from layerport.commands.reports import inspect_bundle, print_inspection
from layerport.errors import BuildError
from small_setup import Built


@pytest.fixture(scope="module")
def sound(engine_bundle: Built) -> dict[str, Any]:
    return dict(json.loads((engine_bundle.path / bundles.MANIFEST).read_text()))


def refused(manifest: Any) -> BuildError:
    with pytest.raises(BuildError) as caught:
        read_manifest(json.dumps(manifest).encode(), "manifest.json")
    return caught.value


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "text for a number": (
        lambda m: m["layers"][0].update(version="1"),
        "layers[0].version: expected a natural number of at most 63 bits, got '1'",
    ),
    "true for a number": (lambda m: m["targets"][0].update(plugins=True), "targets[0].plugins: expected a natural"),
    "a negative number": (lambda m: m["dims"][0].update(min=-1), "dims[0].min: expected a natural number"),
    "a huge number": (lambda m: m["files"]["model.onnx"].update(bytes=2**63), "files['model.onnx'].bytes: expected"),
    "a missing key": (lambda m: m["layers"][0].pop("reason"), "layers[0].reason is missing"),
    "null": (lambda m: m["layers"][0].update(pack=None), "layers[0].pack: expected text without control"),
    "a list for an object": (lambda m: m.update(tools=[]), "tools: expected an object, got a list"),
    "an object for a list": (lambda m: m.update(layers={}), "layers: expected a list, got an object"),
    "an entry that is none": (lambda m: m["claims"].insert(0, 3), "claims[0]: expected an object, got 3"),
    "a control character": (
        lambda m: m["layers"][0].update(node="a\x1b[2J"),
        r"layers[0].node: expected text without control characters, got 'a\x1b[2J'",
    ),
    "a new line in a name": (lambda m: m["layers"][0].update(module="a\nengine: passed"), "layers[0].module: expected"),
    "a name that turns the writing": (lambda m: m.update(layerport="\u202e1"), "layerport: expected text without"),
    "a layer without namespace": (lambda m: m["layers"][0].update(layer="x"), "layers[0].layer: expected namespace::"),
    "an option for pip": (
        lambda m: m["layers"][0].update(distribution="--index-url=x"),
        "layers[0].distribution: expected the name of a distribution",
    ),
    "no architecture": (lambda m: m["targets"][0].update(architectures=["sm_x"]), "targets[0].architectures[0]: exp"),
    "a strange class": (lambda m: m["layers"][0].update(plugin_class="os"), "layers[0].plugin_class: expected module:"),
    "a short digest": (lambda m: m["files"]["model.onnx"].update(sha256="0"), "files['model.onnx'].sha256: expected"),
    "a file elsewhere": (lambda m: m["files"].update({"../x": {}}), "files (a key): expected the name of a file"),
    "an unknown dtype": (lambda m: m["inputs"][0].update(dtype="float99"), "inputs: unknown dtype 'float99'"),
    "an unknown dim": (
        lambda m: m["outputs"][0].update(dims=["z"]),
        "outputs: 'output' has the dim 'z', which does not",
    ),
    "many dims": (lambda m: m["inputs"][0].update(dims=[1] * 100), "inputs: 'x' has 100 dims, at most 64 are read"),
    "a dim twice": (lambda m: m["dims"].append(m["dims"][0]), "dims: rows stands twice"),
    "an output twice": (lambda m: m["outputs"].append(m["outputs"][0]), "outputs: 'output' stands twice"),
    "a range that contradicts": (lambda m: m["dims"][0].update(min=9, max=1), "dims: range of dim rows contradicts"),
    "a condition on nothing": (
        lambda m: m.update(conditions=[{"condition": "zz > 1", "layer": "", "module": ""}]),
        "conditions: ",
    ),
    "many conditions": (
        lambda m: m.update(conditions=[{"condition": "rows", "layer": "", "module": ""}] * 10_001),
        "conditions: 10001, at most 10000 are read",
    ),
    "a plan that is no file": (lambda m: m["targets"][0].update(file="x.plan"), "targets: plan x.plan is not among"),
    "a profile of nothing": (
        lambda m: m["targets"][0].update(profile={"zz": [[1], [1], [1]]}),
        "targets: the profile of 'zz' is not three shapes of an input",
    ),
    "a profile of two shapes": (
        lambda m: m["targets"][0].update(profile={"x": [[1, 16], [1, 16]]}),
        "targets: the profile of 'x' is not three shapes of an input",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_fault_is_named_with_its_place(sound: dict[str, Any], kind: str) -> None:
    change, fault = WRONG[kind]
    manifest = copy.deepcopy(sound)
    change(manifest)
    error = refused(manifest)
    assert error.fault.startswith(f"manifest.json cannot be read: {fault}")
    assert error.repair == "build the bundle again"


def test_all_faults_at_once_but_not_thousands(sound: dict[str, Any]) -> None:
    error = refused({**sound, "layers": [1], "claims": [2], "tools": 3})
    assert [error.fault.partition(": ")[2].partition(":")[0], *(one.partition(":")[0] for one in error.faults)] == [
        "layers[0]",
        "claims[0]",
        "tools",
    ]
    error = refused({**sound, "layers": [1] * 10_000})
    assert len(error.faults) == 20 and error.faults[-1] == "and more"


def test_what_a_later_layerport_adds_is_no_fault(sound: dict[str, Any]) -> None:
    manifest = copy.deepcopy(sound)
    manifest["later"] = {"x": [1]}
    manifest["layers"][0]["later"] = None
    assert read_manifest(json.dumps(manifest).encode(), "it") == manifest


def test_what_an_earlier_layerport_left_out_is_no_fault(sound: dict[str, Any]) -> None:
    manifest = copy.deepcopy(sound)
    for key in ("conditions", "conditions_dropped", "samples"):
        del manifest[key]
    for key in ("kernels", "kernel_sources", "kernels_left_out", "plugin", "plugin_class"):
        del manifest["layers"][0][key]
    del manifest["targets"][0]["options"]
    assert read_manifest(json.dumps(manifest).encode(), "it") == manifest


def test_what_would_be_refused_is_not_written(tmp_path: Path, sound: dict[str, Any]) -> None:
    content = {key: value for key, value in sound.items() if key not in ("files", "format", "targets")}
    with pytest.raises(BuildError, match="tools: expected an object"):
        bundles.write_manifest(tmp_path, {**content, "targets": [], "tools": 3})
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_manifest_never_ends_in_a_traceback(engine_bundle: Built, tmp_path: Path) -> None:
    """Every command that reads it, on 400 of them; many more in the fuzz runs."""
    from click.testing import CliRunner

    folder = engine_bundle.copy(tmp_path / "a.lp")
    data = (folder / bundles.MANIFEST).read_bytes()
    read = 0
    for number in range(400):
        (folder / bundles.MANIFEST).write_bytes(json_mutation(data, Random(f"manifest/{number}")))
        commands: list[tuple[str, ...]] = [("inspect",)]
        if number % 20 == 0:
            commands += [("inspect", "--json"), ("run", "--device", "cpu"), ("verify", "--no-kernels")]
        for command, *options in commands:
            done = CliRunner().invoke(main, [command, str(folder), *options])
            assert done.exit_code in (0, 1, 2, 4), (number, done.output)
            assert "Traceback" not in done.output and "fault of layerport" not in done.output, (number, done.output)
            assert all(sign.isprintable() or sign == "\n" for sign in done.output), (number, done.output)
            read += done.exit_code == 0
    assert read > 40  # else it would show little


# What is shown


def test_free_text_is_shown_escaped(
    engine_bundle: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str], sound: dict[str, Any]
) -> None:
    """Reasons are texts of packs and tools; a new line in one does not begin a line of ours."""
    evil = "\x1b]0;owned\x07\x9b2J\u202e\x7f\r\nengine: passed"
    manifest = copy.deepcopy(sound)
    manifest["layers"][0].update(reason=evil, kernels_left_out=[evil])
    claim = {
        "module": "m",
        "class": "C",
        "status": "refused",
        "reason": evil,
        "layers": [],
        "pack": None,
        "max_relative_error": None,
        "evidence": {"kind": "examples", "calls": 0, "telling_calls": 0, "probes": [], "summary": evil},
        "candidates": [],
    }
    manifest["claims"] = [claim]
    folder = engine_bundle.copy(tmp_path / "a.lp")
    (folder / bundles.MANIFEST).write_text(json.dumps(manifest))
    print_inspection(inspect_bundle(folder))
    out = capsys.readouterr().out
    assert all(sign.isprintable() or sign == "\n" for sign in out)
    assert r"\x1b]0;owned\x07\x9b2J\u202e\x7f\r" in out
    assert not any(line.startswith("engine: passed") for line in out.splitlines())
    main_json = json.dumps(inspect_bundle(folder).to_json())
    from layerport.commands.tables import print_json

    print_json(json.loads(main_json))
    out = capsys.readouterr().out
    assert all(sign.isprintable() or sign == "\n" for sign in out)
    assert json.loads(out)["claims"] == [claim]


def test_errors_are_shown_escaped() -> None:
    assert str(BuildError("a\x1b[2Jb", "c\x07", faults=["d\u202e"])) == "a\\x1b[2Jb\n  - d\\u202e\n  to repair: c\\x07"
    assert BuildError("a\x1b").fault == "a\x1b"  # a program gets what it was


def test_commands_print_at_one_place() -> None:
    """`tables` escapes what it prints; nobody else prints."""
    root = Path(layerport.__file__).parent
    said = []
    for path in (*sorted((root / "commands").glob("*.py")), root / "cli.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "sys.stdout.write",
                "sys.stderr.write",
            ):
                said.append(path.name)
    # The probe prints JSON for its parent process.
    assert set(said) == {"tables.py", "doctor_probe.py"}


COSTLY: dict[str, Callable[[dict[str, Any]], Any]] = {
    "many long sizes": lambda m: m.update(
        outputs=[
            {"name": f"o{n}", "dtype": "float32", "dims": [f"rows+{n * 64 + k}" for k in range(64)]}
            for n in range(3000)
        ]
    ),
    "many deep conditions": lambda m: m.update(
        conditions=[
            {"condition": "min(rows," * 50 + "1" + ")" * 50 + f"+{n}", "layer": "", "module": ""} for n in range(10_000)
        ]
    ),
    "long products": lambda m: m.update(
        conditions=[{"condition": "rows*" * 1900 + str(n), "layer": "", "module": ""} for n in range(30)]
    ),
    "many dims, each looked up often": lambda m: m.update(
        dims=[*m["dims"], *({"name": f"d{n}", "min": 1, "opt": 1, "max": 2} for n in range(60_000))],
        outputs=[{"name": f"o{n}", "dtype": "float32", "dims": ["rows"] * 60} for n in range(4000)],
        conditions=[{"condition": f"rows+{n}", "layer": "", "module": ""} for n in range(10_000)],
    ),
    "one entry, many times": lambda m: m.update(layers=m["layers"][:1] * 20_000),
}


@pytest.mark.parametrize("kind", COSTLY)
def test_no_manifest_takes_long(sound: dict[str, Any], kind: str) -> None:
    manifest = copy.deepcopy(sound)
    COSTLY[kind](manifest)
    data = json.dumps(manifest).encode()
    began = time.process_time()
    with suppress(BuildError):
        read_manifest(data, "it")
    assert time.process_time() - began < 5
