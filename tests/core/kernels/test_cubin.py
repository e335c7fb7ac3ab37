"""What is read from a cubin, and that nothing but BuildError comes out of a damaged one."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerport.errors import BuildError
from layerport.kernels.cubin import Cubin, kernel_symbols
from layerport.kernels.toolchains.cuda_job import CudaJob
from layerport.kernels.toolchains.nvrtc import compile_jobs

SOURCE = """
struct Big { char bytes[5000]; };
extern "C" __global__ void __launch_bounds__(128) mixed(
    const float* x, long long n, int c, float beta, double d, bool flag, short s) {
  __shared__ float tile[64];
  tile[threadIdx.x % 64] = x[0] * beta + d + c + flag + s;
  __syncthreads();
  ((float*)x)[n] = tile[(threadIdx.x + 1) % 64];
}
extern "C" __global__ void large(int* y, const __grid_constant__ Big big, int n) { y[0] = big.bytes[n]; }
extern "C" __global__ void stacked(int* x, int n) {
  int a[40];
  for (int i = 0; i < n; i++) a[i] = x[i];
  x[0] = a[n % 40];
}
extern "C" __global__ void none() {}
"""


@cache
def compiled(entry: str, architecture: str) -> Cubin:
    job = CudaJob(SOURCE, "k.cu", "/", entry, architecture, "test")
    return compile_jobs([job])[0]


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("architecture", ["sm_75", "sm_89", "sm_90", "sm_120"])
def test_reads_parameters_and_resources(architecture: str) -> None:
    cubin = compiled("mixed", architecture)
    assert cubin.architecture == architecture
    assert cubin.parameter_sizes == (8, 8, 4, 4, 8, 1, 2)
    # Also where the section holds the system's own kibibyte (from sm_90 on).
    assert cubin.resources.static_shared == 256
    assert cubin.resources.max_threads == 128
    assert cubin.resources.local_bytes == 0
    assert 0 < cubin.resources.registers <= 255


def test_reads_the_long_form_of_parameters() -> None:
    assert compiled("large", "sm_90").parameter_sizes == (8, 5000, 4)


def test_reads_the_stack_frame() -> None:
    assert compiled("stacked", "sm_89").resources.local_bytes == 160


def test_reads_a_kernel_without_anything() -> None:
    cubin = compiled("none", "sm_89")
    assert cubin.parameter_sizes == ()
    assert cubin.resources.static_shared == 0
    assert cubin.resources.max_threads is None


def test_the_architecture_of_older_cubins_is_in_another_byte() -> None:
    image = bytearray(compiled("none", "sm_89").image)
    image[8] = 7
    image[48:52] = (0x00590559).to_bytes(4, "little")
    assert Cubin.read(bytes(image), "none").architecture == "sm_89"


def test_an_unknown_symbol_lists_what_is_there() -> None:
    image = compiled("mixed", "sm_89").image
    with pytest.raises(BuildError, match="no kernel nothere in it, only large, mixed, none, stacked"):
        Cubin.read(image, "nothere")
    assert kernel_symbols(image) == ("large", "mixed", "none", "stacked")


@pytest.mark.parametrize("image", [b"", b"\x7fELF", b"x" * 4096, b"\x7fELF\x02\x01" + bytes(100)])
def test_what_is_no_cubin_is_refused(image: bytes) -> None:
    with pytest.raises(BuildError, match=f"{len(image)} bytes given as a cubin cannot be read"):
        Cubin.read(image, "mixed")


@given(st.data())
def test_damage_gives_a_build_error_or_a_cubin(data: st.DataObject) -> None:
    image = bytearray(compiled("mixed", "sm_89").image)
    for _ in range(data.draw(st.integers(1, 6))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(image[: data.draw(st.integers(0, len(image)))])
    try:
        assert Cubin.read(cut, "mixed").symbol == "mixed"
    except BuildError as error:
        assert "cannot be read" in str(error)


@pytest.mark.parametrize(("attribute", "registers_stay"), [(0x11, True), (0x2F, False)])
def test_what_a_compiler_does_not_say_of_a_kernel_is_0(attribute: int, registers_stay: bool) -> None:
    """Every compiler here states the stack frame and the registers; one that does not uses none."""
    sound = compiled("stacked", "sm_89")
    symbol, image = sound.symbol, sound.image
    entry = struct.pack("<BBH", 4, attribute, 8)
    begins = [at for at in range(len(image)) if image.startswith(entry, at)]
    assert begins
    damaged = bytearray(image)
    for at in begins:
        damaged[at + 1] = 0xEE  # an attribute that nobody knows
    read = Cubin.read(bytes(damaged), symbol).resources
    assert sound.resources.registers > 0 and sound.resources.local_bytes > 0
    assert (read.registers, read.local_bytes) == (
        (sound.resources.registers, 0) if registers_stay else (0, sound.resources.local_bytes)
    )
