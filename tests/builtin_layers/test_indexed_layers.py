"""Every case of the later layers: the operator and the kernel against float64, gradients, spills."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from kernel_figures import ARCHITECTURES, compiled
from kernel_orders import ordered
from layerport.testing import Case, LayerCase, kernel_for, run_kernel
from layerport_builtin_layers.add_layer_norm.case import CASE as ADD_LAYER_NORM
from layerport_builtin_layers.causal_conv1d.case import CASE as CAUSAL_CONV1D
from layerport_builtin_layers.deform_conv2d.case import CASE as DEFORM_CONV2D
from layerport_builtin_layers.experts_linear.case import CASE as EXPERTS_LINEAR
from layerport_builtin_layers.gated_rms_norm.case import CASE as GATED_RMS_NORM
from layerport_builtin_layers.grid_sample.case import CASE as GRID_SAMPLE
from layerport_builtin_layers.group_norm_silu.case import CASE as GROUP_NORM_SILU
from layerport_builtin_layers.index_add.case import CASE as INDEX_ADD
from layerport_builtin_layers.local_correlation.case import CASE as LOCAL_CORRELATION
from layerport_builtin_layers.ms_deform_attn.case import CASE as MS_DEFORM_ATTN
from layerport_builtin_layers.nms.case import CASE as NMS
from layerport_builtin_layers.packed_gate_mul.case import CASE as PACKED_GATE_MUL
from layerport_builtin_layers.roi_align.case import CASE as ROI_ALIGN
from layerport_builtin_layers.scatter_pillars.case import CASE as SCATTER_PILLARS
from layerport_builtin_layers.selective_scan.case import CASE as SELECTIVE_SCAN
from layerport_builtin_layers.ssd_scan.case import CASE as SSD_SCAN
from layerport_builtin_layers.weight_only_linear.case import CASE as WEIGHT_ONLY_LINEAR

ROWS = (ADD_LAYER_NORM, GATED_RMS_NORM, PACKED_GATE_MUL, GROUP_NORM_SILU)
LAYER_CASES = (
    *(MS_DEFORM_ATTN, EXPERTS_LINEAR, SELECTIVE_SCAN, WEIGHT_ONLY_LINEAR),
    *(DEFORM_CONV2D, GRID_SAMPLE, ROI_ALIGN, NMS, LOCAL_CORRELATION, SCATTER_PILLARS),
    *ROWS,
    *(CAUSAL_CONV1D, SSD_SCAN, INDEX_ADD),
)
CASES = [case for layer_case in LAYER_CASES for case in layer_case.cases()]
EVERY = bool(os.environ.get("LAYERPORT_TEST_FAMILIES"))
# Compiling takes the time: two of the dtypes run here, `layerport check` runs all.
RUN = [case for case in CASES if case.choice in (case.layer_case.dtypes[0], case.layer_case.dtypes[1])]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")


def name_of(layer_case: LayerCase) -> str:
    return layer_case.layer.short_name


each_layer = pytest.mark.parametrize("layer_case", LAYER_CASES, ids=name_of)


def each(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


@each(CASES)
def test_operator_agrees_with_float64(case: Case) -> None:
    tensors = case.tensors()
    case.check(case.layer(*case.arguments(tensors)), case.expected(tensors))


@needs_compiler
@ordered(RUN, every=EVERY)
def test_kernel_agrees_with_float64_in_any_order(case: Case, order: str | int) -> None:
    tensors = case.tensors()
    case.check(run_kernel(case.layer, *case.arguments(tensors), order=order), case.expected(tensors))


def of_reasons(*reasons: str) -> list[Case]:
    return [case for case in RUN if case.shape.reason in reasons]


@needs_compiler
@each(of_reasons("heads of 32", "one token of two experts"))
def test_kernel_takes_misaligned_pointers(case: Case) -> None:
    tensors = case.tensors()
    case.check(run_kernel(case.layer, *case.arguments(tensors), offset=8), case.expected(tensors))


@needs_compiler
@each([case for case in of_reasons("a pack and a part", "odd channels, a bias") if case.choice == RUN[0].choice])
def test_kernel_is_clean_under_the_address_sanitiser(case: Case) -> None:
    tensors = case.tensors()
    case.check(run_kernel(case.layer, *case.arguments(tensors), sanitize=True), case.expected(tensors))


@each_layer
def test_cases_reach_every_kernel_in_every_dtype(layer_case: LayerCase) -> None:
    reached = {
        (kernel_for(case.layer, *case.arguments(case.tensors())), str(case.choice)) for case in layer_case.cases()
    }
    wanted = {
        (kernel.name, str(case.choice))
        for case in layer_case.cases()
        for kernel in case.layer.kernels
        for taken in kernel.combinations(case.layer.signature)
        if all(taken[name] == case.dtype_of(name) for name in case.shape.shapes)
    }
    assert {name for name, _ in wanted} == {kernel.name for kernel in layer_case.layer.kernels}
    assert reached == wanted


def of_float64(layer_case: LayerCase) -> list[Any]:
    """The arguments of the second case, in float64 and, but for boxes, with gradients."""
    case = next(one for one in layer_case.cases() if one.shape.reason == layer_case.shapes[1].reason)
    arguments = zip((one.name for one in case.layer.signature.arguments), case.arguments(case.tensors()), strict=True)
    return [
        one.double().requires_grad_(name != "boxes") if isinstance(one, Tensor) and one.is_floating_point() else one
        for name, one in arguments
    ]


# Torch loads its compiler for the gradients of a loop of symbolic length.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@each_layer
def test_operator_passes_opcheck(layer_case: LayerCase) -> None:
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    # A trace with every size free takes up to half a minute there, nearly all of it Torch's algebra of sizes.
    if EVERY or layer_case not in (DEFORM_CONV2D, SSD_SCAN):
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(layer_case.layer.operator, tuple(of_float64(layer_case)), test_utils=checks)


@pytest.mark.parametrize("layer_case", [one for one in LAYER_CASES if one is not NMS], ids=name_of)
def test_gradients_of_first_and_second_order(layer_case: LayerCase) -> None:
    given = of_float64(layer_case)
    assert torch.autograd.gradcheck(layer_case.layer, given, fast_mode=True)
    if layer_case is not GRID_SAMPLE:  # Torch's own function has no second order
        assert torch.autograd.gradgradcheck(layer_case.layer, given, fast_mode=True)


@each_layer
def test_kernels_do_not_spill(layer_case: LayerCase) -> None:
    entries = compiled([layer_case.layer], ARCHITECTURES if EVERY else ("sm_120",), every=EVERY)
    figures = [one for entry in entries for one in entry["architectures"].values()]
    assert figures and [one["local_bytes"] for one in figures] == [0] * len(figures)
