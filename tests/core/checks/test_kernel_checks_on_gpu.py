"""The check of kernels where a GPU is there: the bundle's own code is launched, through the launcher of an engine.

The driver is a double whose launches run in the host harness; what a real GPU says, only a GPU can show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.checks.test_kernel_checks import ROWS, TRANSPOSED, PackedLinear, changed, prepared
from gpu_doubles import Status
from host_driver import HostLaunchDriver
from layerport.checks.kernel_checks import check_kernels
from layerport.engine import gpu_kernels
from layerport.engine.gpu import Gpu


class RunningDriver(HostLaunchDriver):
    """Does what is on a stream before a launch on it, and knows the memory that it gave."""

    def __init__(self) -> None:
        super().__init__("sm_89")
        self.fails = False

    def cuMemAlloc(self, nbytes: int) -> Any:
        status, address = super().cuMemAlloc(nbytes)
        self.know(int(address), nbytes)
        return status, address

    def cuLaunchKernel(self, kernel: int, *arguments: Any) -> Any:
        if self.fails:
            return (Status.CUDA_ERROR_INVALID_VALUE,)
        stream = int(arguments[7])
        for work in self.streams.get(stream, []):
            work()
        self.streams[stream] = []
        return super().cuLaunchKernel(kernel, *arguments)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> RunningDriver:
    made = RunningDriver()
    made.learn_all(monkeypatch)
    monkeypatch.setattr(gpu_kernels, "open_gpu_kernels", lambda: gpu_kernels.GpuKernels(Gpu(made)))
    return made


def checked(tmp_path: Path, *changes: tuple[str, str]) -> Any:
    (check,) = check_kernels(*prepared(tmp_path, changed(*changes), PackedLinear(20), torch.randn(4, 12), dynamic=ROWS))
    return check


def test_a_right_kernel(tmp_path: Path, driver: RunningDriver) -> None:
    check = checked(tmp_path)
    assert check.answer == "right" and str(check).startswith("right on the GPU (max error "), check
    assert len(driver.launches) == 2
    assert not any(driver.live().values()), driver.live()


@pytest.mark.parametrize(
    "change",
    [
        (TRANSPOSED, "weight=np.ascontiguousarray(weight[::-1].T)"),
        ("if (i >= n) return;", "if (i >= n - 1) return;"),
        ("n, k, cols, eps))", "n, k, cols, 1e-6))"),
    ],
)
def test_a_wrong_one(tmp_path: Path, driver: RunningDriver, change: tuple[str, str]) -> None:
    assert str(checked(tmp_path, change)).startswith("WRONG on the GPU: ")
    assert not any(driver.live().values()), driver.live()


def test_a_launch_that_the_driver_refuses(tmp_path: Path, driver: RunningDriver) -> None:
    driver.fails = True
    check = checked(tmp_path)
    assert check.answer == "wrong" and "CUDA_ERROR_INVALID_VALUE" in check.reason


def test_a_gpu_that_the_spec_has_no_code_for(tmp_path: Path, driver: RunningDriver) -> None:
    driver.architecture = "sm_90"
    assert str(checked(tmp_path)).startswith("right on the CPU")
    assert not driver.launches
