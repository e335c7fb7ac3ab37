"""The checks of `--gpu`, over stand-ins: a right kernel passes each, and each finds what is planted for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import layerport as lp
from host_cuda import HostCuda, cuda_fixture, scaled  # noqa: F401
from host_driver import HostLaunchDriver
from host_torch_cuda import Graph, stand_in_fixture  # noqa: F401
from layerport.errors import UsageError
from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport.testing.conformance.gpu_checks import check_gpu_graph, check_gpu_numbers, check_gpu_streams
from layerport.testing.conformance.kit import checks_of
from layerport.testing.conformance.records import FoundFaultError, NotApplicableError
from layerport.testing.conformance.subjects import Subject
from layerport_builtin_layers.nms.case import CASE as NMS

SHAPES = [
    CaseShape("small", {"x": (2, 5), "weight": (5,)}),
    CaseShape("no kernel for narrow rows", {"x": (2, 2), "weight": (2,)}),
    CaseShape("large", {"x": (40, 30), "weight": (30,)}, gpu_only=True),
]
CHECKS = (check_gpu_numbers, check_gpu_streams, check_gpu_graph)


@pytest.fixture
def subject(stand_in: HostCuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    layer = scaled(f"gpu_checks_{id(stand_in)}")
    assert layer._torch.cuda is not None
    monkeypatch.setattr(layer._torch.cuda, "_environment", lambda: stand_in)
    yield subject_of(layer)


def subject_of(layer: lp.Layer, relative: float = 1e-5) -> Subject:
    case = LayerCase(layer, SHAPES, ["float32"], {"float32": Tolerance(1e-5, relative)})
    return Subject(None, None, layer, case)  # type: ignore[arg-type]


def test_a_right_kernel_passes_and_every_shape_is_launched(subject: Subject, stand_in: HostCuda) -> None:
    for check in CHECKS:
        check(subject, "float32")
    grids = [launch[0] for launch in stand_in.driver.launches]
    assert {(1, 1, 1), (5, 1, 1)} <= set(grids)


def test_a_wrong_kernel_is_found_at_the_shape_that_only_a_gpu_runs(
    subject: Subject, stand_in: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = HostLaunchDriver.cuLaunchKernel

    def first_block_only(self: Any, kernel: int, gx: int, *rest: Any) -> Any:
        return launch(self, kernel, 1, *rest)

    monkeypatch.setattr(HostLaunchDriver, "cuLaunchKernel", first_block_only)
    with pytest.raises(FoundFaultError, match="large-float32.*elements are wrong.*kernel gpu_checks") as error:
        check_gpu_numbers(subject, "float32")
    assert "correct the kernel" in str(error.value)


def test_launches_that_disturb_each_other_are_found(
    subject: Subject, stand_in: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = HostLaunchDriver.cuLaunchKernel
    calls: list[tuple[Any, ...]] = []

    def late(self: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        return launch(self, *arguments) if len(calls) % 2 else (0,)  # every other launch is lost

    monkeypatch.setattr(HostLaunchDriver, "cuLaunchKernel", late)
    with pytest.raises(FoundFaultError, match="on two streams") as error:
        check_gpu_streams(subject, "float32")
    assert "keep nothing in __device__ variables" in str(error.value)


def test_a_graph_that_does_not_compute_anew_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Graph, "replay", lambda self: None)
    with pytest.raises(FoundFaultError, match="in a CUDA graph") as error:
        check_gpu_graph(subject, "float32")
    assert "let the launch depend on sizes alone" in str(error.value)


def test_what_no_kernel_takes_is_not_run(subject: Subject) -> None:
    other = LayerCase(subject.layer, SHAPES, ["float16"], {"float16": Tolerance(1e-2, 1e-2)})
    with pytest.raises(NotApplicableError, match="no kernel takes float16"):
        check_gpu_numbers(Subject(None, None, subject.layer, other), "float16")  # type: ignore[arg-type]


def test_a_size_that_depends_on_data_is_not_captured() -> None:
    subject = Subject(None, None, NMS.layer, NMS)  # type: ignore[arg-type]
    with pytest.raises(NotApplicableError, match="it cannot while it captures"):
        check_gpu_graph(subject, NMS.dtypes[0])


def test_without_a_gpu_it_is_wrong_use() -> None:
    assert not torch.cuda.is_available()
    with pytest.raises(UsageError, match="no GPU here"):
        checks_of("builtin_layers", gpu=True)
