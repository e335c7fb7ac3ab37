"""The experts of a mixture: against transformers' own in every layout, in a whole model, and what is refused."""

from __future__ import annotations

import inspect
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.export import Dim

import layerport as lp
from layerport.packs.records import is_rewrite
from layerport.testing import check_backward, run_kernel
from layerport_builtin_layers import plugin
from layerport_builtin_layers.experts_linear import experts_linear
from small_models import Hidden
from small_setup import ENGINE

EVERY = bool(os.environ.get("LAYERPORT_TEST_FAMILIES"))
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")
SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2 if EVERY else 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "num_experts": 6,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}
EXPERTS = {"gated": "Mixtral", "transposed, interleaved, biased, with a gate of its own": "GptOss"}


def tiny(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL)
    model: nn.Module = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases start as zeros, and experts unset
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def experts_in(model: nn.Module) -> list[nn.Module]:
    return [one for one in model.modules() if type(one).__name__.endswith("Experts")]


@pytest.mark.parametrize("kind", EXPERTS)
def test_it_computes_what_transformers_computes(kind: str) -> None:
    module = experts_in(tiny(EXPERTS[kind]))[0]
    answer = plugin.layerport_export_parameters(module=module, name="it")
    assert is_rewrite(answer) and answer.layers == (experts_linear,)
    generator = torch.Generator().manual_seed(1)
    x, weights = torch.randn(7, 32, generator=generator), torch.rand(7, 2, generator=generator)
    index = torch.stack([torch.randperm(6, generator=generator)[:2] for _ in range(7)])
    torch.testing.assert_close(answer.forward(module, x, index, weights), module(x, index, weights))
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    by_name = dict(zip(names, (x, index, weights), strict=True))
    torch.testing.assert_close(answer.forward(module, **by_name), module(x, index, weights))


@needs_compiler
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32] if EVERY else [torch.float16])
@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe", "Olmoe", "GptOss"] if EVERY else ["Mixtral"])
def test_models_build_with_all_their_experts(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = Hidden(tiny(name).to(dtype))
    args = (torch.randint(0, 40, (2, 5), generator=torch.Generator().manual_seed(2)),)
    shapes = ({0: Dim("batch", min=1, max=4), 1: Dim("sequence", min=1, max=16)},)
    report = lp.build((model, args, shapes), tmp_path / "a.lp", target=ENGINE)
    assert report.counts[experts_linear.name] == {"plugin": 2 * len(experts_in(model))}
    assert report.verification is not None and report.verification.passed
    kernels = [one for one in report.verification.kernels if one.layer == experts_linear.name]
    assert kernels and {one.answer for one in kernels} == {"right"}
    ids = torch.randint(0, 40, (1, 9), generator=torch.Generator().manual_seed(3))
    with lp.load(tmp_path / "a.lp") as session:
        (got,) = session(input_ids=ids.numpy()).values()
    limit = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(torch.from_numpy(got), model(ids), rtol=limit, atol=limit)


class Experts(nn.Module):
    """By its name alone."""

    def __init__(self, **flags: Any) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.ones(2, 4, 3))
        self.down_proj = nn.Parameter(torch.ones(2, 3, 2))
        for name, value in flags.items():
            setattr(self, name, value)

    def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        return x


class TwoInputs(Experts):
    def forward(self, x: Tensor, index: Tensor) -> Tensor:  # type: ignore[override]
        return x


FLAGS = {"has_gate": True, "has_bias": False, "is_transposed": False}


def test_what_only_looks_like_experts_is_left_alone() -> None:
    assert is_rewrite(plugin.layerport_export_parameters(module=Experts(**FLAGS), name="it"))
    parallel = Experts(**FLAGS, _is_expert_parallel=True)
    flat = Experts(**FLAGS)
    flat.down_proj = nn.Parameter(torch.ones(2, 3))
    ungated = Experts(**(FLAGS | {"has_gate": False}))  # it has no up_proj
    for other in (Experts(), parallel, flat, ungated, TwoInputs(**FLAGS)):
        assert plugin.layerport_export_parameters(module=other, name="it") is None


X, INDEX, WEIGHT, BIAS = (
    torch.ones(5, 2, 3),
    torch.zeros(5, 2, dtype=torch.int64),
    torch.ones(4, 6, 3),
    torch.ones(4, 6),
)
SHAPES, DTYPES = "experts_linear: shapes do not fit: x ", "experts_linear: dtypes do not fit: x "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0, 0], INDEX, WEIGHT), SHAPES),
        ((X[:, :1], INDEX, WEIGHT), SHAPES),
        ((X[:4, 0], INDEX, WEIGHT), SHAPES),
        ((X, INDEX[0], WEIGHT), SHAPES),
        ((X, INDEX, WEIGHT[0]), SHAPES),
        ((X[:4], INDEX, WEIGHT), SHAPES),
        ((X, torch.zeros(5, 3, dtype=torch.int64), WEIGHT), SHAPES),
        ((X, INDEX, WEIGHT[..., :2]), SHAPES),
        ((X, INDEX, WEIGHT, BIAS[:3]), SHAPES),
        ((X, INDEX, WEIGHT, BIAS[0]), SHAPES),
        ((X, INDEX.int(), WEIGHT), DTYPES),
        ((X, INDEX, WEIGHT.half()), DTYPES),
        ((X, INDEX, WEIGHT, BIAS.half()), DTYPES),
        ((X.long(), INDEX, WEIGHT.long()), DTYPES),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experts_linear(*arguments)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_not_finite_stays_so_and_spoils_no_other_token(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    x, weight = torch.randn(4, 2, 16, generator=generator), torch.randn(3, 5, 16, generator=generator)
    x[[0, 1, 2], [0, 1, 0], [3, 15, 0]] = torch.tensor((float("nan"), float("inf"), -float("inf")))
    weight[2, 4, 7] = float("nan")  # of an expert that one token has
    index = torch.tensor([[0, 1], [1, 0], [0, 1], [0, 2]])
    x, weight = x.to(dtype), weight.to(dtype)
    expected = experts_linear(x, index, weight)
    assert expected[3, 0].isfinite().all() and expected[3, 1].isnan().tolist() == [False] * 4 + [True]
    got = torch.from_numpy(run_kernel(experts_linear, x, index, weight).astype("float64"))
    torch.testing.assert_close(got, expected.double(), rtol=1e-3, atol=1e-3, equal_nan=True)


def test_gradients_are_those_of_the_products() -> None:
    generator = torch.Generator().manual_seed(5)
    shapes = ((3, 2, 4), (3, 5, 4), (3, 5))
    x, weight, bias = (torch.randn(one, generator=generator, dtype=torch.float64) for one in shapes)
    index = torch.tensor([[0, 1], [2, 0], [3, 1]])
    check_backward(experts_linear, x, index, weight, bias)
    check_backward(experts_linear, x[:, 0], index, weight)
