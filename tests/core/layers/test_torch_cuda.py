"""The operator on CUDA tensors, without a GPU: the launches run on the CPU by the host harness (`host_driver`).

What stands in for Torch's CUDA half is `HostCuda`: CPU memory, one stream.  That the same holds on a GPU only
`benchmarks/gpu` can show.
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import layerport as lp
from host_cuda import SCALE, STREAM, HostCuda, cuda_fixture, scaled  # noqa: F401
from launch_doubles import LaunchDriver
from layerport.errors import PackError, UsageError
from layerport.layers import cuda_operator as torch_cuda
from layerport.layers.cuda_operator import CudaOperator, LaunchPlan
from layerport.packs import conversions
from layerport.packs import host as packs
from layerport_builtin_layers.rms_norm.case import CASE as RMS_NORM
from layerport_builtin_layers.silu_mul.case import CASE as SILU_MUL
from triton_setup import FUNCTIONS


def refuse(*args: Any) -> Any:
    raise AssertionError("the reference ran")


def operator(layer: lp.Layer, cuda: HostCuda, fallback: Any = refuse) -> CudaOperator:
    return CudaOperator(layer, fallback, lambda: cuda)


@pytest.mark.parametrize(
    "case",
    [
        case
        for layer_case in (RMS_NORM, SILU_MUL)
        for case in layer_case.cases()
        if all(sizes is None or torch.Size(sizes).numel() < 20_000 for sizes in case.shape.shapes.values())
    ],
    ids=lambda case: case.id,
)
def test_numbers_of_the_built_in_layers(case: Any, cuda: HostCuda) -> None:
    tensors = case.tensors()
    for tensor in tensors.values():
        if tensor is not None:
            cuda.know(tensor)
    if lp.explain_dispatch(case.layer, *case.arguments(tensors)).reasons[0].endswith("the reference as well"):
        pytest.skip("no kernel takes this dtype")
    got = operator(case.layer, cuda)(*case.arguments(tensors))
    case.check(got, case.expected(tensors))


def test_a_second_call_only_launches_and_a_new_shape_loads_nothing(cuda: HostCuda) -> None:
    layer = scaled("twice")
    run = operator(layer, cuda)
    weight = cuda.know(torch.arange(5.0))
    for rows in (4, 4, 9):
        x = cuda.know(torch.randn(rows, 5))
        torch.testing.assert_close(run(x, weight), x * weight * 2.0)
    assert len(run._plans) == 2
    assert len(cuda.driver.libraries) == 1
    assert [launch[2:4] for launch in cuda.driver.launches] == [(0, STREAM)] * 3
    torch.testing.assert_close(run(x, weight, 0.5), x * weight * 0.5)
    assert len(run._steps) == 2  # attributes are constants of a launch rule
    assert len(cuda.driver.libraries) == 1  # and the machine code is the same


def test_nothing_is_compiled_or_loaded_while_a_graph_is_captured(cuda: HostCuda) -> None:
    layer = scaled("captured")
    run = operator(layer, cuda)
    x, weight = cuda.know(torch.randn(4, 5)), cuda.know(torch.arange(5.0))
    cuda.captures = True
    with pytest.raises(UsageError) as caught:
        run(x, weight)
    assert str(caught.value) == (
        "layer lp_cuda::captured is called while a CUDA graph is captured, and kernel captured_0 is not compiled and "
        "loaded yet\n  to repair: call it once before with tensors of the same dtypes and shapes, then capture"
    )
    assert not cuda.driver.libraries and not cuda.driver.launches
    cuda.captures = False
    run(x, weight)
    cuda.captures = True
    for rows in (4, 9):  # a new shape of the same kernel loads nothing
        x = cuda.know(torch.randn(rows, 5))
        torch.testing.assert_close(run(x, weight), x * weight * 2.0)


def test_no_parameter_is_converted_while_a_graph_is_captured(cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = scaled("captured_weight")
    loaded = packs.load(Reversing(layer), environ={"LAYERPORT_DISABLE_PACKS": "builtin"})
    monkeypatch.setattr(conversions, "installed_packs", lambda: loaded)
    cuda.captures = True
    with pytest.raises(UsageError, match="and its parameters are not converted yet"):
        operator(layer, cuda)(torch.randn(2, 5), torch.arange(5.0))


def test_views_are_copied_where_the_kernel_needs_dense_memory(cuda: HostCuda) -> None:
    run = operator(scaled("views"), cuda)
    weight = cuda.know(torch.arange(4.0))
    wide = torch.randn(4, 6)
    torch.testing.assert_close(run(wide.t(), weight), wide.t() * weight * 2.0)
    misaligned = cuda.know(torch.randn(41)[1:].reshape(10, 4))
    assert misaligned.data_ptr() % 16 == 4
    torch.testing.assert_close(run(misaligned, weight), misaligned * weight * 2.0)


@pytest.mark.parametrize("rows", [2, 4], ids=["the reference", "the kernel"])
def test_outputs_have_the_strides_that_a_compiler_was_told(rows: int, cuda: HostCuda) -> None:
    layer = scaled(f"strides_{rows}")
    run = operator(layer, cuda, layer._torch.cuda._fallback)  # type: ignore[union-attr]
    weight = cuda.know(torch.ones(rows))
    for x in (torch.randn(rows, 5).t(), torch.randn(1, rows).expand(6, rows), torch.randn(rows, 4, 3).permute(1, 2, 0)):
        told = layer(x.to("meta"), weight.to("meta"))
        got = run(x, weight)
        assert got.stride() == told.stride() and got.is_contiguous()
    assert bool(cuda.driver.launches) == (rows == 4)


def test_a_rule_that_takes_a_root_of_a_size_is_made_for_the_sizes_of_the_call(cuda: HostCuda) -> None:
    @lp.layer("lp_cuda::rooted")
    def rooted(x: Tensor, weight: lp.Param) -> Tensor:
        return x * weight * x.shape[-1] ** -0.5

    @rooted.kernel(lp.cuda(SCALE, "scale<{x}>"), dtypes=("float32",))
    def launch(x: Any, weight: Any, y: Any) -> lp.Launch:
        n = x.numel()
        return lp.Launch(lp.cdiv(n, 256), 256, (x, weight, y, n, x.shape[-1], x.shape[-1] ** -0.5))

    run = operator(rooted, cuda)
    for columns in (4, 9, 4):
        x, weight = cuda.know(torch.randn(3, columns)), cuda.know(torch.ones(columns))
        torch.testing.assert_close(run(x, weight), x * columns**-0.5)
    assert len(cuda.driver.launches) == 3


def test_nothing_is_launched_for_an_empty_tensor(cuda: HostCuda) -> None:
    got = operator(scaled("empty"), cuda)(torch.empty(0, 4), cuda.know(torch.ones(4)))
    assert got.shape == (0, 4)
    assert not cuda.driver.launches


def test_the_reference_runs_where_no_kernel_fits(cuda: HostCuda) -> None:
    layer = scaled("fallback")
    run = operator(layer, cuda, layer.reference)
    for x, weight in ((torch.ones(2, 4).double(), torch.ones(4).double()), (torch.ones(5, 2), torch.ones(2))):
        torch.testing.assert_close(run(x, weight), x * 2)
    assert not cuda.driver.launches
    assert set(run._plans.values()) == {None}


def test_the_checks_of_the_reference_come_before_a_launch(cuda: HostCuda) -> None:
    layer = scaled("checked")
    run = operator(layer, cuda, layer.reference)
    with pytest.raises(ValueError, match=r"weight \[3\] does not fit x \[2, 4\]"):
        run(torch.ones(2, 4), torch.ones(3))
    assert not cuda.driver.launches


def test_tensors_on_two_devices_are_refused(cuda: HostCuda) -> None:
    with pytest.raises(UsageError, match=r"lp_cuda::devices: its tensors are on different devices") as caught:
        operator(scaled("devices"), cuda)(torch.ones(2, 4), torch.ones(4, device="meta"))
    assert caught.value.faults == ("x is on cpu", "weight is on meta")


def test_another_gpu_is_made_current_for_the_launch(cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    run = operator(scaled("second_gpu"), cuda)
    monkeypatch.setattr(run, "_device", lambda args: torch.device("cuda", 1))
    x = cuda.know(torch.ones(2, 4))
    torch.testing.assert_close(run(x, cuda.know(torch.ones(4))), x * 2)
    assert cuda.entered == [1]
    assert cuda.driver.launches[0][3] == STREAM + 1
    assert cuda.device == 0


class ContextDriver:
    """The contexts of two GPUs, each thread with its own current one, as the driver has them."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=0)

    def __init__(self) -> None:
        self.thread = threading.local()
        self.retained: list[int] = []
        self.asked = 0

    def cuCtxGetDevice(self) -> Any:
        self.asked += 1
        current = getattr(self.thread, "context", None)
        return (201, None) if current is None else (0, current - 500)

    def cuDeviceGet(self, index: int) -> Any:
        return 0, index

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        self.retained.append(device)
        return 0, 500 + device

    def cuCtxSetCurrent(self, context: int) -> Any:
        self.thread.context = context
        return (0,)


