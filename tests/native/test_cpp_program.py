"""The C++ program of `layerport export --for cpp`: compiled, and run as far as a machine without a GPU lets it."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from layerport.commands import exporting
from layerport.dtypes import DType
from native.test_plans import ALONE
from plan_reading import fields_in
from small_setup import python

TEMPLATE = Path(exporting.layerport.__file__).parent / "templates" / "export"
CHECK = """
#include "samples.h"
#include <iostream>
int main(int, char** arguments)
{
    for (Sample const& one : read_samples(arguments[1])) {
        if (!one.is_input) {
            std::cout << one.name << ' ' << agrees(one, read_file(arguments[1] + ("/got_" + one.name))) << '\\n';
        }
    }
}
"""


def folder_of(package: str, *below: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"there is no {package}")
    return Path(next(iter(found.submodule_search_locations)), *below)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What a developer has in folders: TensorRT for RTX and CUDA, each with headers and libraries."""
    tensorrt, cuda = tmp_path_factory.mktemp("tensorrt"), tmp_path_factory.mktemp("cuda")
    shutil.copytree(folder_of("kernel_lens", "include", "tensorrt"), tensorrt / "include")
    like_rtx(tensorrt / "include")
    (tensorrt / "lib").mkdir()
    library = folder_of("tensorrt_rtx_libs", "libtensorrt_rtx.so.1")
    for name in ("libtensorrt_rtx.so", library.name):
        (tensorrt / "lib" / name).symlink_to(library)
    toolkit = folder_of("nvidia", "cu13")
    (cuda / "include").symlink_to(toolkit / "include")
    (cuda / "lib").mkdir()
    for name in ("libcudart.so", "libcudart.so.13"):
        (cuda / "lib" / name).symlink_to(toolkit / "lib" / "libcudart.so.13")
    return {"TENSORRT_ROOT": tensorrt, "CUDA_ROOT": cuda}


def like_rtx(headers: Path) -> None:
    """Make of the headers of TensorRT 10 those of TensorRT for RTX 1.7 where the program meets the difference."""

    def change(name: str, pattern: str, new: str, count: int) -> None:
        text, made = re.subn(pattern, new, (headers / name).read_text())
        assert made == count, (name, pattern)
        (headers / name).write_text(text)

    for part, number in (("MAJOR", 1), ("MINOR", 7), ("PATCH", 1)):
        change("NvInferVersion.h", rf"(define TRT_{part}_ENTERPRISE) \d+", rf"\1 {number}", 1)
    change("NvInferRuntimeCommon.h", r"TRT_DEPRECATED virtual [^;]*= 0;", "", 4)
    versioned = (
        "class ILogger : public IVersionedInterface {\npublic:\n"
        '    InterfaceInfo getInterfaceInfo() const noexcept override { return {"LOGGER", 1, 0}; }\n'
    )
    change("NvInferRuntime.h", r"class ILogger\n\{\npublic:\n", versioned, 1)


