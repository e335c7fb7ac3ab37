"""The causal convolution: against transformers' own, where it is found, in whole models, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional
from transformers.models.mamba.modeling_mamba import causal_conv1d_fn

import layerport as lp
from layerport.cli import main
from layerport.testing import check_spellings, run_kernel
from layerport_builtin_layers.causal_conv1d import causal_conv1d
from layerport_builtin_layers.gated_rms_norm import gated_rms_norm
from searched import Function, search_in
from small_models import Hidden
from small_setup import ENGINE

EVERY = bool(os.environ.get("LAYERPORT_TEST_FAMILIES"))
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_it_computes_what_transformers_computes(width: int, activation: Any) -> None:
    x, weight, bias = drawn(2, 3, 9), drawn(3, width, seed=2), drawn(3, seed=3)
    for given in (bias, None):
        expected = causal_conv1d_fn(x, weight, given, activation if activation != "none" else None)
        torch.testing.assert_close(causal_conv1d(x, weight, given, activation), expected)
        torch.testing.assert_close(causal_conv1d(x, weight.unsqueeze(1), given, activation), expected)


@needs_compiler
@pytest.mark.parametrize("width", [2, 3, 4, 7])
def test_a_sequence_in_parts_with_the_columns_before_each(width: int) -> None:
    x, weight, bias = drawn(2, 3, 23), drawn(3, width, seed=2), drawn(3, seed=3)
    whole = causal_conv1d(x, weight, bias, "silu")
    state, parts = torch.zeros(2, 3, width - 1), []
    for part in x.split([1, 2, 13, 7], dim=-1):
        columns = torch.cat((state, part), dim=-1)
        made = torch.from_numpy(run_kernel(causal_conv1d, columns, weight, bias, "silu"))
        parts.append(made[..., width - 1 :])
        state = columns[..., columns.shape[-1] - width + 1 :]
    torch.testing.assert_close(torch.cat(parts, dim=-1), whole)


@needs_compiler
def test_a_sequence_of_nothing() -> None:
    """Which Torch's own convolution refuses, and so the spelling."""
    assert causal_conv1d(drawn(2, 3, 0), drawn(3, 4)).shape == (2, 3, 0)
    assert run_kernel(causal_conv1d, drawn(2, 3, 0), drawn(3, 4)).shape == (2, 3, 0)


def test_the_spelling_is_the_layer() -> None:
    for activation in ("none", "silu"):
        check_spellings(causal_conv1d, drawn(2, 3, 9), drawn(3, 1, 4), drawn(3), activation)


class Written(nn.Module):
    """A convolution as models write it."""

    def __init__(self, form: Any, **given: Any) -> None:
        super().__init__()
        self.form, self.conv = form, nn.Conv1d(3, 3, 4, **{"groups": 3, "padding": 3, **given})

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.form(self.conv, x)
        return result


