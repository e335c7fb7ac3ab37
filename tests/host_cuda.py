"""Torch's CUDA half without a GPU: CPU memory, one stream, kernels that the host harness runs (`host_driver`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import layerport as lp
from host_driver import HostLaunchDriver
from layerport.layers import cuda_operator as torch_cuda
from layerport.packs import conversions
from layerport.packs import host as packs

STREAM = 77
SCALE = """
template <typename T>
__global__ void scale(const T* x, const T* weight, T* y, long long n, long long c, float factor) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < n) y[i] = T(float(x[i]) * float(weight[i % c]) * factor);
}
"""


def scaled(name: str) -> lp.Layer:
    """A layer with one kernel for float32 and rows of at least 3."""

    @lp.layer(f"lp_cuda::{name}")
    def scale(x: Tensor, weight: lp.Param, factor: float = 2.0) -> Tensor:
        if weight.shape != x.shape[-1:]:
            raise ValueError(f"weight {list(weight.shape)} does not fit x {list(x.shape)}")
        return x * weight * factor

    @scale.kernel(lp.cuda(SCALE, "scale<{x}>"), dtypes=("float32",), when=lambda x: x.shape[-1] >= 3)
    def launch(x: Any, weight: Any, y: Any, factor: float) -> lp.Launch:
        n = x.numel()
        return lp.Launch(grid=lp.cdiv(n, 256), block=256, args=(x, weight, y, n, x.shape[-1], factor))

    return scale


class HostCuda:
    """Stands in for `torch_cuda.Cuda`: the CPU's memory, one device, one stream."""

    def __init__(self, driver: Any, architecture: str = "sm_90") -> None:
        self.driver, self._architecture = driver, architecture
        self.device = 0
        self.captures = False
        self.entered: list[int] = []

    def architecture(self, index: int) -> str:
        return self._architecture

    def stream(self, index: int) -> int:
        return STREAM + index

    def current(self) -> int:
        return self.device

    def capturing(self) -> bool:
        return self.captures

    @contextmanager
    def on(self, index: int) -> Iterator[None]:
        before, self.device = self.device, index
        yield
        self.device = before

    def enter(self, index: int) -> None:
        self.entered.append(index)

    def empty(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = torch.empty_strided(shape, strides, dtype=dtype)
        assert made.is_contiguous()
        made.reshape(-1).view(torch.uint8).fill_(0xFF) if made.numel() and made.ndim else None
        return self.know(made)

    def know(self, tensor: Tensor) -> Tensor:
        if isinstance(self.driver, HostLaunchDriver):
            self.driver.know(tensor.data_ptr(), tensor.numel() * tensor.element_size())
            # Scratch tensors lie in one tensor, and so do the sizes that depend on data.
            if tensor.dtype in (torch.uint8, torch.int64):
                self.driver.workspaces.add(tensor.data_ptr())
        return tensor


@pytest.fixture(name="cuda")
def cuda_fixture(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    """A stand-in for a GPU that runs the kernels, and knows the copies that an operator makes of its inputs."""
    driver = HostLaunchDriver()
    environment = HostCuda(driver)
    build, contiguous, clone = torch_cuda.build_kernels, Tensor.contiguous, Tensor.clone

    def learn(compilations: Any) -> Any:
        built = build(compilations)
        for compilation, one in zip(compilations, built, strict=True):
            driver.learn(compilation, one)
        return built

    monkeypatch.setattr(torch_cuda, "build_kernels", learn)
    monkeypatch.setattr(conversions, "installed_packs", lambda: packs.Packs(()))

    def knowing(copy: Any) -> Any:
        def made(self: Tensor, **how: Any) -> Tensor:
            result: Tensor = copy(self, **how)
            return environment.know(result) if type(result) is Tensor else result  # a fake one has no memory

        return made

    monkeypatch.setattr(Tensor, "contiguous", knowing(contiguous))
    monkeypatch.setattr(Tensor, "clone", knowing(clone))
    return environment