def entering(driver: Any, gpus: int, monkeypatch: pytest.MonkeyPatch) -> torch_cuda.Cuda:
    monkeypatch.setattr(torch_cuda, "require_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    # The names of CUDA builds of Torch.
    for name in ("_cuda_getCurrentRawStream", "_cuda_getDevice"):
        monkeypatch.setattr(torch._C, name, lambda *_: 0, raising=False)
    monkeypatch.setattr(torch._C._dynamo.guards, "_empty_strided_cuda", torch.empty_strided, raising=False)
    return torch_cuda.Cuda()


def test_a_new_thread_gets_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = ContextDriver()
    cuda = entering(driver, 1, monkeypatch)
    seen = []
    for _ in range(2):
        worker = threading.Thread(target=lambda: (cuda.enter(0), cuda.enter(0), seen.append(driver.thread.context)))
        worker.start()
        worker.join()
    assert seen == [500, 500] and driver.retained == [0]
    assert driver.asked == 2  # once for each thread, where there is one GPU


def test_the_context_of_another_gpu_is_not_launched_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch says that GPU 1 is current, and has not told CUDA yet: a launch would go to GPU 0."""
    driver = ContextDriver()
    cuda = entering(driver, 2, monkeypatch)
    for index in (0, 1, 1, 0, 1):
        cuda.enter(index)
        assert driver.thread.context == 500 + index
    driver.thread.context = 500  # whoever it was
    cuda.enter(1)
    assert driver.thread.context == 501
    assert driver.retained == [0, 1]


def through_the_dispatcher(layer: lp.Layer, cuda: HostCuda) -> Any:
    """The layer's operator with its CUDA implementation under the CPU's key, so that Torch calls it as it would."""
    library = torch.library.Library(layer.namespace, "FRAGMENT")
    library.impl(layer.short_name, operator(layer, cuda), "CPU")
    return library


def test_torch_calls_it_with_gradients_and_defaults(cuda: HostCuda) -> None:
    layer = scaled("dispatched")
    library = through_the_dispatcher(layer, cuda)
    try:
        x = cuda.know(torch.randn(3, 4)).requires_grad_()
        weight = cuda.know(torch.randn(4)).requires_grad_()
        got = layer(x, weight)
        assert len(cuda.driver.launches) == 1
        torch.testing.assert_close(got, x * weight * 2.0)
        got.sum().backward()
        torch.testing.assert_close(x.grad, (weight * 2.0).detach().expand(3, 4))
        module = layer.module(weight=weight.detach(), factor=3.0)
        cuda.know(module.weight)
        with torch.inference_mode():
            torch.testing.assert_close(module(x), x * weight * 3.0)
        assert len(cuda.driver.launches) == 2
    finally:
        library._destroy()


def test_trailing_arguments_that_the_dispatcher_leaves_away(cuda: HostCuda) -> None:
    library = through_the_dispatcher(RMS_NORM.layer, cuda)
    try:
        x = cuda.know(torch.randn(3, 64))
        torch.testing.assert_close(RMS_NORM.layer(x), RMS_NORM.layer.reference(x))
        assert len(cuda.driver.launches) == 1
    finally:
        library._destroy()


def test_a_triton_kernel_gets_addresses_that_it_was_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launches are recorded only: Triton's machine code runs on a GPU and nowhere else."""
    pytest.importorskip("triton")
    source = lp.triton(f"{FUNCTIONS}:without_mask", constexprs={"BLOCK": 64})

    @lp.layer("lp_cuda::aligned")
    def aligned(x: Tensor) -> Tensor:
        return x.clone()

    @aligned.kernel(source, dtypes=("float32",))
    def launch(x: Any, y: Any) -> lp.Launch:
        return lp.Launch(grid=lp.cdiv(x.numel(), 64), args=(x, y, x.numel()))

    environment = HostCuda(LaunchDriver("sm_90"))
    build = torch_cuda.build_kernels

    def built(compilations: Any) -> Any:
        (kernel,) = build(compilations)
        assert kernel.steps[0].rule.alignments["x"] == 16
        environment.driver.sizes = kernel.steps[0].cubin.parameter_sizes
        return (kernel,)

    monkeypatch.setattr(torch_cuda, "build_kernels", built)
    run = operator(aligned, environment)
    x = torch.randn(1001)[1:]
    assert x.data_ptr() % 16
    run(x)
    ((_, _, _, _, arguments),) = environment.driver.launches
    assert arguments[0] % 16 == 0
    assert arguments[0] != x.data_ptr()


class Reversing:
    """A pack whose kernel wants the weight backwards."""

    def __init__(self, layer: lp.Layer) -> None:
        self.layer = layer
        self.targets: list[str] = []

    @lp.hookimpl
    def layerport_layers(self) -> tuple[lp.Layer, ...]:
        return (self.layer,)

    @lp.hookimpl
    def layerport_convert_parameters(self, layer: lp.Layer, parameters: lp.Parameters, target: lp.Target) -> Any:
        self.targets.append(str(target))
        return parameters.replace(weight=parameters["weight"][::-1].copy())


def test_parameters_are_converted_once_for_each_state(cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = scaled("converted")
    pack = Reversing(layer)
    loaded = packs.load(pack, environ={"LAYERPORT_DISABLE_PACKS": "builtin"})
    monkeypatch.setattr(conversions, "installed_packs", lambda: loaded)
    run = operator(layer, cuda)
    x, weight = cuda.know(torch.randn(2, 5)), torch.nn.Parameter(torch.arange(5.0))
    real = torch_cuda.from_standard
    monkeypatch.setattr(torch_cuda, "from_standard", lambda array, kind: cuda.know(real(array, kind)))
    for _ in range(2):
        torch.testing.assert_close(run(x, weight), x * weight.detach().flip(0) * 2.0)
    assert pack.targets == ["torch:sm_90"]
    with torch.no_grad():
        weight.mul_(3.0)
    torch.testing.assert_close(run(x, weight), x * weight.detach().flip(0) * 2.0)
    assert pack.targets == ["torch:sm_90"] * 2


def test_threads_convert_at_once(cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Reversing):
        @lp.hookimpl
        def layerport_convert_parameters(self, layer: lp.Layer, parameters: lp.Parameters, target: lp.Target) -> Any:
            time.sleep(0.02)
            return parameters.replace(weight=parameters["weight"][::-1].copy())

    layer = scaled("converted_at_once")
    loaded = packs.load(Slow(layer), environ={"LAYERPORT_DISABLE_PACKS": "builtin"})
    monkeypatch.setattr(conversions, "installed_packs", lambda: loaded)
    run = operator(layer, cuda)
    printed = sys.stdout  # a hook's own goes to stderr
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(run._convert, [(torch.ones(2, 5), torch.arange(5.0), 2.0) for _ in range(8)]))
    assert all(one[1].tolist() == [4.0, 3, 2, 1, 0] for one in made)
    assert sys.stdout is printed


def test_the_torch_target_is_no_engine() -> None:
    unknown = r"target flavour 'torch' is not known\n  to repair: use one of rtx, tensorrt, portable"
    for make in (lambda: lp.Target.parse("torch:sm_90"), lambda: lp.Target("torch", ("sm_90",))):
        with pytest.raises(UsageError, match=unknown):
            make()
    with pytest.raises(UsageError, match=unknown):
        lp.build(torch.nn.Identity(), "nowhere.lp", target=lp.TorchTarget("sm_90"))  # type: ignore[arg-type]
    one = lp.TorchTarget("sm_90")
    assert (one.flavour, one.architectures, str(one)) == ("torch", ("sm_90",), "torch:sm_90")
    assert not isinstance(one, lp.Target)


def test_explain_says_which_and_why() -> None:
    layer = scaled("explained")
    said = lp.explain_dispatch(layer, torch.ones(2, 4), weight=torch.ones(4))
    assert (said.layer, said.device, said.kernel) == ("lp_cuda::explained", "cpu", None)
    assert said.reasons == ("kernels run on CUDA tensors only; on a GPU it would be kernel explained_0",)
    short = lp.explain_dispatch(layer, torch.ones(4, 2), torch.ones(2))
    assert short.reasons[1] == "explained_0: its predicate is false for x [4, 2], weight [2], output [4, 2]"
    wide = lp.explain_dispatch(layer, torch.ones(2, 4).double(), torch.ones(4).double())
    assert wide.reasons[1] == "explained_0 takes float32, here are float64"
    assert "runs the reference" in str(wide)
    unfit = lp.explain_dispatch(layer, torch.ones(2, 4), torch.ones(3))
    assert "weight [3] does not fit x [2, 4]" in unfit.reasons[1]
    with pytest.raises(UsageError) as caught:
        lp.explain_dispatch(layer, torch.ones(2, 4), scale=1)
    assert caught.value.faults == ("weight is missing", "scale is not an argument")


def test_a_fault_of_the_pack_is_an_error_and_no_fallback(cuda: HostCuda) -> None:
    @lp.layer("lp_cuda::faulty")
    def faulty(x: Tensor) -> Tensor:
        return x.clone()

    @faulty.kernel(lp.cuda(SCALE, "scale<{x}>"), dtypes=("float32",))
    def launch(x: Any, y: Any) -> lp.Launch:
        return lp.Launch(grid=1, block=256, args=(x, y))

    with pytest.raises(PackError, match=r"layer lp_cuda::faulty, kernel faulty_0: .* passes 2 arguments"):
        operator(faulty, cuda)(torch.ones(3))


def test_plans_do_not_grow_without_end(cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_cuda, "_MOST_PLANS", 2)
    run = operator(scaled("many"), cuda)
    weight = cuda.know(torch.ones(4))
    for rows in range(1, 6):
        run(cuda.know(torch.ones(rows, 4)), weight)
    assert 1 <= len(run._plans) <= 2
    assert all(isinstance(plan, LaunchPlan) for plan in run._plans.values())