FORMS = {
    "transformers": (lambda conv, x: causal_conv1d_fn(x, conv.weight.squeeze(1), conv.bias, "silu"), "silu"),
    "transformers, no activation": (lambda conv, x: causal_conv1d_fn(x, conv.weight.squeeze(1), conv.bias), "none"),
    "up to the length": (lambda conv, x: functional.silu(conv(x)[..., : x.shape[-1]]), "silu"),
    "without the last": (lambda conv, x: functional.silu(conv(x)[:, :, :-3]), "silu"),
    "another activation": (lambda conv, x: functional.gelu(conv(x)[..., : x.shape[-1]]), "none"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_found_as_models_write_it(form: str, dtype: torch.dtype) -> None:
    written, activation = FORMS[form]
    shapes = ({0: Dim("batch", min=1, max=4), 2: Dim("length", min=1, max=64)},)
    for bias in (True, False):
        model = Written(written, bias=bias).to(dtype)
        findings, _ = search_in(model, (drawn(2, 3, 9).to(dtype),), [causal_conv1d], shapes)
        assert [one.attributes for one in findings.places] == [{"activation": activation}]


OTHERS = {
    "not cut": (lambda conv, x: conv(x), {}),
    "the first columns cut": (lambda conv, x: conv(x)[..., 3:], {}),
    "not depthwise": (lambda conv, x: conv(x)[..., : x.shape[-1]], {"groups": 1}),
    "apart": (lambda conv, x: conv(x)[..., : x.shape[-1]], {"dilation": 2}),
    "in steps": (lambda conv, x: conv(x)[..., :5], {"stride": 2}),
    "fewer zeros": (lambda conv, x: conv(x)[..., : x.shape[-1]], {"padding": 2}),
    "not of zeros": (lambda conv, x: conv(x)[..., : x.shape[-1]], {"padding_mode": "circular"}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_it_is_not_found_where_it_is_not(case: str) -> None:
    form, given = OTHERS[case]
    findings, _ = search_in(Written(form, **given), (drawn(2, 3, 9),), [causal_conv1d])
    assert findings.places == []


def tiny(name: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1}
    more: dict[str, dict[str, Any]] = {
        # With its residuals in float32 a model of 16 bits answers in float32, whose tolerance it cannot keep.
        "Mamba": {"state_size": 8, "time_step_rank": 4, "use_mambapy": False, "residual_in_fp32": False},
        "FalconMamba": {"state_size": 8, "time_step_rank": 4, "use_mambapy": False, "residual_in_fp32": False},
        "Mamba2": {
            "state_size": 8,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "residual_in_fp32": False,
        },
        "Lfm2": {
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "layer_types": ["conv"],
        },
    }
    config = getattr(transformers, f"{name}Config")(**sizes, **more[name])
    model: nn.Module = getattr(transformers, f"{name}Model")(config).eval()
    return model


MODELS = [("Mamba", torch.float16)]  # a Mamba2 is among the tests of its scan
if EVERY:
    MODELS = [
        (name, dtype) for name in ("Mamba", "Mamba2", "FalconMamba", "Lfm2") for dtype in (torch.float16, torch.float32)
    ]


@needs_compiler
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "dtype"), MODELS)
def test_models_build_with_each_of_their_convolutions_as_a_plugin(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = Hidden(tiny(name).to(dtype))
    args = (torch.randint(0, 40, (2, 6), generator=torch.Generator().manual_seed(2)),)
    shapes = ({0: Dim("batch", min=1, max=4), 1: Dim("sequence", min=1, max=16)},)
    report = lp.build((model, args, shapes), tmp_path / "a.lp", target=ENGINE)
    assert report.counts[causal_conv1d.name] == {"plugin": 1}
    assert report.counts.get(gated_rms_norm.name) == ({"plugin": 1} if name == "Mamba2" else None)
    (place,) = [one for one in report.found if one.layer == causal_conv1d.name]
    assert place.attributes == {"activation": "none" if name == "Lfm2" else "silu"}
    assert report.verification is not None and report.verification.passed
    kernels = {one.kernel: one.answer for one in report.verification.kernels if one.layer == causal_conv1d.name}
    assert kernels == {"causal_conv1d_3" if name == "Lfm2" else "causal_conv1d_4": "right"}


class Called(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 4, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        return causal_conv1d(x, self.conv.weight, self.conv.bias, "silu")


def test_tensorrt_makes_one_kernel_of_its_body(tmp_path: Path) -> None:
    shapes = ({0: Dim("batch", min=1, max=4), 2: Dim("length", min=1, max=64)},)
    lp.build((Called().eval(), (drawn(2, 8, 9),), shapes), tmp_path / "a.lp", target=ENGINE, verify=False)
    done = CliRunner().invoke(main, ["inspect", "--alone", "--json", str(tmp_path / "a.lp")])
    assert done.exit_code == 0, done.stderr
    (alone,) = json.loads(done.stdout)["alone"]
    assert alone["layer"] == causal_conv1d.name and len(alone["kernels"]) == 1


X, W, B = drawn(2, 3, 9), drawn(3, 4), drawn(3)
SHAPES, DTYPES = r"causal_conv1d: shapes do not fit: x \[", "causal_conv1d: dtypes do not fit: x "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0], W, B), SHAPES),
        ((X, W[:2], B), SHAPES),
        ((X, W[0], B), SHAPES),
        ((X, W.unsqueeze(1).expand(3, 2, 4), B), SHAPES),
        ((X, W[:, :0], B), SHAPES),
        ((X, W, B[:2]), SHAPES),
        ((X, W, B.unsqueeze(1)), SHAPES),
        ((X.half(), W.double(), B.double()), DTYPES),
        ((X, W.half(), B.half()), DTYPES),
        ((X.half(), W, B.half()), DTYPES),
        ((X.half(), W.half(), B), DTYPES),
        ((X.long(), W, B), DTYPES),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        causal_conv1d(*arguments)


def test_an_activation_that_it_has_not_is_refused() -> None:
    with pytest.raises(lp.UsageError, match="activation"):
        causal_conv1d(X, W, B, "gelu")  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_in_a_build(tmp_path: Path) -> None:
    model = Function(lambda x, weight: causal_conv1d(x, weight), weight=W[:2])
    with pytest.raises(lp.LayerportError, match="causal_conv1d: shapes do not fit"):
        lp.build((model, (X,)), tmp_path / "a.lp", target="portable")


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [4, 5])
def test_what_is_not_finite_reaches_its_own_columns_alone(width: int, dtype: torch.dtype) -> None:
    x, weight = drawn(2, 2, 21).to(dtype), drawn(2, width, seed=2).to(dtype)
    x[0, 1, 7], x[1, 0, 20], x[1, 1, 0] = float("nan"), float("inf"), -float("inf")
    expected = causal_conv1d(x, weight, None, "silu")
    assert expected[0, 1, 7 : 7 + width].isnan().all() and expected[0, 1, 7 + width :].isfinite().all()
    got = torch.from_numpy(run_kernel(causal_conv1d, x, weight, None, "silu"))
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=1e-5, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("offset", [2, 14, {"x": 6, "output": 0}, {"x": 0, "output": 10}])
@pytest.mark.parametrize("length", [1, 8, 37])
def test_rows_that_lie_anywhere(length: int, offset: Any) -> None:
    x, weight, bias = drawn(3, 5, length).half(), drawn(5, 3).half(), drawn(5).half()
    expected = causal_conv1d(x, weight, bias, "silu")
    got = torch.from_numpy(run_kernel(causal_conv1d, x, weight, bias, "silu", offset=offset, sanitize=True, once=True))
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=1e-5)
