"""Flavours of TensorRT: which one a build takes, why, and what is said where there is none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from layerport.engine import flavours
from layerport.errors import BuildError
from layerport.targets import Target
from small_setup import python


def installed(monkeypatch: pytest.MonkeyPatch, *names: str, gpu: str | None = None) -> None:
    monkeypatch.setattr(flavours, "version_of", lambda name: "99.0" if name in names else None)
    monkeypatch.setattr(flavours, "native_architecture", lambda: gpu)


@pytest.mark.parametrize(
    ("names", "gpu", "target", "why"),
    [
        (("rtx", "tensorrt"), "sm_90", "tensorrt:sm_90", "tensorrt is installed and this machine has a GPU"),
        (("rtx", "tensorrt"), None, "rtx:sm_89,sm_120", "tensorrt_rtx is installed and builds without a GPU"),
        (("rtx",), "sm_90", "rtx:sm_89,sm_120", "tensorrt_rtx is installed and builds without a GPU"),
        (("tensorrt",), None, "portable", "tensorrt is installed, but it builds on a GPU and there is none here"),
        ((), "sm_90", "portable", 'no TensorRT is installed; pip install "layerport[rtx]" adds one'),
    ],
)
def test_the_target_of_a_build_that_names_none(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], gpu: str | None, target: str, why: str
) -> None:
    installed(monkeypatch, *names, gpu=gpu)
    found, reason = flavours.default_target()
    assert (str(found), reason) == (target, why)


def test_a_target_whose_tensorrt_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    flavours.require(Target("portable"))
    with pytest.raises(BuildError) as caught:
        flavours.require(Target.parse("rtx:sm_89"))
    assert caught.value.fault == "target rtx:sm_89 needs tensorrt_rtx, which is not installed here"
    assert caught.value.repair == 'pip install "layerport[rtx]", or build with --target portable'
    installed(monkeypatch, "rtx")
    flavours.require(Target.parse("rtx:sm_89"))


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ({}, "sm_120"),
        ({"cuInit": 100}, None),
        ({"cuCtxGetDevice": 201}, "sm_89"),  # no context: GPU 0
        ({"cuDeviceGetAttribute": 1}, None),
        ({"minor": 1}, None),
    ],
)
def test_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch, answers: dict[str, int], found: str | None) -> None:
    from cuda.bindings import driver

    versions = {0: (8, 9), 1: (12, 0)}
    major = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR

    def status(name: str) -> Any:
        return driver.CUresult(answers.get(name, 0))

    def attribute(which: Any, device: int) -> tuple[Any, int]:
        failed = status("cuDeviceGetAttribute" if which == major else "minor")
        return failed, versions[device][which != major]

    monkeypatch.setattr(driver, "cuInit", lambda flags: (status("cuInit"),))
    monkeypatch.setattr(driver, "cuCtxGetDevice", lambda: (status("cuCtxGetDevice"), 1))
    monkeypatch.setattr(driver, "cuDeviceGetAttribute", attribute)
    assert flavours.native_architecture() == found


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import driver

    def missing(flags: int) -> Any:
        raise RuntimeError("libcuda.so is not here")

    monkeypatch.setattr(driver, "cuInit", missing)
    assert flavours.native_architecture() is None


def test_loading_what_is_not_there_or_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        flavours.FLAVOURS, "broken", flavours.Flavour("broken", "lp_broken_trt", "lp-broken", "pip install it")
    )
    with pytest.raises(BuildError, match="lp-broken is not installed"):
        flavours.load("broken")
    (tmp_path / "lp_broken_trt.py").write_text("raise OSError('libcudart.so.13: no such file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BuildError) as caught:
        flavours.load("broken")
    assert caught.value.fault == "lp_broken_trt does not load: OSError: libcudart.so.13: no such file"
    assert "layerport doctor" in str(caught.value.repair)
    sys.modules.pop("lp_broken_trt", None)


def test_the_private_folder_of_links_is_gone_at_the_end(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    code = (
        "import os, sys, tempfile; from layerport.engine import flavours\n"
        "trt = flavours.load('rtx'); assert flavours.load('rtx') is trt\n"
        "assert trt.Builder(trt.Logger(trt.Logger.ERROR)) is not None\n"
        "print(sorted(sys.modules).count('torch'), len(os.listdir(tempfile.gettempdir())))\n"
    )
    done = python(code, environment={"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "0"
    assert list(tmp_path.iterdir()) == []
