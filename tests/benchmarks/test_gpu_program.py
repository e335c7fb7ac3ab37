"""The step of `benchmarks/gpu` that runs the C++ program of a bundle, over a stand-in for CMake: no GPU has run it.

What it compiles is really compiled, and run up to the missing driver, in `tests/native/test_cpp_program.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.test_gpu_benchmark import FOLDER
from small_bundles import identity_bundle, sign

# Writes down how it is called, and makes the program that it is asked to build.
CMAKE = """#!/bin/sh
echo "$@" >> "$CALLS"
mkdir -p build
printf '#!/bin/sh\\necho "y: pass"\\necho "z: %s"\\nexit %s\\n' "$SAID" "$CODE" > build/run_plan
chmod +x build/run_plan
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of the benchmark that have this step."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import behaviour
    import run

    yield SimpleNamespace(behaviour=behaviour, run=run)
    for name in ("behaviour", "checks", "run"):
        sys.modules.pop(name, None)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    cmake = tmp_path / "bin" / "cmake"
    cmake.parent.mkdir()
    cmake.write_text(CMAKE)
    cmake.chmod(0o755)
    path = os.pathsep.join([str(cmake.parent), os.environ["PATH"]])
    return {"PATH": path, "CALLS": str(tmp_path / "calls"), "TENSORRT_ROOT": "/trt", "SAID": "pass", "CODE": "0"}


def test_it_builds_the_program_and_says_what_it_said(gpu: Any, environment: dict[str, str], tmp_path: Path) -> None:
    bundle = plan_bundle(tmp_path / "plain.lp")
    assert gpu.behaviour.program_check(str(bundle), environment) == "y: pass, z: pass"
    assert (tmp_path / "calls").read_text().splitlines() == ["-S . -B build -DTENSORRT_ROOT=/trt", "--build build"]


def test_an_output_that_differs_fails_the_run(
    gpu: Any, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = plan_bundle(tmp_path / "plain.lp")
    with pytest.raises(RuntimeError, match=r"run_plan \. ended with exit code 1: y: pass\nz: FAIL"):
        gpu.behaviour.program_check(str(bundle), {**environment, "SAID": "FAIL", "CODE": "1"})
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", str(tmp_path / "cache"))
    for name, value in {**environment, "SAID": "FAIL", "CODE": "1"}.items():
        monkeypatch.setenv(name, value)
    said = gpu.behaviour.plan_check(str(bundle))
    assert said["without Python"].startswith("no: RuntimeError: ./build/run_plan . ended with exit code 1")
    assert gpu.run.plan_is_wrong(said) and not gpu.run.plan_is_wrong({**said, "without Python": "yes y: pass"})


def test_without_cmake_or_headers_it_is_not_run(gpu: Any, environment: dict[str, str], tmp_path: Path) -> None:
    bundle = str(plan_bundle(tmp_path / "plain.lp"))
    assert gpu.behaviour.program_check(bundle, {**environment, "PATH": "/nowhere"}).startswith(
        "not run: it needs cmake"
    )
    del environment["TENSORRT_ROOT"]
    assert gpu.behaviour.program_check(bundle, environment).startswith("not run: it needs cmake")


def plan_bundle(path: Path) -> Path:
    """A bundle without plugins, whose plan nobody opens."""
    bundle = identity_bundle(path, ["y", "z"])
    (bundle / "model.plan").write_bytes(b"a plan")
    entry = {"target": "tensorrt", "flavour": "tensorrt", "architectures": ["sm_90"], "file": "model.plan"}
    return sign(bundle, targets=[{**entry, "plugins": 0, "tensorrt": "11.0", "profile": {}}])
