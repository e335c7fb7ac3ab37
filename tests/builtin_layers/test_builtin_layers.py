"""Every case of every built-in layer: the operator and the kernel against the float64 reference."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import layerport as lp
from kernel_figures import compiled, has_disassembler
from kernel_orders import ordered
from layerport.layers.derivation import derive
from layerport.sizes.dims import port
from layerport.sizes.tensors import TensorType
from layerport.testing import Case, LayerCase, check_backward, kernel_for, run_kernel
from layerport_builtin_layers.add_rms_norm import add_rms_norm
from layerport_builtin_layers.add_rms_norm.case import CASE as ADD_RMS_NORM
from layerport_builtin_layers.circular_pad import circular_pad
from layerport_builtin_layers.circular_pad.case import CASE as CIRCULAR_PAD
from layerport_builtin_layers.gelu_mul.case import CASE as GELU_MUL
from layerport_builtin_layers.layer_norm.case import CASE as LAYER_NORM
from layerport_builtin_layers.rms_norm import reference, rms_norm
from layerport_builtin_layers.rms_norm.case import CASE as RMS_NORM
from layerport_builtin_layers.rope import rope
from layerport_builtin_layers.rope.case import CASE as ROPE
from layerport_builtin_layers.silu_mul import silu_mul
from layerport_builtin_layers.silu_mul.case import CASE as SILU_MUL

LAYER_CASES = (RMS_NORM, ADD_RMS_NORM, LAYER_NORM, SILU_MUL, GELU_MUL, ROPE, CIRCULAR_PAD)
CASES = [case for layer_case in LAYER_CASES for case in layer_case.cases()]
# These are made of the code of rms_norm and silu_mul, or copy only: two dtypes of them run here, and one under the
# sanitiser, because compiling takes the time.  `layerport check` runs all.
SHARING = (ADD_RMS_NORM.layer, LAYER_NORM.layer, GELU_MUL.layer, CIRCULAR_PAD.layer)
RUN = [
    case
    for case in CASES
    if case.layer not in SHARING
    or case.choice == "float32"
    or (case.choice == "float16" and case.layer is GELU_MUL.layer)
    or (case.id.endswith("-float32+bfloat16") and case.shape.shapes["weight"] is not None)
]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")


def each(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


def outputs_of(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


@each(CASES)
def test_operator_agrees_with_float64(case: Case) -> None:
    tensors = case.tensors()
    result = case.layer(*case.arguments(tensors))
    wanted = tensors[case.layer.signature.inputs[0].name].dtype  # type: ignore[union-attr]
    assert {one.dtype for one in outputs_of(result)} == {wanted}
    case.check(result, case.expected(tensors))


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (silu_mul, ((2, 5), (2, 5))),
        (silu_mul, ((0, 3), (0, 3))),
        (rms_norm, ((2, 3, 5), (5,))),
        (rms_norm, ((2, 5), None)),
        (rms_norm, ((7,), (7,))),
    ],
)
def test_backward_is_the_gradient_of_the_reference(layer: lp.Layer, shapes: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    check_backward(layer, *(None if one is None else torch.randn(one, generator=generator) for one in shapes))


@each(CASES)
def test_backward_keeps_dtypes(case: Case) -> None:
    tensors = {name: one if one is None else one.requires_grad_() for name, one in case.tensors().items()}
    written = outputs_of(case.layer(*case.arguments(tensors)))
    generator = torch.Generator().manual_seed(2)
    gradients = [torch.randn(one.shape, generator=generator).to(one.dtype) for one in written]
    inputs = [one for one in tensors.values() if one is not None]
    got = torch.autograd.grad(written, inputs, gradients)
    wide = {name: one if one is None else one.detach().double().requires_grad_() for name, one in tensors.items()}
    answer = outputs_of(case.layer.reference(*case.arguments(wide)))
    wide_inputs = [one for one in wide.values() if one is not None]
    expected = torch.autograd.grad(answer, wide_inputs, [one.double() for one in gradients])
    for one, ours, theirs in zip(inputs, got, expected, strict=True):
        assert ours.dtype == one.dtype
        scale = max(float(theirs.abs().max()), 1.0) if theirs.numel() else 1.0
        # add_rms_norm rounds its sum, so that even a float32 weight has a gradient of 16 bits.
        coarsest = inputs[0].dtype if case.layer is add_rms_norm else one.dtype
        limit = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[coarsest]
        torch.testing.assert_close(ours.double(), theirs, rtol=limit, atol=limit * scale)


EVERY = bool(os.environ.get("LAYERPORT_TEST_FAMILIES"))


@needs_compiler
@ordered(RUN, every=EVERY)
def test_kernel_agrees_with_float64_in_any_order(case: Case, order: str | int) -> None:
    tensors = case.tensors()
    case.check(run_kernel(case.layer, *case.arguments(tensors), order=order), case.expected(tensors))


MISALIGNED = [
    case
    for case in RUN
    if case.shape.reason
    in (
        "heads of a transformer",
        "tokens of a transformer",
        "wide, the last warp half empty",
        "two blocks and a tail",
        "tanh, two blocks and a tail",
    )
]


@needs_compiler
@each(MISALIGNED)
def test_kernel_takes_misaligned_pointers(case: Case) -> None:
    tensors = case.tensors()
    case.check(run_kernel(case.layer, *case.arguments(tensors), offset=4), case.expected(tensors))


# Every pointer off by itself, so that packs have to be shifted by other amounts for each tensor.
APART = [
    {"gate": 2, "up": 6, "output": 14, "x": 14, "weight": 4, "bias": 6, "residual": 2, "total": 4, "normalised": 14},
    {"gate": 0, "up": 8, "output": 2, "x": 6, "weight": 0, "bias": 8, "residual": 0, "total": 10, "normalised": 2},
    {"gate": 10, "up": 0, "output": 0, "x": 0, "weight": 12, "bias": 0, "residual": 8, "total": 0, "normalised": 6},
]
SHIFTED = [
    case
    for case in RUN
    if case.shape.reason
    in (
        "one element",
        "less than a pack",
        "exactly one block in fp32",
        "exactly one block in 16 bits",
        "one element more than a block",
        "two blocks and a tail",
        "row of one",
        "narrow and no multiple of a pack",
        "wide and odd",
        "no weight, narrow",
        "no bias",
        "tanh, less than a pack",
        "image of a prime size",
    )
]


@needs_compiler
@pytest.mark.parametrize("number", range(len(APART)))
@each(SHIFTED)
def test_kernel_shifts_packs_of_misaligned_tensors(case: Case, number: int) -> None:
    size = {name: 4 if case.dtype_of(name) == "float32" else 2 for name in case.shape.shapes}
    size |= dict.fromkeys(case.layer.signature.output_names, size[case.layer.signature.inputs[0].name])
    offset = {name: APART[number][name] // bytes_ * bytes_ for name, bytes_ in size.items()}
    order = ("forward", "backward", 77)[number]
    tensors = case.tensors()
    sanitize = number == 0 and (case.layer not in SHARING or case.choice == "float32")
    got = run_kernel(case.layer, *case.arguments(tensors), offset=offset, order=order, sanitize=sanitize)
    case.check(got, case.expected(tensors))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [11008, 13824, 14336, 4095, 4096, 4099])
def test_silu_mul_of_one_token(width: int, dtype: torch.dtype) -> None:
    gate, up = (torch.randn(1, width, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (1, 2))
    expected = torch.nn.functional.silu(gate.double()) * up.double()
    limit = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    for offset in (0, 4):
        got = torch.from_numpy(run_kernel(silu_mul, gate, up, offset=offset).astype(np.float64))
        torch.testing.assert_close(got, expected, rtol=limit, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize(
    ("entry", "width"), [("rms_norm_narrow<float, float>", 64), ("rms_norm_wide<float, float, 4>", 640)]
)
def test_rms_norm_blocks_go_on_to_further_rows(entry: str, width: int) -> None:
    """As they do where there are more rows than a grid may have blocks."""

    def few_blocks(x: Tensor, weight: lp.Param, eps: float = 1e-6) -> Tensor:
        result: Tensor = rms_norm.reference(x, weight, eps)
        return result

    layer = lp.layer(f"builtin_tests::few_blocks_{width}")(few_blocks)

    @layer.kernel(lp.cuda(str(Path(reference.__file__).with_name("kernel.cu")), entry), dtypes=("float32",))
    def launch(x: TensorType, weight: TensorType, y: TensorType, eps: float) -> lp.Launch:
        block = (8, 32) if width == 64 else 160
        return lp.Launch(grid=2, block=block, args=(x, weight, y, x.shape[0], x.shape[1], eps))

    x, weight = (torch.randn(shape, generator=torch.Generator().manual_seed(2)) for shape in ((137, width), (width,)))
    expected = rms_norm.reference(x.double(), weight.double()).numpy()
    for order in ("forward", "backward", 4):
        assert np.allclose(run_kernel(layer, x, weight, order=order), expected, rtol=1e-5, atol=1e-6)


SANITIZED = [
    case
    for case in RUN
    if case.choice in ("bfloat16", "float32")
    and case.shape.reason in ("prime batch of narrow rows", "wide and odd", "two blocks and a tail")
]


@needs_compiler
@each(SANITIZED)
def test_kernel_is_clean_under_the_address_sanitiser(case: Case) -> None:
    tensors = case.tensors()
    case.check(run_kernel(case.layer, *case.arguments(tensors), sanitize=True), case.expected(tensors))


@pytest.mark.parametrize("layer_case", LAYER_CASES, ids=lambda layer_case: layer_case.layer.short_name)
def test_cases_reach_every_kernel_in_every_dtype(layer_case: LayerCase) -> None:
    reached = {
        (kernel_for(case.layer, *case.arguments(case.tensors())), str(case.choice)) for case in layer_case.cases()
    }
    assert reached == {
        (kernel.name, str(choice)) for kernel in layer_case.layer.kernels for choice in layer_case.dtypes
    }


SMALL = [
    case
    for case in CASES
    if case.choice == "float32" and case.shape.reason in ("heads of a transformer", "no weight, narrow", "prime batch")
]


@each(SMALL)
def test_operator_passes_opcheck(case: Case) -> None:
    arguments = tuple(
        value.requires_grad_() if isinstance(value, torch.Tensor) else value for value in case.arguments(case.tensors())
    )
    torch.library.opcheck(case.layer.operator, arguments)


@pytest.mark.parametrize("layer_case", LAYER_CASES, ids=lambda layer_case: layer_case.layer.short_name)
def test_gradients_of_first_and_second_order(layer_case: LayerCase) -> None:
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    shapes = {
        "rms_norm": ((3, 5), (5,)),
        "layer_norm": ((3, 5), (5,), (5,)),
        "add_rms_norm": ((3, 5), (3, 5), (5,)),
        "rope": ((2, 1, 3, 5), (1, 3, 4), (1, 3, 4)),
        "circular_pad": ((3, 5),),
    }.get(layer_case.layer.short_name, ((3, 5), (3, 5)))
    inputs: tuple[Any, ...] = tuple(draw(*shape) for shape in shapes)
    if layer_case is CIRCULAR_PAD:
        inputs += ([1, 6, 0, 2],)
    assert torch.autograd.gradcheck(layer_case.layer, inputs)
    assert torch.autograd.gradgradcheck(layer_case.layer, inputs)


def test_rms_norm_refuses_a_weight_of_another_width() -> None:
    with pytest.raises(ValueError, match=r"rms_norm: shapes do not fit: x \[2, 8\] and weight \[1\]"):
        rms_norm(torch.ones(2, 8), torch.ones(1))


def test_rms_norm_refuses_a_scalar() -> None:
    with pytest.raises(ValueError, match=r"rms_norm: shapes do not fit: x \[\]"):
        rms_norm(torch.tensor(1.0))


def test_silu_mul_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match=r"gate is torch.float32 \[2, 8\], up is torch.float32 \[8\]"):
        silu_mul(torch.ones(2, 8), torch.ones(8))


def test_silu_mul_refuses_two_dtypes() -> None:
    with pytest.raises(ValueError, match=r"gate is torch.float32 \[8\], up is torch.float16 \[8\]"):
        silu_mul(torch.ones(8), torch.ones(8, dtype=torch.float16))


@pytest.mark.parametrize(
    "shapes",
    [
        ((3, 8), (3, 8), (3, 8)),
        ((2, 3, 8), (2, 2, 8), (2, 2, 8)),
        ((2, 2, 3, 8), (2, 3, 3, 8), (2, 3, 3, 8)),
        ((2, 3, 8), (1, 2, 3, 8), (1, 2, 3, 8)),
        ((2, 2, 3, 8), (), ()),
        ((2, 2, 3, 8), (2, 3, 7), (2, 3, 7)),
        ((2, 2, 3, 8), (2, 3, 10), (2, 3, 10)),
        ((2, 2, 3, 8), (3, 3, 8), (3, 3, 8)),
        ((2, 2, 3, 8), (2, 2, 8), (2, 2, 8)),
        ((2, 2, 3, 8), (2, 3, 8), (1, 3, 8)),
    ],
)
def test_rope_refuses_tables_that_do_not_fit(shapes: Any) -> None:
    with pytest.raises(ValueError, match="rope: shapes do not fit: x "):
        rope(*(torch.ones(shape) for shape in shapes))


def test_output_rules_follow_from_anonymous_dims() -> None:
    """Also where nothing says beforehand that gate and up have the same dims."""
    free = {name: port(name, "bfloat16", (None, None, None)) for name in ("gate", "up")}
    derivation = derive(silu_mul.reference, free, {}, layer=silu_mul.name)
    assert [rule.form for rule in derivation.outputs] == ["bfloat16[gate.0, gate.1, gate.2]"]
    assert derivation.fixed == {}
    tensors = {"x": port("x", "float16", (None, None, 64)), "weight": port("weight", "float16", (64,))}
    derivation = derive(rms_norm.reference, tensors, {"eps": 1e-6}, layer=rms_norm.name)
    assert [rule.form for rule in derivation.outputs] == ["float16[x.0, x.1, 64]"]
    assert (derivation.fixed, derivation.constraints) == ({}, ())


@pytest.mark.skipif(not has_disassembler(), reason="no cuobjdump on PATH or in Triton's wheel")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_120"])
def test_kernels_do_not_spill_and_move_16_bytes_at_once(architecture: str) -> None:
    entries = compiled([case.layer for case in LAYER_CASES], (architecture,), every=EVERY)
    assert {entry["layer"] for entry in entries} == {case.layer.name for case in LAYER_CASES}
    # More than the aligned path has: the last block and misaligned tensors move packs too.
    least = {rms_norm.name: (17, 6), LAYER_NORM.layer.name: (27, 6), add_rms_norm.name: (29, 12), rope.name: (9, 5)}
    least |= {circular_pad.name: (2, 2)}
    for entry in entries:
        figures = entry["architectures"][architecture]
        assert figures["local_bytes"] == 0, entry
        loads, stores = least.get(entry["kernel"], least.get(entry["layer"], (10, 4)))
        assert figures["loads_of_16_bytes"] >= loads and figures["stores_of_16_bytes"] >= stores, entry
