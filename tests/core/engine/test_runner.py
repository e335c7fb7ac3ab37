"""The runner of a spec's kernels: which kernel for which shape, on which device."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any

import pytest

from layerport.engine.runner import KernelRunner, fitting_architecture
from layerport.errors import BuildError, UsageError
from layerport.sizes.tensors import sizes_of
from plugin_specs import N, spec


class Recorder:
    """Stands in for a launcher, which needs a GPU."""

    made: list[Recorder] = []

    def __init__(self, image: bytes, symbol: str, rule: Any) -> None:
        self.image, self.symbol, self.rule = image, symbol, rule
        self.sizes: list[dict[str, int]] = []
        self.launches: list[tuple[dict[str, int], int]] = []
        Recorder.made.append(self)

    def prepare(self, env: dict[str, int]) -> Recorder:
        self.sizes.append(dict(env))
        return self

    def launch(self, pointers: dict[str, int], stream: int) -> None:
        self.launches.append((dict(pointers), stream))


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Recorder.made = []


@pytest.mark.parametrize(
    ("available", "device", "chosen"),
    [
        (("sm_80", "sm_86", "sm_89"), "sm_89", "sm_89"),
        (("sm_80", "sm_86"), "sm_89", "sm_86"),
        (("sm_86", "sm_89"), "sm_80", None),
        (("sm_89",), "sm_90", None),
        (("sm_89", "sm_120"), "sm_121", "sm_120"),
        (("sm_100",), "sm_120", None),
        ((), "sm_89", None),
    ],
)
def test_a_cubin_runs_on_its_major_version_from_its_minor_one(
    available: tuple[str, ...], device: str, chosen: str | None
) -> None:
    assert fitting_architecture(available, device) == chosen


def test_a_device_without_a_kernel() -> None:
    with pytest.raises(BuildError) as caught:
        KernelRunner(spec(), "sm_120", Recorder)
    assert caught.value.fault == "layer pack::layer has kernels for sm_89, not for sm_120"
    assert caught.value.repair == "build with a target that includes sm_120"


def test_the_first_kernel_whose_guard_holds() -> None:
    fast, slow = spec().kernels
    step = dataclasses.replace(fast.steps[0], symbol="fast", images=slow.steps[0].images)
    guarded = spec(kernels=(type(fast)("fast", (step,), N >= 100), slow))
    runner = KernelRunner(guarded, "sm_89", Recorder)
    quick, plain = Recorder.made
    assert (quick.symbol, plain.symbol) == ("fast", "slow") and quick.image == b"\x7fELF first"
    runner.set_shapes({"x": (10, 10), "w": (10,)})
    runner.launch({"x": 1}, 7)
    runner.set_shapes({"x": (3, 3), "w": (3,)})
    runner.launch({"x": 2}, 8)
    runner.launch({"x": 3}, 8)
    assert quick.sizes == [{"x.0": 10, "x.1": 10, "w.0": 10}]
    assert quick.launches == [({"x": 1}, 7)]
    assert plain.sizes == [{"x.0": 3, "x.1": 3, "w.0": 3}]
    assert plain.launches == [({"x": 2}, 8), ({"x": 3}, 8)]


def test_shapes_that_no_kernel_takes() -> None:
    fast, _ = spec().kernels
    runner = KernelRunner(spec(kernels=(fast,)), "sm_120", Recorder)
    with pytest.raises(UsageError) as caught:
        runner.set_shapes({"x": (0, 3)})
    assert caught.value.fault == "layer pack::layer: no kernel takes the shapes {'x': (0, 3)}"
    assert "--decompose pack::layer" in str(caught.value.repair)


def test_the_names_of_the_sizes() -> None:
    assert sizes_of({"x": (2, 3), "scalar": ()}) == {"x.0": 2, "x.1": 3}


def test_close_lets_go_of_the_kernels() -> None:
    runner = KernelRunner(spec(), "sm_89", Recorder)
    runner.set_shapes({"x": (3, 3), "w": (3,)})
    kept = [weakref.ref(one) for one in Recorder.made]
    Recorder.made.clear()
    gc.collect()
    assert all(one() is not None for one in kept)
    runner.close()
    gc.collect()
    assert all(one() is None for one in kept)
    with pytest.raises(UsageError, match="launched before its shapes are set"):
        runner.launch({}, 0)
