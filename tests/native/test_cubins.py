"""What a cubin says, in C++ and in Python; images whose lengths lie never get to the driver."""

from __future__ import annotations

import random

import pytest

from layerport.errors import BuildError
from layerport.kernels.cubin import Cubin, kernel_symbols
from layerport.targets import Target
from layerport.testing.specs import plugin_spec
from layerport_builtin_layers.rms_norm.reference import rms_norm
from native.probe import Probe

RUNS = 1000


@pytest.fixture(scope="module")
def images() -> list[tuple[bytes, str]]:
    torch = pytest.importorskip("torch")
    made = []
    for architecture in ("sm_75", "sm_90", "sm_120"):
        spec = plugin_spec(rms_norm, Target("tensorrt", (architecture,)), torch.empty(4, 256), torch.randn(256), 1e-6)
        assert spec is not None
        steps = (step for kernel in spec.kernels for step in kernel.steps)
        made += [(spec.images[step.images[architecture]], step.symbol) for step in steps]
    return made


def test_both_read_the_same(probe: Probe, images: list[tuple[bytes, str]]) -> None:
    for image, symbol in images:
        cubin = Cubin.read(image, symbol)
        most = cubin.resources.max_threads or 0
        assert probe.cubin(image, symbol) == (
            cubin.architecture,
            cubin.resources.static_shared,
            most,
            cubin.parameter_sizes,
        )
        assert kernel_symbols(image)
        assert "no kernel other in it" in str(probe.cubin(image, "other"))


def test_what_c_takes_python_takes_too(probe: Probe, images: list[tuple[bytes, str]]) -> None:
    dice = random.Random(40)
    taken = 0
    for _ in range(RUNS):
        image, symbol = dice.choice(images)
        data = bytearray(image)
        for _ in range(dice.randrange(1, 4)):
            # Half of the changes in the headers, where the lengths are.
            start = dice.choice((0, len(data) - 64 * dice.randrange(1, 20)))
            place = (
                min(len(data) - 9, max(0, start + dice.randrange(64)))
                if dice.random() < 0.5
                else dice.randrange(len(data) - 9)
            )
            if dice.random() < 0.5:
                data[place] = dice.randrange(256)
            else:
                data[place : place + 8] = dice.choice((b"\xff" * 8, b"\0" * 8, (len(data) - 1).to_bytes(8, "little")))
        if dice.random() < 0.3:
            del data[dice.randrange(len(data)) :]
        found = probe.cubin(bytes(data), symbol)
        if isinstance(found, tuple):
            taken += 1
            try:
                cubin = Cubin.read(bytes(data), symbol)
            except BuildError as error:
                assert "decode" in error.fault, error.fault  # a name in no UTF-8, which C++ takes as bytes
            else:
                assert found[3] == cubin.parameter_sizes and found[0] == cubin.architecture
    assert 0 < taken < RUNS


@pytest.mark.parametrize(
    "image", [b"", b"\x7fELF first", b"\x7fELF\x02\x01" + b"\0" * 60, b"\x7fELF\x02\x01" + b"\xff" * 100]
)
def test_no_cubins(probe: Probe, image: bytes) -> None:
    assert f"{len(image)} bytes given as a cubin cannot be read" in str(probe.cubin(image, "kernel"))
    with pytest.raises(BuildError):
        Cubin.read(image, "kernel")
