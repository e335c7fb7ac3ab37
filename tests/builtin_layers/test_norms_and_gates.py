"""The later norms and gates: claimed or found in models as people write them, in one plan, and what is refused."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

import layerport as lp
from layerport.testing import check_spellings, kernel_for, run_kernel
from layerport_builtin_layers import plugin
from layerport_builtin_layers.add_layer_norm import add_layer_norm
from layerport_builtin_layers.gated_rms_norm import gated_rms_norm
from layerport_builtin_layers.gelu_mul import gelu_mul
from layerport_builtin_layers.group_norm_silu import group_norm_silu
from layerport_builtin_layers.group_norm_silu import reference as of_group_norm
from layerport_builtin_layers.packed_gate_mul import packed_gate_mul
from layerport_builtin_layers.silu_mul import silu_mul
from searched import search_in
from small_setup import ENGINE

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")


class ResnetBlock(nn.Module):
    """As a UNet of diffusers has it, with the step's embedding added in between."""

    def __init__(self, groups: int, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, before, eps=1e-6), nn.GroupNorm(groups, after, eps=1e-5)
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        self.shortcut, self.time = nn.Conv2d(before, after, 1), nn.Linear(8, after)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = hidden + self.time(functional.silu(time))[:, :, None, None]
        result: Tensor = self.shortcut(x) + self.conv2(nn.SiLU()(self.norm2(hidden)))
        return result


