"""What the built-in layers refuse, and that NaN and infinity go where the reference lets them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import layerport as lp
import layerport_builtin_layers
from layerport.testing import run_kernel
from layerport_builtin_layers.add_layer_norm import add_layer_norm
from layerport_builtin_layers.add_rms_norm import add_rms_norm
from layerport_builtin_layers.circular_pad import circular_pad
from layerport_builtin_layers.gated_rms_norm import gated_rms_norm
from layerport_builtin_layers.gelu_mul import gelu_mul
from layerport_builtin_layers.group_norm_silu import group_norm_silu
from layerport_builtin_layers.layer_norm import layer_norm
from layerport_builtin_layers.nms import nms
from layerport_builtin_layers.packed_gate_mul import packed_gate_mul
from layerport_builtin_layers.rms_norm import rms_norm
from layerport_builtin_layers.rope import rope
from layerport_builtin_layers.silu_mul import silu_mul

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")


@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        (layer_norm, (torch.ones(2, 8), torch.ones(1)), r"layer_norm: shapes do not fit: x \[2, 8\] and weight \[1\]"),
        (layer_norm, (torch.ones(2, 8), None, torch.ones(2)), r"x \[2, 8\] and bias \[2\]; give x: \(\.\.\., C\)"),
        (layer_norm, (torch.tensor(1.0),), r"layer_norm: shapes do not fit: x \[\]"),
        (add_rms_norm, (torch.ones(2, 8), torch.ones(8)), r"x is torch.float32 \[2, 8\], residual is .* \[8\]"),
        (add_rms_norm, (torch.ones(8), torch.ones(8).half()), r"residual is torch.float16 \[8\]; give both the same"),
        (add_rms_norm, (torch.ones(8), torch.ones(8), torch.ones(4)), r"x \[8\] and weight \[4\]"),
        (add_rms_norm, (torch.tensor(1.0), torch.tensor(1.0)), r"add_rms_norm: shapes do not fit: x \[\]"),
        (gelu_mul, (torch.ones(2, 8), torch.ones(8)), r"gate is torch.float32 \[2, 8\], up is torch.float32 \[8\]"),
        (gelu_mul, (torch.ones(8), torch.ones(8).half()), r"up is torch.float16 \[8\]; give both the same"),
        (circular_pad, (torch.ones(8), [1, 1, 1, 1]), r"circular_pad: x is \[8\], pads are \[1, 1, 1, 1\]; give x"),
        (
            circular_pad,
            (torch.ones(2, 8), [1, 1]),
            r"pads are \[1, 1\]; give x: .* and left, right, top, bottom from 0",
        ),
        (circular_pad, (torch.ones(2, 8), [1, 1, -1, 1]), r"pads are \[1, 1, -1, 1\]"),
        (circular_pad, (torch.ones(0, 8), [0, 0, 1, 0]), r"circular_pad: x is \[0, 8\], which has nothing to continue"),
        (circular_pad, (torch.ones(8, 0), [0, 1, 0, 0]), r"circular_pad: x is \[8, 0\], which has nothing to continue"),
    ],
)
def test_what_does_not_fit_is_refused(layer: lp.Layer, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(*arguments)


WHOLE, ROWS = torch.ones(2, 4, 8, dtype=torch.int64), torch.ones(2, 4, 8)


@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        (rms_norm, (WHOLE,), "rms_norm: x is torch.int64; give x in a floating-point dtype"),
        (rms_norm, (ROWS.to(torch.complex64),), "rms_norm: x is torch.complex64"),
        (rms_norm, (WHOLE, WHOLE[0, 0]), "x is torch.int64, weight is torch.int64; give x, weight in"),
        (layer_norm, (ROWS, None, ROWS[0, 0].bool()), "layer_norm: bias is torch.bool"),
        (add_rms_norm, (WHOLE, WHOLE), "add_rms_norm: x is torch.int64, residual is torch.int64"),
        (add_layer_norm, (WHOLE, WHOLE), "add_layer_norm: x is torch.int64, residual is torch.int64"),
        (silu_mul, (WHOLE, WHOLE), "silu_mul: gate is torch.int64, up is torch.int64"),
        (gelu_mul, (WHOLE, WHOLE), "gelu_mul: gate is torch.int64, up is torch.int64"),
        (packed_gate_mul, (WHOLE,), "packed_gate_mul: x is torch.int64"),
        (rope, (ROWS, WHOLE[:, 0, None], WHOLE[:, 0, None]), "rope: cos is torch.int64, sin is torch.int64"),
        (group_norm_silu, (WHOLE, 2, ROWS[0, :, 0], ROWS[0, :, 0]), "group_norm_silu: x is torch.int64"),
        (gated_rms_norm, (WHOLE, WHOLE), "gated_rms_norm: x is torch.int64, gate is torch.int64"),
        *(
            (layer, (*tensors, eps), f"{layer.short_name}: eps is {eps}; give a finite number from 0")
            for eps in (-1e-6, float("inf"), float("nan"))
            for layer, tensors in (
                (rms_norm, (ROWS, None)),
                (layer_norm, (ROWS, None, None)),
                (add_rms_norm, (ROWS, ROWS, None)),
                (add_layer_norm, (ROWS, ROWS, None, None)),
                (group_norm_silu, (ROWS, 2, ROWS[0, :, 0], ROWS[0, :, 0])),
                (gated_rms_norm, (ROWS, ROWS, None)),
            )
        ),
        (nms, (ROWS[0, :, :4], ROWS[0, :, 0], None, float("nan")), "nms: iou_threshold is nan; give a number"),
    ],
)
def test_numbers_of_another_kind_are_refused(layer: lp.Layer, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(*arguments)


UNUSUAL = (float("nan"), float("inf"), -float("inf"))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layer", [rms_norm, layer_norm, add_rms_norm], ids=lambda layer: layer.short_name)
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(layer: lp.Layer, dtype: torch.dtype) -> None:
    x = torch.randn(5, 67, generator=torch.Generator().manual_seed(4)).to(dtype)
    x[[0, 2, 3], [0, 66, 30]] = torch.tensor(UNUSUAL).to(dtype)
    more = (torch.ones_like(x),) if layer is add_rms_norm else ()
    expected, got = layer(x, *more), run_kernel(layer, x, *more)
    for ours, theirs in zip(*((one,) if not isinstance(one, tuple) else one for one in (got, expected)), strict=True):
        values = torch.from_numpy(ours.astype("float64"))
        assert torch.equal(values.isnan(), theirs.isnan()) and theirs[1].isfinite().all()
        torch.testing.assert_close(values, theirs.double(), rtol=8e-3, atol=1e-5, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("layer", "attributes"), [(silu_mul, ()), (gelu_mul, ("none",)), (gelu_mul, ("tanh",))], ids=["silu", "erf", "tanh"]
)
def test_gates_that_are_not_finite(layer: lp.Layer, attributes: tuple[str, ...], dtype: torch.dtype) -> None:
    values = torch.tensor((*UNUSUAL, 0.0, -0.0, 30.0, -30.0, 6e4, -6e4)).to(dtype)
    gate, up = (one.reshape(-1).contiguous() for one in torch.meshgrid(values, values, indexing="ij"))
    expected = layer.reference(gate.double(), up.double(), *attributes)
    got = torch.from_numpy(run_kernel(layer, gate, up, *attributes).astype("float64"))
    # 6e4 * 6e4 is an infinity in float16, which float64 does not know.
    torch.testing.assert_close(got, expected.to(dtype).double(), rtol=8e-3, atol=1e-6, equal_nan=True)


def test_gelu_mul_knows_two_forms() -> None:
    with pytest.raises(lp.UsageError, match=r"approximate: expected str one of 'none', 'tanh', got str 'fast'"):
        gelu_mul(torch.ones(8), torch.ones(8), "fast")


@needs_compiler
def test_other_packs_include_the_shared_header() -> None:
    source = """
