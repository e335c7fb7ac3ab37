"""The command line: answers on stdout, messages on stderr, and the exit code of each kind of end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from layerport.bundle import bundle as bundles
from layerport.cli import main
from layerport.parameters.standard_form import Parameters
from small_models import sample
from small_setup import MODELS, SMALL, Built

SOURCE = f"{MODELS}:net"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def answer(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(code: int, *arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == code, (result.exit_code, result.output)
    assert result.stdout == ""
    return result.stderr


def test_build_prints_json_and_nothing_else_on_stdout(tmp_path: Path) -> None:
    out = tmp_path / "a.lp"
    report = answer("build", SOURCE, "-o", out, "--target", "portable", "--pack", SMALL, "--no-claim", "lp_small::gate")
    assert report["bundle"] == str(out)
    assert report["counts"] == {
        "lp_small::norm": {"function": 2},
        "lp_small::scale": {"function": 1},
        "layerport_builtin::silu_mul": {"function": 1},
    }
    assert report["verification"]["passed"] is True
    again = refused(2, "build", SOURCE, "-o", out, "--target", "portable", "--pack", SMALL)
    assert again == (
        f"error: {out} exists and was kept\n  to repair: choose another name with -o, or overwrite it with --force\n"
    )
    forced = run("build", SOURCE, "-o", out, "--target", "portable", "--pack", SMALL, "--force", "--no-verify")
    assert forced.exit_code == 0, forced.stderr
    assert "target portable (asked for)" in forced.stdout and f"wrote {out}" in forced.stdout
    assert "lp_small::gate" in forced.stdout and "function" in forced.stdout
    assert "exporting to ONNX" in forced.stderr


def test_what_became_of_each_layer_is_said_before_the_engine_and_where_it_fails(tmp_path: Path) -> None:
    out = tmp_path / "a.lp"
    given = ("--pack", SMALL, "--no-claim", "lp_small::gate", "--decompose", "lp_small::norm")
    # TensorRT for RTX takes no float32 matrix product for sm_75.
    message = refused(4, "build", SOURCE, "-o", out, "--target", "rtx:sm_75", *given)
    note = "note: lp_small::norm: 2 nodes without a plugin: --decompose lp_small::norm\n"
    assert message.index("compiling kernels") < message.index(note) < message.index("building the TensorRT engine")
    table, _, error = message[message.index("building the TensorRT engine") :].partition("error: ")
    assert "target rtx:sm_75 (asked for)" in table and "lp_small::scale" in table and "decomposed" in table
    assert error and not out.exists()


def test_verify_with_a_pack_that_is_a_file_and_without_the_kernels(engine_bundle: Built) -> None:
    checks = answer("verify", engine_bundle.path, "--pack", SMALL)["kernels"]
    assert checks and {one["answer"] for one in checks} == {"right"}
    # The pack is a file, which a bundle does not bring along.
    bare = run("verify", engine_bundle.path)
    assert bare.exit_code == 0 and "not run: no loaded pack provides a layer 'lp_small::" in bare.stdout
    assert f"kernels: 0 of {len(checks)} right" in bare.stdout and "engine: not run" in bare.stdout
    assert answer("verify", engine_bundle.path, "--no-kernels")["kernels"] == []


def test_a_bare_module_with_inputs_and_ranges(tmp_path: Path) -> None:
    out = tmp_path / "a.lp"
    given = ("--input", "x=float32:n,16", "--range", "n=1..4..9", "--target", "portable", "--pack", SMALL)
    report = answer("build", f"{MODELS}:bare", "-o", out, *given)
    assert report["verification"]["passed"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["dims"] == [{"name": "n", "min": 1, "opt": 4, "max": 9}]


def test_inspect(engine_bundle: Built) -> None:
    summary = answer("inspect", engine_bundle.path)
    assert summary["counts"]["lp_small::norm"] == {"plugin": 2}
    assert [one["realised"] for one in summary["layers"] if one["layer"] == "lp_small::norm"] == ["plugin"] * 2
    shown = run("inspect", engine_bundle.path)
    assert shown.exit_code == 0 and shown.stderr == ""
    for text in ("input x: float32[rows, 16]", "dim rows: 1..3..64", "lp_small::norm", "engine for rtx:sm_89"):
        assert text in shown.stdout


def with_samples(bundle: Path, samples: Parameters) -> None:
    """Put other samples into a bundle, as somebody who means harm would."""
    samples.save(bundle / bundles.SAMPLES)
    manifest = json.loads((bundle / bundles.MANIFEST).read_text())
    manifest["files"][bundles.SAMPLES] = {
        "sha256": bundles.digest(bundle / bundles.SAMPLES),
        "bytes": (bundle / bundles.SAMPLES).stat().st_size,
    }
    (bundle / bundles.MANIFEST).write_text(json.dumps(manifest))


def test_an_output_that_the_samples_lack_is_no_pass(engine_bundle: Built, tmp_path: Path) -> None:
    other = engine_bundle.copy(tmp_path / "other.lp")
    samples = Parameters.load(other / bundles.SAMPLES)
    with_samples(other, Parameters({name: one for name, one in samples.items() if name.startswith("input.")}, {}))
    shown = run("verify", other, "--no-kernels")
    assert shown.exit_code == 1
    assert "FAIL: the samples lack this output, so nothing was compared" in shown.stdout


def test_verify_says_yes_and_no(engine_bundle: Built, tmp_path: Path) -> None:
    assert answer("verify", engine_bundle.path)["passed"] is True
    shown = run("verify", engine_bundle.path)
    assert "portable model: passed" in shown.stdout
    other = engine_bundle.copy(tmp_path / "other.lp")
    samples = Parameters.load(other / bundles.SAMPLES)
    with_samples(other, samples.replace(**{"output.output": samples["output.output"] + np.float32(0.01)}))
    refused = run("verify", other)
    assert (refused.exit_code, "FAILED" in refused.stdout) == (1, True)
    assert run("verify", other, "--atol", "0.02").exit_code == 0
    assert run("verify", other, "--atol", "-1").exit_code == 2


def test_run(engine_bundle: Built, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", sample(5).numpy())
    result = answer("run", engine_bundle.path, "--input", f"x={tmp_path / 'x.npy'}", "-o", tmp_path / "outputs")
    assert result["outputs"]["output"]["shape"] == [5, 16]
    assert np.load(tmp_path / "outputs" / "output.npy").shape == (5, 16)
    kept = refused(2, "run", engine_bundle.path, "-o", tmp_path / "outputs")
    assert "has output.npy already, kept" in kept
    assert answer("run", engine_bundle.path)["outputs"]["output"]["shape"] == [3, 16]
    faults = refused(2, "run", engine_bundle.path, "--input", "x", "--input", f"y={tmp_path / 'no.npy'}")
    assert "'x' is not NAME=FILE.npy" in faults and "No such file" in faults
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    assert "x: " in refused(2, "run", engine_bundle.path, "--input", f"x={tmp_path / 'bad.npy'}")


def test_explain(tmp_path: Path) -> None:
    result = answer("explain", SOURCE, "--pack", SMALL)
    by_module = {one["module"]: one for one in result["claims"]}
    assert {name: one["status"] for name, one in by_module.items()} == dict.fromkeys(
        ("first", "gate", "second", "scale"), "claimed"
    )
    assert by_module["first"]["attributes"] == {"eps": 1e-5}
    assert by_module["first"]["steps"] and by_module["first"]["parameters"][0]["name"] == "weight"
    one = answer("explain", SOURCE, "lp_small::scale", "--pack", SMALL)
    assert [claim["module"] for claim in one["claims"]] == ["scale"]
    assert "lp_small::norm" in run("explain", SOURCE, "--pack", SMALL).stdout
    assert "no loaded pack provides a layer 'lp_small::x'" in refused(
        2, "explain", SOURCE, "lp_small::x", "--pack", SMALL
    )


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, ["build", "nothing:model", "-o", "{}"], "error: nothing does not import: ModuleNotFoundError"),
        (2, ["build", SOURCE, "-o", "{}", "--target", "cuda"], "error: target flavour 'cuda' is not known"),
        (2, ["build", SOURCE, "-o", "{}", "--target", "rtx:sm_90"], "sm_90 is not built by TensorRT for RTX"),
        (2, ["build", SOURCE, "-o", "{}/no/a.lp", "--target", "portable"], "error: there is no folder"),
        (2, ["build", SOURCE, "-o", "{}", "--target", "portable", "--pack", "no.py"], "there is no pack file 'no.py'"),
        (
            2,
            ["build", SOURCE, "-o", "{}", "--range", "rows", "--target", "portable"],
            "'rows' is not NAME=MIN..USUAL..MAX or NAME=MIN..MAX",
        ),
        (2, ["build", SOURCE], "Missing option '-o'"),
        (2, ["inspect", "{}"], "is not a bundle: it has no manifest.json"),
        (2, ["verify", "{}"], "is not a bundle: it has no manifest.json"),
        (2, ["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_wrong_use(tmp_path: Path, code: int, arguments: list[str], message: str) -> None:
    out = str(tmp_path / "a.lp")
    assert message in refused(code, *[argument.replace("{}", out) for argument in arguments])
    assert list(tmp_path.iterdir()) == []


def test_a_pack_at_fault(tmp_path: Path) -> None:
    pack = tmp_path / "bad_pack.py"
    pack.write_text("import not_there_at_all\n")
    text = refused(3, "build", SOURCE, "-o", tmp_path / "a.lp", "--target", "portable", "--pack", pack)
    assert text.splitlines()[-2].startswith("error: pack bad_pack (") or "error: pack bad_pack (" in text
    assert "not_there_at_all" in text


def test_a_damaged_bundle(engine_bundle: Built, tmp_path: Path) -> None:
    copy = engine_bundle.copy(tmp_path / "copy.lp")
    (copy / bundles.MODEL).write_bytes(b"")
    for command in ("inspect", "verify", "run"):
        assert "model.onnx has 0 bytes, the manifest says" in refused(4, command, copy)


def test_a_fault_of_our_own_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str, **options: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("layerport.commands.reports.inspect_bundle", broken)
    text = refused(4, "inspect", "x")
    assert "RuntimeError: a bug" in text
    assert text.splitlines()[-1] == "error: this is a fault of layerport; please report the lines above"


def test_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: str, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("layerport.commands.reports.inspect_bundle", interrupted)
    assert refused(130, "inspect", "x") == "error: interrupted; nothing was written\n"


def test_help_says_what_the_exit_codes_mean() -> None:
    shown = run("--help").stdout
    for text in (
        "build",
        "verify",
        "run",
        "inspect",
        "explain",
        "packs",
        "layers",
        "doctor",
        "0 fine",
        "3 a pack's fault",
    ):
        assert text in shown
