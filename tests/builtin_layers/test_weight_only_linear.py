"""Linear layers of quantised weights: the buffers of GPTQ and AWQ in whole models, the packing, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import layerport as lp
from layerport.errors import UsageError
from layerport.testing import run_kernel
from layerport_builtin_layers import plugin
from layerport_builtin_layers.weight_only_linear import weight_only_linear
from layerport_builtin_layers.weight_only_linear.convert import packed
from small_setup import ENGINE

EVERY = bool(os.environ.get("LAYERPORT_TEST_FAMILIES"))
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")


def words(codes: Tensor, bits: int) -> Tensor:
    """Neighbouring codes along the last axis in words of 32 bits, the first in the lowest bits."""
    each = codes.long().unflatten(-1, (-1, 32 // bits)) << torch.arange(0, 32, bits)
    total = each.sum(-1)
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


class Quantised(nn.Module):
    """A linear layer as its checkpoint has it, computed from its buffers.  form: "gptq" with `off` 1 or 0, or "awq"."""

    def __init__(
        self, k: int, n: int, groups: int, *, form: str, bits: int = 4, off: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        self.form, self.width, self.off, self.groups = form, bits, off, groups
        codes, zeros = torch.randint(0, 2**bits, (k, n)), torch.randint(off, 2**bits + off * (bits == 4), (groups, n))
        self.register_buffer("scales", torch.rand(groups, n) * 0.1 / 2 ** (bits - 4) + 1e-3)
        if form == "gptq":
            self.register_buffer("qweight", words(codes.T, bits).T.contiguous())
            self.register_buffer("qzeros", words(zeros - off, bits))
        else:
            order = [0, 2, 4, 6, 1, 3, 5, 7]
            for name, one in (("qweight", codes), ("qzeros", zeros)):
                self.register_buffer(name, words(one.unflatten(1, (-1, 8))[..., order].flatten(1), 4))
        self.bias = nn.Parameter(torch.randn(n)) if bias else None

    def taken_apart(self, held: Tensor) -> Tensor:
        shifts = torch.arange(0, 32, self.width, dtype=torch.int32)
        codes = (held.unsqueeze(-1) >> shifts) & (2**self.width - 1)
        if self.form == "awq":
            codes = codes[..., [0, 4, 1, 5, 2, 6, 3, 7]]
        return codes.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        codes = self.taken_apart(self.qweight.T).T if self.form == "gptq" else self.taken_apart(self.qweight)
        zeros = self.taken_apart(self.qzeros) + self.off
        repeats = codes.shape[0] // self.groups
        weight = (codes - zeros.repeat_interleave(repeats, 0)) * self.scales.repeat_interleave(repeats, 0)
        result = x @ weight
        return result if self.bias is None else result + self.bias


FORMS: dict[str, dict[str, Any]] = {
    "GPTQ": {"form": "gptq", "off": 1},
    "GPTQ, second format": {"form": "gptq", "off": 0},
    "GPTQ, bytes": {"form": "gptq", "off": 1, "bits": 8, "bias": False},
    "AWQ": {"form": "awq"},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_buffers_of_a_checkpoint_are_read(form: str) -> None:
    torch.manual_seed(0)
    module = Quantised(48, 16, 3, **FORMS[form])
    answers = plugin.layerport_export_parameters(module=module, name="it")
    x = torch.randn(5, 48)
    expected = module(x)
    near = []
    for one in answers:
        values = {name: torch.from_numpy(np.array(array)) for name, array in one.parameters.items()}
        got = weight_only_linear(x, **values, **one.parameters.attributes)
        near.append(torch.allclose(got, expected, rtol=1e-4, atol=1e-4))
    assert near.count(True) == 1 and near.count(False) == len(answers) - 1


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16] if EVERY else [torch.float16])
def test_a_model_of_them_builds_as_it_is(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        Quantised(32, 32, 4 if place % 2 else 1, **form) for place, form in enumerate(FORMS.values())
    ]
    codes, zeros = torch.randint(0, 16, (2, 5, 32), dtype=torch.uint8)
    layers.append(
        weight_only_linear.module(codes=codes, scales=torch.rand(5, 4, dtype=dtype) * 0.1, zeros=zeros[:, :4])
    )
    model = nn.Sequential(*[part for one in layers for part in (one, nn.Tanh())]).to(dtype).eval()
    shapes = ({0: Dim("rows", min=1, max=32)},)
    report = lp.build((model, (torch.randn(3, 32).to(dtype),), shapes), tmp_path / "a.lp", target=ENGINE)
    assert report.counts == {weight_only_linear.name: {"plugin": 5}}
    assert report.verification is not None and report.verification.passed
    assert {one.answer for one in report.verification.kernels} == {"right"}
    assert len(report.verification.kernels) == 14  # two of each plugin, four of those with one group, of 32 codes
    (origin,) = [one for one in report.layers[-1].origins if one.name == "codes"]
    assert origin.shape == (5, 32) and origin.steps[-1].shape == (5, 16)
    assert origin.steps[-1].action == "layerport_convert_parameters"
    limit = 1e-4 if dtype == torch.float32 else 3e-2
    for rows in (1, 9, 20):
        x = torch.randn(rows, 32).to(dtype)
        with lp.load(tmp_path / "a.lp") as session:
            (got,) = session(input=x).values()
        torch.testing.assert_close(
            torch.as_tensor(np.asarray(got, "float32")), model(x).float(), rtol=limit, atol=limit
        )


def test_codes_are_packed_two_in_a_byte_and_rows_start_at_whole_loads() -> None:
    codes = torch.arange(10, dtype=torch.uint8).reshape(2, 5)
    bound = weight_only_linear.bind(codes=codes, scales=torch.ones(2, 1))
    result = packed(bound.parameters)["codes"]
    assert result.dtype == np.uint8 and result.shape == (2, 16)
    assert result[:, :3].tolist() == [[0x10, 0x32, 0x04], [0x65, 0x87, 0x09]] and not result[:, 3:].any()
    bound = weight_only_linear.bind(codes=codes + 200, scales=torch.ones(2, 1), bits=8)
    result = packed(bound.parameters)["codes"]
    assert result.shape == (2, 16) and np.array_equal(result[:, :5], codes.numpy() + 200)


def test_codes_of_more_bits_than_they_say_are_refused() -> None:
    bound = weight_only_linear.bind(codes=torch.full((2, 4), 16, dtype=torch.uint8), scales=torch.ones(2, 1))
    with pytest.raises(UsageError, match="8 of 64 values are beyond uint4"):
        plugin.layerport_convert_parameters(weight_only_linear, bound.parameters)


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2])
def test_every_byte_is_a_code_and_what_is_not_finite_stays_in_its_row(rows: int) -> None:
    codes = torch.arange(256, dtype=torch.uint8).reshape(1, 256)
    x, zeros = torch.ones(rows, 256), torch.full((1, 1), 255, dtype=torch.uint8)
    x[0, 7] = float("inf")
    got = run_kernel(weight_only_linear, x, codes, torch.full((1, 1), 0.5), zeros, None, 8)
    assert got[0] == -float("inf") and (got[1:] == 0.5 * (255 * 128 - 255 * 256)).all()


TENSOR = ("weight_only_tensor_16", "weight_only_tensor_64")


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_tensor_cores_see_every_code_with_every_zero_point_exactly(bits: int, dtype: torch.dtype) -> None:
    """Rows of one 1 each take single weights out; scales of powers of two leave them what they are."""
    k, width = 64, 37
    drawn = torch.Generator().manual_seed(bits)
    codes = (torch.arange(width * k).reshape(width, k) * 7 % 2**bits).to(torch.uint8)
    zeros = torch.tensor([0, 1, 8, 15, 16, 127, 128, 129, 254, 255], dtype=torch.uint8)
    zeros = zeros[torch.randint(0, 10, (width, 2), generator=drawn)]
    scales = torch.tensor([0.25, 1.0, 4.0], dtype=dtype)[torch.randint(0, 3, (width, 2), generator=drawn)]
    x = torch.eye(k, dtype=dtype)
    expected = weight_only_linear(x, codes, scales, zeros, None, bits)
    assert expected.unique().numel() > 2**bits / 2
    for kernel, rows in ((TENSOR[0], 16), (TENSOR[1], k)):
        got = run_kernel(weight_only_linear, x[-rows:], codes, scales, zeros, None, bits, kernel=kernel)
        assert torch.equal(torch.from_numpy(got.astype(np.float32)), expected[-rows:].float())


@needs_compiler
def test_what_is_not_finite_stays_in_its_row_on_tensor_cores() -> None:
    x, codes = torch.ones(20, 64, dtype=torch.float16), torch.full((5, 64), 9, dtype=torch.uint8)
    x[3, 7], x[17, 40] = float("inf"), float("nan")
    got = run_kernel(weight_only_linear, x, codes, torch.ones(5, 2, dtype=torch.float16), kernel=TENSOR[1])
    assert (got[3] == float("inf")).all() and np.isnan(got[17]).all()
    assert (np.delete(got, [3, 17], 0) == 64).all()


@pytest.mark.parametrize(
    ("rows", "groups", "dtype", "kernel"),
    [
        (1, 3, torch.float16, "weight_only_linear_row"),
        (8, 3, torch.float16, "weight_only_linear_rows"),
        (9, 3, torch.float16, TENSOR[0]),
        (16, 1, torch.bfloat16, TENSOR[0]),
        (17, 3, torch.bfloat16, TENSOR[1]),
        (300, 3, torch.float16, TENSOR[1]),
        (300, 3, torch.float32, "weight_only_linear_rows"),
        (300, 6, torch.float16, "weight_only_linear_rows"),  # groups of 16
    ],
)
def test_which_kernel_takes_how_many_rows(rows: int, groups: int, dtype: torch.dtype, kernel: str) -> None:
    x, codes = torch.empty(rows, 96, dtype=dtype), torch.zeros(4, 96, dtype=torch.uint8)
    said = lp.explain_dispatch(weight_only_linear, x, codes, torch.ones(4, groups, dtype=dtype))
    assert f"on a GPU it would be kernel {kernel}" in said.reasons[0]


class Words(nn.Module):
    """By its buffers alone."""

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)


LIKE_GPTQ = {
    "qweight": torch.zeros(4, 8, dtype=torch.int32),
    "qzeros": torch.zeros(2, 1, dtype=torch.int32),
    "scales": torch.ones(2, 8),
}


def test_what_only_looks_quantised_is_left_alone() -> None:
    def answer(**changed: Tensor) -> Any:
        return plugin.layerport_export_parameters(module=Words(**(LIKE_GPTQ | changed)), name="it")

    assert len(answer()) == 2
    in_order = torch.arange(32) // 16
    assert len(answer(g_idx=in_order)) == 2
    for changed in (
        {"g_idx": in_order.flip(0)},  # sorted by activation
        {"qweight": torch.zeros(4, 8)},
        {"qweight": torch.zeros(4, 7, dtype=torch.int32)},
        {"qzeros": torch.zeros(1, 1, dtype=torch.int32)},
        {"qzeros": torch.zeros(2, 3, dtype=torch.int32)},
        {"qzeros": torch.zeros(2, 8, dtype=torch.int32)},
        {"scales": torch.ones(2, 8, dtype=torch.int32)},
        {"scales": torch.ones(3, 8), "qzeros": torch.zeros(3, 1, dtype=torch.int32)},
    ):
        assert answer(**changed) is None, changed
    assert plugin.layerport_export_parameters(module=nn.Conv1d(2, 2, 1), name="it") is None


X, CODES, SCALES = torch.ones(5, 12), torch.ones(4, 12, dtype=torch.uint8), torch.ones(4, 3)
SHAPES, DTYPES = "weight_only_linear: shapes do not fit: x ", "weight_only_linear: dtypes do not fit: x "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0, 0], CODES, SCALES), SHAPES),
        ((X[:, :11], CODES, SCALES), SHAPES),
        ((X, CODES[0], SCALES), SHAPES),
        ((X, CODES, SCALES[0]), SHAPES),
        ((X, CODES, SCALES[:3]), SHAPES),
        ((X, CODES, torch.ones(4, 5)), SHAPES),
        ((X, CODES, SCALES[:, :0]), SHAPES),
        ((X, CODES, SCALES, CODES[:, :2]), SHAPES),
        ((X, CODES, SCALES, None, torch.ones(3)), SHAPES),
        ((X[:, :0], CODES[:, :0], SCALES), SHAPES),
        ((X.long(), CODES, SCALES), DTYPES),
        ((X, CODES.int(), SCALES), DTYPES),
        ((X, CODES, SCALES.half()), DTYPES),
        ((X, CODES, SCALES, CODES[:, :3].int()), DTYPES),
        ((X.half(), CODES, SCALES, None, torch.ones(4)), DTYPES),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weight_only_linear(*arguments)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(48, 64), nn.Linear(64, 48, bias=False), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(x + self.down(torch.relu(self.up(x))))
        return result


@needs_compiler
def test_linear_layers_are_quantised_where_the_user_names_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = (Mlp().half().eval(), (torch.randn(3, 48).half(),), ({0: Dim("rows", min=1, max=32)},))
    wishes = {weight_only_linear.name: {"*": 1.0, "down": 0.1, "head": 0}}
    report = lp.build(source, tmp_path / "a.lp", target=ENGINE, lossy=wishes)
    assert report.counts == {weight_only_linear.name: {"plugin": 2}}
    assert {one.module: one.bound for one in report.claims} == {"up": 0.6, "down": 0.04}
    errors = {one.module: one.max_relative_error or 0.0 for one in report.claims}
    assert 0.02 < errors["up"] < 0.6 and 1e-3 < errors["down"] < 0.04
    (loss,) = report.losses.values()
    assert 0.01 < loss.error < 0.6
    assert report.verification is not None and report.verification.passed
    assert {one.answer for one in report.verification.kernels} == {"right"}
    assert (
        max(one.max_error or 0.0 for one in report.verification.kernels) < 5e-3
    )  # of the layer itself nothing is lost


def test_a_linear_layer_is_met_at_both_ends_of_each_group_and_at_zero() -> None:
    torch.manual_seed(0)
    for size, groups in ((128, 2), (48, 3), (10, 1)):
        module = nn.Linear(size, 4)
        with torch.no_grad():
            module.weight[0] = 0.5  # without 0 between its ends
            module.weight[1] = 0.0
        for offer, bits in zip(plugin.layerport_export_parameters(module=module, name="it"), (4, 8), strict=True):
            bound = offer.make()
            values = {name: torch.from_numpy(np.array(array)) for name, array in bound.parameters.items()}
            assert values["scales"].shape == (4, groups) and bound.parameters.attributes["bits"] == bits
            weight = weight_only_linear(torch.eye(size), **(values | {"bias": None}), bits=bits).T
            gap = (weight - module.weight).abs().unflatten(1, (groups, -1)).amax(-1)
            assert (gap <= values["scales"] * 0.51).all()
            torch.testing.assert_close(weight[:2], module.weight[:2])
