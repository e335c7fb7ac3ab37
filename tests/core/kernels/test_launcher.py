"""Launching, against a double of the CUDA driver: what is loaded, packed and passed, and what is refused.

The double records calls and reads the arguments as the driver would, through the addresses; one test goes
through the real bindings to a stub of libcuda.  That a real driver takes them is for a GPU to show.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from enum import IntEnum
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from layerport.errors import BuildError, LayerportError, PackError, UsageError
from layerport.kernels import launcher as launcher_module
from layerport.kernels.cubin import Cubin
from layerport.kernels.launch_rules import Arg, LaunchRule, PointerArg, ScalarArg
from layerport.kernels.launcher import Launcher, require_driver
from layerport.kernels.toolchains.cuda_job import CudaJob
from layerport.kernels.toolchains.nvrtc import compile_jobs
from layerport.sizes.expressions import Const, Expr, Symbol, cdiv

SOURCE = """
extern "C" __global__ void mixed(const float* x, float* y, const float* bias, long long n, int c, float beta,
                                 double d, bool flag, int as_int) {
  if (flag) y[0] = x[0] * beta + d + c + n + as_int + (bias ? bias[0] : 0);
}
extern "C" __global__ void __launch_bounds__(128) wide(float* y) {
  extern __shared__ float dynamic[];
  __shared__ float fixed[256];
  dynamic[threadIdx.x] = fixed[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[0] = dynamic[1] + fixed[1];
}
extern "C" __global__ void nothing() {}
"""
N = Symbol("x.0")


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", str(tmp_path))


@cache
def compiled(entry: str) -> Cubin:
    return compile_jobs([CudaJob(SOURCE, "k.cu", "/", entry, "sm_89", "test")])[0]


class Status(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_IMAGE = 200
    CUDA_ERROR_INVALID_CONTEXT = 201


class RecordingDriver:
    """A double of `cuda.bindings.driver`: records each call, and reads arguments as a kernel is launched."""

    CUresult = Status
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="max dynamic shared")

    def __init__(self, sizes: tuple[int, ...] = (), failing: dict[str, Status] | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.arguments: list[list[bytes]] = []
        self.sizes = sizes
        self.failing = failing or {}
        self.device = 0

    def _answer(self, name: str, *results: Any) -> tuple[Any, ...]:
        return (self.failing.get(name, Status.CUDA_SUCCESS), *results)

    def CUfunction(self, handle: int) -> tuple[str, int]:
        return ("function", handle)

    def cuLibraryLoadData(self, *arguments: Any) -> tuple[Any, ...]:
        self.calls.append(("load", *arguments))
        return self._answer("cuLibraryLoadData", "library")

    def cuLibraryGetKernel(self, library: Any, name: bytes) -> tuple[Any, ...]:
        self.calls.append(("kernel", library, name))
        return self._answer("cuLibraryGetKernel", 77)

    def cuLibraryUnload(self, library: Any) -> tuple[Any, ...]:
        self.calls.append(("unload", library))
        return self._answer("cuLibraryUnload")

    def cuCtxGetDevice(self) -> tuple[Any, ...]:
        return self._answer("cuCtxGetDevice", self.device)

    def cuKernelSetAttribute(self, *arguments: Any) -> tuple[Any, ...]:
        self.calls.append(("attribute", *arguments))
        return self._answer("cuKernelSetAttribute")

    def cuLaunchKernel(self, *arguments: Any) -> tuple[Any, ...]:
        *front, table, extra = arguments
        assert extra == 0
        self.calls.append(("launch", *front))
        addresses = (ctypes.c_void_p * len(self.sizes)).from_address(table)
        self.arguments.append(
            [ctypes.string_at(address or 0, size) for address, size in zip(addresses, self.sizes, strict=True)]
        )
        return self._answer("cuLaunchKernel")


def rule(args: tuple[Arg, ...], grid: Expr | None = None, block: Expr | int = 64, shared: Expr | int = 0) -> LaunchRule:
    one, threads, dynamic = Const(1), Const(block) if isinstance(block, int) else block, shared
    return LaunchRule(
        (cdiv(N, 256) if grid is None else grid, one, one),
        (threads, one, one),
        Const(dynamic) if isinstance(dynamic, int) else dynamic,
        args,
    )


MIXED = rule(
    (
        PointerArg("x"),
        PointerArg("y"),
        PointerArg(None),
        ScalarArg("int", N * 2**20),
        ScalarArg("int", -N),
        ScalarArg("float", 0.1),
        ScalarArg("float", 0.1),
        ScalarArg("bool", True),
        ScalarArg("bool", True),
    )
)


def mixed(**fields: Any) -> tuple[Launcher, RecordingDriver]:
    cubin = compiled("mixed")
    driver = RecordingDriver(cubin.parameter_sizes, **fields)
    return Launcher(cubin.image, "mixed", MIXED, label="layer p::l, kernel l_0", driver=driver), driver


def test_loads_once_and_independently_of_contexts() -> None:
    launcher, driver = mixed()
    assert driver.calls == [
        ("load", compiled("mixed").image, [], [], 0, [], [], 0),
        ("kernel", "library", b"mixed"),
    ]
    launcher.close()
    launcher.close()
    assert driver.calls[2:] == [("unload", "library")]


def test_a_launcher_is_a_context_manager() -> None:
    launcher, driver = mixed()
    with launcher as same:
        assert same is launcher
    assert driver.calls[-1] == ("unload", "library")


def test_arguments_have_the_widths_of_the_kernel() -> None:
    launcher, driver = mixed()
    launcher.resolve({"x.0": 3000})
    launcher.launch({"x": 0x7F00_0000_1000, "y": 0xFFFF_FFFF_FFFF_FF00}, stream=42)
    assert driver.calls[-1] == ("launch", ("function", 77), 12, 1, 1, 64, 1, 1, 0, 42)
    assert driver.arguments == [
        [
            struct.pack("<Q", 0x7F00_0000_1000),
            struct.pack("<Q", 0xFFFF_FFFF_FFFF_FF00),
            bytes(8),
            struct.pack("<q", 3000 * 2**20),
            struct.pack("<i", -3000),
            struct.pack("<f", 0.1),
            struct.pack("<d", 0.1),
            b"\x01",
            struct.pack("<i", 1),
        ]
    ]


def test_a_launch_changes_pointers_only() -> None:
    launcher, driver = mixed()
    launcher.resolve({"x.0": 1})
    for address in (16, 32):
        launcher.launch({"x": address, "y": address + 1, "unused": 5}, stream=address)
    first, second = driver.arguments
    assert [int.from_bytes(data, "little") for data in (*first[:2], *second[:2])] == [16, 17, 32, 33]
    assert first[2:] == second[2:]
    assert [call[-1] for call in driver.calls[-2:]] == [16, 32]
    with pytest.raises(KeyError, match="'y'"):
        launcher.launch({"x": 16}, stream=0)


def test_memory_of_a_launch_lives_as_long_as_it() -> None:
    launcher, driver = mixed()
    prepared = [launcher.prepare({"x.0": size}) for size in range(1, 50)]
    gc.collect()
    for one in prepared:
        one.launch({"x": 1, "y": 2}, stream=0)
    assert [struct.unpack("<i", arguments[4])[0] for arguments in driver.arguments] == [-n for n in range(1, 50)]


def test_something_empty_is_not_launched() -> None:
    launcher, driver = mixed()
    launcher.resolve({"x.0": 0})
    launcher.launch({"x": 0, "y": 0}, stream=0)
    assert driver.arguments == []


def test_a_launch_before_resolve() -> None:
    with pytest.raises(UsageError, match="layer p::l, kernel l_0 is launched before resolve"):
        mixed()[0].launch({}, 0)


def test_a_count_past_an_int_is_refused() -> None:
    launcher, _ = mixed()
    with pytest.raises(UsageError) as caught:
        launcher.resolve({"x.0": 2**31 + 1})
    assert "argument 4, int -x.0, is -2147483649 for these sizes, which does not fit 4 bytes" in str(caught.value)
    assert "declare the kernel's parameter as long long" in str(caught.value)
    large = rule((*MIXED.args[:3], ScalarArg("int", N * N), *MIXED.args[4:]), grid=Const(1))
    with pytest.raises(UsageError, match="is 9223372037000250000 for these sizes, which does not fit 8 bytes"):
        Launcher(compiled("mixed").image, "mixed", large, driver=RecordingDriver()).resolve({"x.0": 3037000500})


def test_a_float_that_a_float_cannot_hold() -> None:
    cubin = compiled("mixed")
    args = (*MIXED.args[:5], ScalarArg("float", 1e300), *MIXED.args[6:])
    launcher = Launcher(cubin.image, "mixed", rule(args), driver=RecordingDriver())
    with pytest.raises(UsageError, match="argument 5, float 1e\\+300, does not fit a float\n"):
        launcher.resolve({"x.0": 1})


def test_a_rule_that_does_not_fit_is_refused_before_loading() -> None:
    driver = RecordingDriver()
    with pytest.raises(PackError, match=r"kernel nothing: the launch rule passes 9 arguments, but nothing takes 0"):
        Launcher(compiled("nothing").image, "nothing", MIXED, driver=driver)
    assert driver.calls == []


def test_a_kernel_without_parameters() -> None:
    driver = RecordingDriver()
    launcher = Launcher(compiled("nothing").image, "nothing", rule(()), driver=driver)
    launcher.resolve({"x.0": 1})
    launcher.launch({}, 7)
    assert driver.calls[-1][-1] == 7


def wide(shared: Expr | int, block: Expr | int = 64) -> tuple[Launcher, RecordingDriver]:
    cubin = compiled("wide")
    driver = RecordingDriver(cubin.parameter_sizes)
    made = rule((PointerArg("y"),), grid=Const(1), block=block, shared=shared)
    return Launcher(cubin.image, "wide", made, driver=driver), driver


def asked(driver: RecordingDriver) -> list[tuple[Any, ...]]:
    return [call[1:] for call in driver.calls if call[0] == "attribute"]


def test_more_shared_memory_is_asked_for_once_per_device() -> None:
    launcher, driver = wide(N)
    # 1 KiB of the 48 that need no asking is static.
    launcher.resolve({"x.0": 47 * 1024})
    launcher.launch({"y": 1}, 0)
    assert asked(driver) == []
    for size in (60_000, 90_000, 70_000):
        launcher.resolve({"x.0": size})
        launcher.launch({"y": 1}, 0)
        launcher.launch({"y": 1}, 0)
    assert asked(driver) == [("max dynamic shared", 60_000, 77, 0), ("max dynamic shared", 90_000, 77, 0)]
    driver.device = 1
    launcher.launch({"y": 1}, 0)
    assert asked(driver)[2:] == [("max dynamic shared", 70_000, 77, 1)]


def test_shared_memory_that_was_asked_for_never_shrinks_again() -> None:
    """A thread with small sizes that asks while another one asks for more, also through another launcher."""
    cubin = compiled("wide")
    driver = RecordingDriver(cubin.parameter_sizes)
    made = rule((PointerArg("y"),), grid=Const(1), shared=N)
    launchers = [Launcher(cubin.image, "wide", made, driver=driver) for _ in range(2)]
    asking, larger = threading.Event(), threading.Event()
    applied: list[int] = []

    def slow(attribute: Any, dynamic: int, kernel: Any, device: Any) -> tuple[Any, ...]:
        if dynamic == 60_000:
            asking.set()
            larger.wait(0.3)  # in vain, where one waits for the other
        applied.append(dynamic)
        return (Status.CUDA_SUCCESS,)

    driver.cuKernelSetAttribute = slow  # type: ignore[method-assign, assignment]
    small, large = (one.prepare({"x.0": size}) for one, size in zip(launchers, (60_000, 90_000), strict=True))
    thread = threading.Thread(target=small.launch, args=({"y": 1}, 0))
    thread.start()
    assert asking.wait(30)
    large.launch({"y": 1}, 0)
    larger.set()
    thread.join(30)
    assert applied[-1] == 90_000
    small.launch({"y": 1}, 0)
    assert applied[-1] == 90_000


def test_one_image_is_loaded_once_and_unloaded_with_its_last_user() -> None:
    driver = RecordingDriver(compiled("wide").parameter_sizes)
    made = rule((PointerArg("y"),), grid=Const(1), shared=N)

    def launcher() -> Launcher:
        return Launcher(compiled("wide").image, "wide", made, driver=driver)

    first, second = launcher(), launcher()
    names = [call[0] for call in driver.calls]
    assert names == ["load", "kernel"]
    first.close()
    assert "unload" not in [call[0] for call in driver.calls]
    second.resolve({"x.0": 64})
    second.launch({"y": 1}, 0)
    del second
    gc.collect()
    assert [call[0] for call in driver.calls] == ["load", "kernel", "launch", "unload"]
    threads: list[Launcher] = []
    workers = [threading.Thread(target=lambda: threads.append(launcher())) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [call[0] for call in driver.calls].count("load") == 2
    # Another driver is another matter.
    Launcher(compiled("wide").image, "wide", made, driver=RecordingDriver())
    assert [call[0] for call in driver.calls].count("load") == 2


def test_more_shared_memory_than_the_architecture_has() -> None:
    launcher, _ = wide(N)
    launcher.resolve({"x.0": 98 * 1024})
    with pytest.raises(UsageError) as caught:
        launcher.resolve({"x.0": 98 * 1024 + 1})
    assert "kernel wide cannot be launched with x.0=100353\n" in str(caught.value)
    assert "101377 bytes of shared memory (1024 static, 100353 dynamic), but sm_89 has 101376" in str(caught.value)


def test_more_threads_than_the_launch_bounds() -> None:
    launcher, _ = wide(0, block=N)
    launcher.resolve({"x.0": 128})
    with pytest.raises(UsageError, match="a block of 129 threads, but __launch_bounds__ of the kernel allows 128"):
        launcher.resolve({"x.0": 129})


@pytest.mark.parametrize("name", ["cuLibraryLoadData", "cuLibraryGetKernel"])
def test_a_driver_that_refuses_the_kernel(name: str) -> None:
    with pytest.raises(BuildError) as caught:
        mixed(failing={name: Status.CUDA_ERROR_INVALID_IMAGE})
    assert f"layer p::l, kernel l_0: {name} failed: CUDA_ERROR_INVALID_IMAGE" in str(caught.value)
    assert "the kernel is compiled for sm_89" in str(caught.value)


def test_a_driver_that_refuses_the_launch() -> None:
    launcher, _ = mixed(failing={"cuLaunchKernel": Status.CUDA_ERROR_INVALID_CONTEXT})
    launcher.resolve({"x.0": 1})
    with pytest.raises(BuildError, match=r"cuLaunchKernel with Geometry\(grid=\(1, 1, 1\).*failed: CUDA_ERROR_INVALID"):
        launcher.launch({"x": 1, "y": 2}, 0)


def test_threads_share_a_prepared_launch() -> None:
    launcher, driver = mixed()
    prepared = launcher.prepare({"x.0": 5})

    def work(number: int) -> None:
        for turn in range(300):
            prepared.launch({"x": number * 1000 + turn, "y": number * 1000 + turn}, stream=number * 1000 + turn)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(driver.arguments) == 1200
    assert all(arguments[0] == arguments[1] for arguments in driver.arguments)


def fake_driver(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    from cuda.bindings import driver

    monkeypatch.setattr(driver, "cuInit", answer)


def test_without_a_driver_the_reason_is_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: int) -> None:
        raise RuntimeError("libcuda.so is not here")

    fake_driver(monkeypatch, missing)
    with pytest.raises(LayerportError) as caught:
        Launcher(compiled("mixed").image, "mixed", MIXED)
    assert "no NVIDIA driver on this machine" in str(caught.value)
    assert "building, checking and verifying need neither" in str(caught.value)


def test_without_a_gpu_the_reason_is_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import driver

    fake_driver(monkeypatch, lambda _: (driver.CUresult.CUDA_ERROR_NO_DEVICE,))
    with pytest.raises(LayerportError, match="the NVIDIA driver cannot be used: CUDA_ERROR_NO_DEVICE"):
        require_driver()


def test_the_names_of_the_double_are_names_of_the_bindings() -> None:
    from cuda.bindings import driver

    for name in (name for name in vars(RecordingDriver) if name.startswith(("cu", "CU"))):
        assert hasattr(driver, name)
    attribute = driver.CUfunction_attribute
    assert attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES.name.endswith("SHARED_SIZE_BYTES")
    assert {status.name for status in Status} <= {status.name for status in driver.CUresult}


STUB = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
static const unsigned sizes[9] = {8, 8, 8, 8, 4, 4, 8, 1, 4};
int cuInit(unsigned flags) { return 0; }
int cuLibraryLoadData(void **out, const void *code, void *a, void *b, unsigned n, void *c, void *d,
                      unsigned m) {
  *out = (void *)0x1111;
  return memcmp(code, "\177ELF", 4) ? 200 : 0;
}
int cuLibraryGetKernel(void **out, void *library, const char *name) {
  *out = (void *)0x2222;
  return library != (void *)0x1111 || strcmp(name, "mixed");
}
int cuLibraryUnload(void *library) { return library != (void *)0x1111; }
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
  printf("[[%ld,%u,%u,%u,%u,%u,%u,%u,", (long)f, gx, gy, gz, bx, by, bz, shared);
  printf("%ld,%d],[", (long)stream, !extra);
  for (int i = 0; i < 9; i++) {
    uint64_t value = 0;
    memcpy(&value, arguments[i], sizes[i]);
    printf("%s%llu", i ? "," : "", (unsigned long long)value);
  }
  puts("]]");
  return fflush(stdout);
}
int cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags, int *status) {
  Dl_info here;
  dladdr((void *)cuInit, &here);
  *out = dlsym(dlopen(here.dli_fname, RTLD_NOW), name);
  if (status) *status = !*out;
  return *out ? 0 : 500;
}
int cuGetProcAddress(const char *name, void **out, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, out, version, flags, 0);
}
"""
_LAUNCH = """
import json, sys
from pathlib import Path
from layerport.kernels.launch_rules import LaunchRule
from layerport.kernels.launcher import Launcher
rule = LaunchRule.from_json(json.loads(Path("rule.json").read_text()))
with Launcher(Path("k.cubin").read_bytes(), "mixed", rule) as launcher:
    launcher.resolve({"x.0": 3000})
    launcher.launch({"x": 0x7F0000001000, "y": 0xFFFFFFFFFFFFFF00}, 42)
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for a stub of libcuda")
def test_the_real_bindings_pass_the_same_to_a_stub_of_the_driver(tmp_path: Path) -> None:
    (tmp_path / "stub.c").write_text(STUB)
    (tmp_path / "rule.json").write_text(json.dumps(MIXED.to_json()))
    (tmp_path / "k.cubin").write_bytes(compiled("mixed").image)
    flags = ["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1"]
    subprocess.run(["cc", *flags, "stub.c", "-ldl"], cwd=tmp_path, check=True)
    source = str(Path(launcher_module.__file__).parents[1])
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": source}
    command = [sys.executable, "-c", _LAUNCH]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    call, arguments = json.loads(done.stdout)
    assert call == [0x2222, 12, 1, 1, 64, 1, 1, 0, 42, 1]
    single, double = struct.unpack("<IQ", struct.pack("<fd", 0.1, 0.1))
    assert arguments[:3] == [0x7F00_0000_1000, 0xFFFF_FFFF_FFFF_FF00, 0]
    assert arguments[3:] == [3000 * 2**20, 2**32 - 3000, single, double, 1, 1]
