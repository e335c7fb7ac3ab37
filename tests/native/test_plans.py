"""Plans built with the native plugin, really by TensorRT for RTX: the same bytes as with the Python one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plan_reading import fields_in
from small_setup import python

pytest.importorskip("tensorrt_rtx")
torch = pytest.importorskip("torch")

CODE = """
import json, sys
from layerport.engine import flavours, native
from layerport.engine.worker import build_plan
from layerport.errors import BuildError
try:
    build_plan(json.loads(sys.argv[1]))
except BuildError as error:
    sys.exit(f"{error.fault} {error.faults}")
trt = flavours.load("rtx")
creator = trt.get_plugin_registry().get_creator("Kernel", "1", "layerport")
print(native.library() is not None, creator.api_language == trt.APILanguage.CPP)
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models with optional inputs, data-dependent sizes, several dtypes and kernels, each with its specs."""
    from native_models import build_all

    return build_all(tmp_path_factory.mktemp("bundles"))


def requests(bundles: list[Path], folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    return [
        {
            "model": str(bundle / "model.onnx"),
            "plugins": str(bundle / "plugins.safetensors"),
            "plan": str(folder / f"{bundle.stem}.plan"),
            "flavour": "rtx",
            "architectures": ["sm_89"],
            "profile": json.loads((bundle / "manifest.json").read_text())["targets"][0]["profile"],
        }
        for bundle in bundles
    ]


def test_both_build_the_same_plans(bundles: list[Path], package: dict[str, str], tmp_path: Path) -> None:
    for name, environment in (("native", package), ("plain", {})):
        for request in requests(bundles, tmp_path / name):
            done = python(CODE, json.dumps(request), environment=environment, timeout=280)
            assert done.returncode == 0, done.stderr
            assert done.stdout.split() == [str(name == "native")] * 2
    for bundle in bundles:
        plans = [(tmp_path / name / f"{bundle.stem}.plan").read_bytes() for name in ("native", "plain")]
        assert plans[0] == plans[1], bundle.stem
        assert fields_in(plans[0])
        assert plans[0] == next(bundle.glob("*.plan")).read_bytes()
