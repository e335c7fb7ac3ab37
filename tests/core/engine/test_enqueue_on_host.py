"""The plugin's `on_shape_change` and `enqueue`, with the kernels run on the CPU by the host harness.

TensorRT's base classes are stand-ins here, and so is the driver; spec, plugin, runner and launcher are the real ones.
"""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core.engine.test_plugin import stand_in
from host_driver import HostLaunchDriver
from layerport.engine import plugin as plugins
from layerport.engine import runner
from layerport.errors import BuildError, UsageError
from layerport.kernels.launcher import Launcher
from layerport.targets import Target
from layerport.testing.specs import plugin_spec
from layerport_builtin_layers.rms_norm.reference import rms_norm
from layerport_builtin_layers.silu_mul.reference import silu_mul
from stepped_layer import centred

TARGET = Target("tensorrt", ("sm_90",))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> HostLaunchDriver:
    made = HostLaunchDriver()
    made.learn_all(monkeypatch)
    monkeypatch.setattr(plugins, "native_architecture", lambda: "sm_90")
    monkeypatch.setattr(runner, "Launcher", lambda *args: Launcher(*args, driver=made))
    monkeypatch.setattr(runner, "_loaded", weakref.WeakValueDictionary())
    return made


def enqueue(plugin: Any, driver: HostLaunchDriver, *inputs: torch.Tensor) -> torch.Tensor:
    """What TensorRT does for one inference: shapes where they changed, then addresses."""
    output = torch.full_like(inputs[0], torch.nan)
    for tensor in (*inputs, output):
        driver.know(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    shapes = [SimpleNamespace(dims=tuple(tensor.shape)) for tensor in inputs]
    plugin.on_shape_change(shapes, [])
    most = plugin.get_workspace_size([SimpleNamespace(max=tuple(tensor.shape)) for tensor in inputs], [])
    kept, start = driver.workspace(most)
    plugin.enqueue(None, None, [tensor.data_ptr() for tensor in inputs], [output.data_ptr()], start, 11)
    del kept
    return output


def made(spec: Any) -> Any:
    return plugins.plugin_class(stand_in())(spec).attach_to_context(None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_over_changing_shapes(driver: HostLaunchDriver, dtype: torch.dtype) -> None:
    weight = torch.randn(64).to(dtype)
    spec = plugin_spec(rms_norm, TARGET, torch.empty(3, 5, 64, dtype=dtype), weight, 1e-6)
    assert spec is not None
    plugin = made(spec)
    for shape in ((2, 3, 64), (1, 1, 64), (5, 7, 64)):
        x = torch.randn(shape).to(dtype)
        wanted = rms_norm.reference(x.double(), weight.double(), 1e-6)
        torch.testing.assert_close(enqueue(plugin, driver, x, weight).double(), wanted, rtol=1e-2, atol=1e-2)
    assert {launch[3] for launch in driver.launches} == {11}
    assert len(driver.libraries) == len(spec.kernels)  # once each, however often shapes change


def test_launches_that_share_a_workspace(driver: HostLaunchDriver) -> None:
    spec = plugin_spec(centred, TARGET, torch.empty(3, 96))
    assert spec is not None and len(spec.kernels[0].steps) == 2
    plugin = made(spec)
    for rows in (3, 50, 1, 0):
        x = torch.randn(rows, 96)
        torch.testing.assert_close(enqueue(plugin, driver, x), centred.reference(x))
    assert len(driver.libraries) == 2
    plugin.on_shape_change([SimpleNamespace(dims=(3, 96))], [])
    with pytest.raises(UsageError, match="a kernel needs a workspace, and there is none"):
        plugin.enqueue(None, None, [16], [32], 0, 11)


def test_kernels_are_loaded_when_a_context_is_made(driver: HostLaunchDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the first run, in which a CUDA graph may be captured; and not for a GPU that the plan is not for."""
    spec = plugin_spec(silu_mul, TARGET, torch.empty(3, 96), torch.empty(3, 96))
    plugin = made(spec)
    assert len(driver.libraries) == 1
    enqueue(plugin, driver, torch.randn(2, 96), torch.randn(2, 96))
    assert len(driver.libraries) == 1
    monkeypatch.setattr(plugins, "native_architecture", lambda: "sm_120")
    with pytest.raises(BuildError, match="has kernels for sm_90, not for sm_120"):
        enqueue(made(spec), driver, torch.randn(2, 96), torch.randn(2, 96))


def test_two_contexts_do_not_share_their_shapes(driver: HostLaunchDriver) -> None:
    spec = plugin_spec(silu_mul, TARGET, torch.empty(3, 96), torch.empty(3, 96))
    assert spec is not None
    first, second = made(spec), made(spec)
    small, large = torch.randn(2, 96), torch.randn(50, 96)
    enqueue(first, driver, small, small)
    enqueue(second, driver, large, large)
    output = torch.full_like(small, torch.nan)
    driver.know(output.data_ptr(), output.numel() * 4)
    first.enqueue(None, None, [small.data_ptr()] * 2, [output.data_ptr()], 0, 11)
    torch.testing.assert_close(output, torch.nn.functional.silu(small) * small)
    assert len(driver.libraries) == 1


def test_each_tactic_gives_the_same_numbers(driver: HostLaunchDriver) -> None:
    weight = torch.randn(256)
    spec = plugin_spec(rms_norm, TARGET, torch.empty(4, 256), weight, 1e-6)
    assert spec is not None
    plugin = made(spec)
    names = [kernel.name for kernel in spec.kernels]
    assert len(names) > 1
    assert plugin.get_valid_tactics() == list(range(1, len(names) + 1))
    x = torch.randn(4, 256)
    wanted = rms_norm.reference(x.double(), weight.double(), 1e-6)
    blocks = set()
    for tactic in plugin.get_valid_tactics():
        plugin.set_tactic(tactic)
        torch.testing.assert_close(enqueue(plugin, driver, x, weight).double(), wanted, rtol=1e-5, atol=1e-5)
        blocks.add(driver.launches[-1][:2])
    assert len(blocks) > 1


def test_an_address_that_nobody_allocated_is_seen(driver: HostLaunchDriver) -> None:
    """The double itself: it would not pass a plugin that hands over a wrong address."""
    spec = plugin_spec(silu_mul, TARGET, torch.empty(3, 96), torch.empty(3, 96))
    plugin = made(spec)
    x = torch.randn(2, 96)
    enqueue(plugin, driver, x, x)
    with pytest.raises(AssertionError, match="no memory that was allocated"):
        plugin.enqueue(None, None, [x.data_ptr() + 4, x.data_ptr()], [x.data_ptr()], 0, 11)