def test_it_runs_as_far_as_the_missing_driver(
    bundles: list[Path],
    package: dict[str, str],
    roots: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(package["PYTHONPATH"].split(":")[0])
    out = tmp_path / "out"
    made = exporting.export_bundle(str(bundles[0]), "cpp", str(out))
    *building, running = map(shlex.split, made.commands)
    if shutil.which("cmake") is None:
        tensorrt, cuda = roots.values()
        includes = ["-isystem", str(tensorrt / "include"), "-isystem", str(cuda / "include")]
        libraries = [f"-L{folder / 'lib'}" for folder in (tensorrt, cuda)] + ["-ltensorrt_rtx", "-lcudart"]
        paths = [f"-Wl,-rpath,{folder / 'lib'}" for folder in (tensorrt, cuda)]
        (out / "build").mkdir()
        building = [["g++", "-std=c++17", *includes, "main.cpp", *libraries, *paths, "-o", "build/run_plan"]]
    else:
        building[0] += [f"-D{name}={folder}" for name, folder in roots.items()]
    for command in building:
        done = subprocess.run(command, cwd=out, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    for bundle in bundles:
        shutil.copyfile(next(bundle.glob("*.plan")), out / "model.plan")
        done = subprocess.run(running, cwd=out, capture_output=True, text=True)
        assert done.returncode == 2, done.stdout + done.stderr
        said = done.stderr.splitlines()
        assert said[-1] == "opening the plan failed: CUDA driver version is insufficient for CUDA runtime version"
        assert all("cudaError 35" in line for line in said[:-1]), said

    (out / "liblayerport_plugins.so").unlink()
    (out / "liblayerport_plugins.so").write_text("no library")
    done = subprocess.run(running, cwd=out, capture_output=True, text=True)
    assert done.returncode == 2 and "loading the plugin library failed" in done.stderr


def test_the_model_that_goes_with_it_builds(
    bundles: list[Path], package: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By TensorRT for RTX with the library that is there, and nothing of ours; each node keeps its kernels."""
    monkeypatch.syspath_prepend(package["PYTHONPATH"].split(":")[0])
    for bundle in bundles:
        out = tmp_path / bundle.stem
        exporting.export_bundle(str(bundle), "trtexec", str(out))
        (target,) = json.loads((bundle / "manifest.json").read_text())["targets"]
        library, plan = str(out / "liblayerport_plugins.so"), out / "built.plan"
        done = python(ALONE, str(out / "model.onnx"), library, str(plan), json.dumps(target["profile"]))
        assert done.returncode == 0, done.stderr
        found = fields_in(plan.read_bytes())
        assert len({data for _, data in found}) == target["plugins"] and all(spec.images for spec, _ in found)


def test_the_sources_are_clean(roots: dict[str, Path]) -> None:
    includes = [word for root in roots.values() for word in ("-isystem", str(root / "include"))]
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    done = subprocess.run(["g++", *flags, *includes, TEMPLATE / "main.cpp"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_it_takes_what_python_takes(tmp_path: Path) -> None:
    """The comparison in C++ against the one of `verify`, on values just within and just beyond the tolerances."""
    from layerport.parameters.comparison import compare, tolerance

    wanted, got, coarse = {}, {}, {}
    for dtype in ("float32", "float16", "bfloat16"):
        kind = DType(dtype).to_numpy()
        want = np.linspace(-3, 5, 40).reshape(5, 8).astype(kind)
        want[0, :4] = [0, np.nan, np.inf, 6e-5]
        absolute, relative = tolerance(want)
        step = absolute + relative * abs(float(want[3, 3]))
        for name, far in (("same", 0.0), ("near", 0.8), ("far", 1.3), ("nan", np.nan), ("infinite", np.inf)):
            changed = want.copy()
            changed[3, 3] = float(want[3, 3]) + far * step
            wanted[f"{dtype}_{name}"], got[f"{dtype}_{name}"] = want, changed
    wide = np.linspace(-3, 5, 40, dtype=np.float32)  # computed in 16 bits: 0.004 is near
    for name, far in (("coarse_near", 0.004), ("coarse_far", 0.2)):
        wanted[name], got[name], coarse[name] = wide, wide + np.float32(far), "float16"
    wanted["int64_same"], got["int64_same"] = np.arange(3), np.arange(3)
    wanted["int64_far"], got["int64_far"] = np.arange(3), np.arange(1, 4)
    wanted["bool_same"], got["bool_same"] = np.ones((), bool), np.ones((), bool)
    opened: Any = SimpleNamespace(losses={}, precisions=coarse)
    exporting._write_samples(tmp_path, {"an input": np.zeros((2, 0), np.float32)}, wanted, opened)
    for name, array in got.items():
        (tmp_path / f"got_{name}").write_bytes(array.tobytes())
    (tmp_path / "check.cpp").write_text(CHECK)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", f"-I{TEMPLATE}"]
    subprocess.run(["g++", *flags, tmp_path / "check.cpp", "-o", tmp_path / "check"], check=True)
    done = subprocess.run([tmp_path / "check", tmp_path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    answers = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    python = {
        name: str(int(compare(name, got[name], wanted[name], precision=coarse.get(name)).passed)) for name in wanted
    }
    assert answers == python
    assert {name for name, passed in answers.items() if passed == "1"} == {
        name for name in wanted if name.endswith(("same", "near"))
    }
