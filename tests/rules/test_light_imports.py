"""What must stay light: the import, the help, the list of packs; and what each half of the code may load."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "tensorrt", "tensorrt_rtx", "ml_dtypes")
CLI = "from layerport.cli import main; main({arguments!r}, standalone_mode=False)"
SHOW = """
import sys, atexit
def show():
    heavy = {heavy!r}
    print("LOADED", sorted({{name.partition(".")[0] for name in sys.modules}} & set(heavy)), file=sys.stderr)
atexit.register(show)
"""


def loaded(code: str, heavy: tuple[str, ...] = HEAVY) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHOW.format(heavy=heavy) + code],
        capture_output=True,
        text=True,
        timeout=120,
        env={name: value for name, value in os.environ.items() if not name.startswith("LAYERPORT_")},
    )
    assert done.returncode == 0, done.stderr
    return next(line for line in done.stderr.splitlines() if line.startswith("LOADED")).removeprefix("LOADED ")


@pytest.mark.parametrize(
    "code",
    [
        "import layerport",
        "import layerport; dir(layerport); layerport.__version__",
        "import layerport as lp; lp.hookimpl; lp.cdiv(3, 2); lp.LayerportError; lp.Target.parse('portable')",
        CLI.format(arguments=["--help"]),
        CLI.format(arguments=["build", "--help"]),
        CLI.format(arguments=["packs"]),
        CLI.format(arguments=["packs", "--json"]),
        CLI.format(arguments=["--version"]),
    ],
)
def test_nothing_heavy(code: str) -> None:
    assert loaded(code) == "[]"


def test_the_help_imports_click_and_nothing_of_rich() -> None:
    assert loaded(CLI.format(arguments=["--help"]), ("rich", "pluggy", "packaging", "safetensors")) == "[]"


def test_this_test_can_fail() -> None:
    assert loaded("import numpy") == "['numpy']"


@pytest.mark.parametrize("module", ["worker", "child", "bound_model", "plugin", "runner", "flavours"])
def test_the_engine_half_loads_neither_torch_nor_the_front_half(module: str) -> None:
    heavy = ("torch", "onnx_ir", "onnxscript", "sympy", "transformers")
    assert loaded(f"import layerport.engine.{module}", heavy) == "[]"
    code = (
        f"import sys, layerport.engine.{module}\nassert not [n for n in sys.modules if n.startswith('layerport.front')]"
    )
    assert loaded(code, heavy) == "[]"


def test_reading_a_bundle_loads_no_framework() -> None:
    rooms = "layerport.bundle.bundle, layerport.sizes.dims, layerport.targets, layerport.bundle.plugin_spec"
    assert loaded(f"import {rooms}") == "[]"