class Unet(nn.Module):
    """Two blocks, of odd groups too, and a gated MLP over the pixels between them."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = ResnetBlock(3, 6, 15), ResnetBlock(5, 15, 10)
        self.norm, self.widen, self.narrow = nn.LayerNorm(15), nn.Linear(15, 48), nn.Linear(24, 15)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.down(x, time)
        pixels = x.flatten(2).mT
        value, gate = self.widen(self.norm(pixels + pixels.sin())).chunk(2, -1)
        x = x + self.narrow(value * functional.gelu(gate)).mT.unflatten(2, x.shape[2:])
        result: Tensor = self.up(x, time)
        return result


@needs_compiler
def test_a_unet_builds_with_its_norms_and_gates_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Unet().half().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    args = (torch.randn(2, 6, 4, 5).half(), torch.randn(2, 8).half())
    batch, width = Dim("batch", min=1, max=4), Dim("width", min=2, max=16)
    shapes = ({0: batch, 3: width}, {0: batch})
    find = [group_norm_silu.name]
    report = lp.build((model, args, shapes), tmp_path / "a.lp", target=ENGINE, find=find)
    assert report.counts == {group_norm_silu.name: {"plugin": 4}, packed_gate_mul.name: {"plugin": 1}}
    places = sorted((one.attributes.get("groups", 0), one.layer) for one in report.found)
    assert [groups for groups, _ in places] == [0, 3, 3, 5, 5]
    (gate,) = [one for one in report.found if one.layer == packed_gate_mul.name]
    assert gate.attributes == {"activation": "gelu", "gate_last": True}
    assert report.verification is not None and report.verification.passed
    assert {(one.kernel, one.answer) for one in report.verification.kernels} == {
        ("group_norm_silu", "right"),
        ("packed_gelu_mul", "right"),
        ("group_norm_silu_pieces", "not run"),  # no group is large enough
    }
    other = (torch.randn(1, 6, 4, 9).half(), torch.randn(1, 8).half())
    with lp.load(tmp_path / "a.lp") as session:
        (got,) = session(x=other[0], time=other[1]).values()
    torch.testing.assert_close(torch.from_numpy(got), model(*other), rtol=2e-2, atol=2e-2)


WIDTH = 12
X, Y, W = torch.randn(2, 3, WIDTH), torch.randn(2, 3, WIDTH), torch.rand(WIDTH) + 0.5


def found(model: Any, *layers: lp.Layer, asked: bool = False, inputs: tuple[Tensor, ...] = (X, Y)) -> list[Any]:
    findings, _ = search_in(model, inputs, layers, asked=[layer.name for layer in layers if asked])
    return [(one.layer.partition("::")[2], dict(one.attributes)) for one in findings.places]


def test_a_group_norm_of_frames_is_found() -> None:
    """In a video each frame is an image: the norm sees axes that were moved and merged."""
    video, weight, bias = torch.randn(2, 8, 3, 4, 5), nn.Parameter(torch.rand(8)), nn.Parameter(torch.randn(8))

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = weight, bias

        def forward(self, x: Tensor) -> Tensor:
            frames = x.transpose(1, 2).flatten(0, 1)
            return functional.silu(functional.group_norm(frames, 4, self.weight, self.bias))

    expected = [("group_norm_silu", {"groups": 4, "eps": 1e-5})]
    assert found(Frames(), group_norm_silu, asked=True, inputs=(video,)) == expected


GATES = {
    "Phi3": (lambda x, _: x.chunk(2, -1)[1] * functional.silu(x.chunk(2, -1)[0]), {"activation": "silu"}),
    "slices": (lambda x, _: functional.silu(x[..., :6]) * x[..., 6:], {"activation": "silu"}),
    "GEGLU": (lambda x, _: x.chunk(2, -1)[0] * functional.gelu(x.chunk(2, -1)[1]), {"activation": "gelu"}),
    "split": (lambda x, _: functional.gelu(x.split(6, -1)[0]) * x.split(6, -1)[1], {"activation": "gelu"}),
    "tanh": (
        lambda x, _: functional.gelu(x.chunk(2, -1)[0], approximate="tanh") * x.chunk(2, -1)[1],
        {"activation": "gelu_tanh"},
    ),
}


@pytest.mark.parametrize("case", GATES)
def test_a_gate_in_one_tensor_is_found_as_that(case: str) -> None:
    gate, attributes = GATES[case]
    wanted = attributes | {"gate_last": case == "GEGLU"}
    assert found(gate, silu_mul, gelu_mul, packed_gate_mul) == [("packed_gate_mul", wanted)]


OTHERS = {
    "two tensors": lambda x, y: functional.silu(x) * y,
    "halves of another axis": lambda x, _: functional.silu(x.transpose(0, 2)[:6]) * x.transpose(0, 2)[6:],
    "unlike parts": lambda x, _: functional.silu(x[..., :4]) * x[..., 4:8],
    "one half twice": lambda x, _: functional.silu(x[..., :6]) * x[..., :6],
}


@pytest.mark.parametrize("case", OTHERS)
def test_no_packed_gate_is_found_where_none_is(case: str) -> None:
    assert found(OTHERS[case], packed_gate_mul) == []


def test_the_spelling_of_a_packed_gate_is_the_gate() -> None:
    for activation in ("silu", "gelu", "gelu_tanh"):
        for gate_last in (False, True):
            check_spellings(packed_gate_mul, X, activation, gate_last)


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return self.norm(total), total * 2


def test_a_sum_and_its_norm_are_found_where_they_are_asked_for() -> None:
    assert found(Added().eval(), add_layer_norm, asked=True) == [("add_layer_norm", {"eps": 1e-6})]
    assert found(Added().eval(), add_layer_norm) == []


def test_gated_norms_of_transformers_are_claimed_and_only_the_right_form_agrees() -> None:
    from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

    generator = torch.Generator().manual_seed(1)
    x, gate = torch.randn(2, 5, 24, generator=generator), torch.randn(2, 5, 24, generator=generator)
    forms = (
        (MambaRMSNormGated(24, 8, eps=1e-5), {"groups": 3, "gate_first": True, "eps": 1e-5}),
        (MambaRMSNormGated(24, 24), {"groups": 1, "gate_first": True, "eps": 1e-6}),
        (Qwen3NextRMSNormGated(24), {"groups": 1, "gate_first": False, "eps": 1e-6}),
    )
    for module, wanted in forms:
        with torch.no_grad():
            module.weight.copy_(torch.rand(24, generator=generator) + 0.5)
        answers = plugin.layerport_export_parameters(module=module, name="it")
        near = [
            one
            for one in answers
            if torch.allclose(gated_rms_norm(x, gate, module.weight, **one.parameters.attributes), module(x, gate))
        ]
        assert [dict(one.parameters.attributes) for one in near] == [wanted]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

        self.norm = MambaRMSNormGated(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x, x.sin())
        return result


def test_a_gated_norm_is_claimed_as_a_whole(tmp_path: Path) -> None:
    report = lp.build((Gated().eval(), (torch.randn(2, 24),)), tmp_path / "a.lp", target="portable")
    assert Counter(one.layer for one in report.layers) == {gated_rms_norm.name: 1}
    assert report.verification is not None and report.verification.passed


@needs_compiler
@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize(
    ("shape", "kernel", "offset"),
    [
        ((3, 512), "lanes", 0),
        ((3, 520), "block", 0),
        ((1, 8200), "block", 0),  # more than a block keeps
        ((2, 520), "block", {"x": 2, "gate": 6, "weight": 4, "output": 10}),
        ((5, 72), "lanes", {"x": 0, "gate": 0, "weight": 2, "output": 0}),
    ],
)
def test_gated_rows_in_registers_and_out_of_them(
    shape: tuple[int, ...], kernel: str, offset: Any, gate_first: bool
) -> None:
    generator = torch.Generator().manual_seed(5)
    x, gate = torch.randn(shape, generator=generator).half(), torch.randn(shape, generator=generator).half()
    weight = (torch.rand(shape[-1], generator=generator) + 0.5).half()
    arguments = (x, gate, weight, 1e-5, 1, gate_first)
    assert kernel_for(gated_rms_norm, *arguments) == f"gated_rms_norm_{kernel}"
    got = run_kernel(gated_rms_norm, *arguments, offset=offset, sanitize=True, once=True)
    expected = gated_rms_norm.reference(x.double(), gate.double(), weight.double(), *arguments[3:])
    torch.testing.assert_close(torch.from_numpy(got).double(), expected, rtol=1e-3, atol=1e-7)


def test_the_gated_norm_of_a_mamba2_in_16_bits_keeps_its_scan_in_float32() -> None:
    from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

    x, gate, norm = X.expand(2, 3, WIDTH), Y.half(), MambaRMSNormGated(WIDTH, 6).half()
    with torch.no_grad():
        norm.weight.copy_(W)
    got = gated_rms_norm(x, gate, norm.weight, 1e-6, 2)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, norm(x, gate))


IMAGE = torch.ones(2, 6, 3)


@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        (add_layer_norm, (X, Y[..., :1]), "add_layer_norm: x is torch.float32"),
        (add_layer_norm, (X, Y.half()), "add_layer_norm: x is torch.float32"),
        (add_layer_norm, (X, Y, W[:3]), "add_layer_norm: shapes do not fit"),
        (add_layer_norm, (X, Y, W, W[:3]), "add_layer_norm: shapes do not fit"),
        (gated_rms_norm, (X, Y[:1]), "gated_rms_norm: x is torch.float32"),
        (gated_rms_norm, (X.half(), Y), "gated_rms_norm: x is torch.float16"),
        (gated_rms_norm, (X, Y.double()), "gated_rms_norm: x is torch.float32"),
        (gated_rms_norm, (X.half(), Y.bfloat16()), "gated_rms_norm: x is torch.float16"),
        (gated_rms_norm, (X, Y, W[:3]), "gated_rms_norm: shapes do not fit"),
        (gated_rms_norm, (X, Y, W, 1e-6, 5), "gated_rms_norm: 5 groups of 12 channels"),
        (gated_rms_norm, (X, Y, W, 1e-6, 0), "gated_rms_norm: 0 groups of 12 channels"),
        (packed_gate_mul, (X[..., :5],), r"packed_gate_mul: x is \[2, 3, 5\]"),
        (packed_gate_mul, (X[0, 0, 0],), r"packed_gate_mul: x is \[\]"),
        (group_norm_silu, (IMAGE, 4, W[:6], W[:6]), "group_norm_silu: 4 groups of 6 channels"),
        (group_norm_silu, (IMAGE, 0, W[:6], W[:6]), "group_norm_silu: 0 groups of 6 channels"),
        (group_norm_silu, (IMAGE, 2, W[:3], W[:6]), "group_norm_silu: shapes do not fit"),
        (group_norm_silu, (IMAGE[0, :, 0], 2, W[:6], W[:6]), "group_norm_silu: shapes do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(layer: lp.Layer, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(*arguments)


@needs_compiler
@pytest.mark.parametrize(
    ("shape", "most_pieces", "offset"),
    [
        ((2, 3, 61, 64), 512, 0),
        ((2, 3, 67, 64), 1, 0),  # a piece of more than a round
        ((2, 3, 57, 63), 512, {"x": 8}),  # x and y do not lie alike
        ((1, 4501, 2), 512, 4),  # three channels in a pack
        ((2, 3, 59, 61), 512, 12),  # two channels in a pack
    ],
)
def test_group_norm_of_pieces_whose_means_are_far_apart(
    shape: tuple[int, ...], most_pieces: int, offset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_group_norm, "_MOST_PIECES", most_pieces)
    x = torch.linspace(3000, 5000, math.prod(shape))
    x = x.reshape(shape) + torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight, bias = torch.linspace(-1, 1, shape[1]), torch.linspace(1, 2, shape[1])
    assert kernel_for(group_norm_silu, x, 1, weight, bias) == "group_norm_silu_pieces"
    expected = group_norm_silu.reference(x.double(), 1, weight.double(), bias.double())
    got = torch.from_numpy(run_kernel(group_norm_silu, x, 1, weight, bias, offset=offset))
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=5e-6)