#include <layerport_kernels.h>
using namespace layerport;

template <typename T>
__global__ void negate(const T* x, T* y, int count) {
    const int index = static_cast<int>(threadIdx.x) * (16 / static_cast<int>(sizeof(T)));
    Pack<T> pack = load_at<true>(x, index, count);
    for (auto& item : pack.items) item = from_float<T>(-to_float(item));
    if (index < count) store_anywhere(y, index, count, pack);
}
"""
    assert Path(layerport_builtin_layers.INCLUDE, "layerport_kernels.h").is_file()

    @lp.layer("builtin_tests::negate")
    def negate(x: torch.Tensor) -> torch.Tensor:
        return -x

    @negate.kernel(
        lp.cuda(source, "negate<{x}>", include=(layerport_builtin_layers.INCLUDE,)), dtypes=("float32", "bfloat16")
    )
    def launch(x: lp.TensorType, y: lp.TensorType) -> lp.Launch:
        return lp.Launch(grid=1, block=32, args=(x, y, x.numel()))

    for dtype in (torch.float32, torch.bfloat16):
        x = torch.arange(19).to(dtype)
        for offset in (0, 4):
            got = run_kernel(negate, x, offset=offset).astype("float64")
            assert (got == -torch.arange(19).double().numpy()).all()
