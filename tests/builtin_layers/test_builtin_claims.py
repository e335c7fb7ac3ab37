"""Claims on real classes: which modules the pack answers for, and that exactly one candidate is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import layerport as lp
from layerport.packs.records import is_bound_layer, is_lossy
from layerport_builtin_layers import plugin
from layerport_builtin_layers.gelu_mul import gelu_mul
from layerport_builtin_layers.module_looks import held
from layerport_builtin_layers.rms_norm import rms_norm
from layerport_builtin_layers.silu_mul import silu_mul
from searched import search_in

SIZES = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
# Normalisations of two layers, and how they scale.
MODELS = {
    "Llama": (5, "weight"),
    "Mistral": (5, "weight"),
    "Qwen2": (5, "weight"),
    "Qwen3": (9, "weight"),
    "Phi3": (5, "weight"),
    "Gemma": (5, "1 + weight"),
    "Gemma2": (9, "1 + weight"),
    "Gemma3Text": (13, "1 + weight"),
    "T5": (12, "weight"),
}


def tiny_model(name: str) -> torch.nn.Module:
    torch.manual_seed(3)
    base = name.removesuffix("Text")
    config_class = getattr(transformers, f"{name}Config", None) or getattr(transformers, f"{name}TextConfig")
    if name == "T5":
        config = config_class(vocab_size=50, d_model=48, d_ff=96, d_kv=16, num_heads=4, num_layers=2)
    else:
        config = config_class(**SIZES)
    model = getattr(transformers, f"{name}Model", None) or getattr(transformers, f"{base}Model")
    made: torch.nn.Module = model(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # norms start as ones or zeros, which would make candidates agree
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (0.7 if parameter.ndim == 1 else 0.0))
    return made


def answers_of(module: torch.nn.Module) -> tuple[Any, ...]:
    """What the pack claims without a loss."""
    answer = plugin.layerport_export_parameters(module=module, name="it")
    answers = () if answer is None else answer if isinstance(answer, tuple) else (answer,)
    return tuple(one for one in answers if not is_lossy(one))


def claims_of(model: torch.nn.Module) -> dict[str, tuple[torch.nn.Module, tuple[Any, ...]]]:
    asked = ((name, module, answers_of(module)) for name, module in model.named_modules())
    return {name: (module, answers) for name, module, answers in asked if answers}


def run_answer(answer: Any, module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    values = {name: torch.from_numpy(array) for name, array in answer.parameters.items()}
    result = answer.layer.reference(x, **values, **answer.parameters.attributes)
    assert isinstance(result, torch.Tensor)
    return result


def agreeing(module: torch.nn.Module, answers: tuple[Any, ...]) -> list[Any]:
    width = next(parameter.shape[-1] for name, parameter in module.named_parameters() if "down" not in name)
    x = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = module(x)
        return [a for a in answers if torch.allclose(run_answer(a, module, x), expected, rtol=1e-4, atol=1e-5)]


@pytest.mark.parametrize("name", MODELS)
def test_one_candidate_is_right_for_each_module_of(name: str) -> None:
    norms, scale = MODELS[name]
    claims = claims_of(tiny_model(name))
    for module, answers in claims.values():
        (right,) = agreeing(module, answers)
        assert is_bound_layer(right) and right.layer is rms_norm
        assert answers.index(right) == ("weight", "1 + weight").index(scale)
        assert right.parameters["weight"].dtype.name == "float32"
    assert len(claims) == norms


def test_a_weight_is_taken_without_a_copy() -> None:
    module = torch.nn.RMSNorm(8)
    (bound,) = answers_of(module)
    assert torch.from_numpy(bound.parameters["weight"]).data_ptr() == module.weight.data_ptr()


def test_one_plus_weight_is_float32_beside_16_bits() -> None:
    class SmallRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((4,), 2.0**-9, dtype=torch.bfloat16))
            self.eps = 1e-5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    plain, shifted = answers_of(SmallRMSNorm())
    assert plain.parameters["weight"].dtype.name == "bfloat16"
    assert shifted.parameters["weight"].dtype.name == "float32"
    assert shifted.parameters["weight"].tolist() == [1 + 2.0**-9] * 4
    assert shifted.parameters.attributes["eps"] == 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("affine", [True, False])
def test_torch_rms_norm_with_its_own_eps(dtype: torch.dtype, affine: bool) -> None:
    module = torch.nn.RMSNorm(8, elementwise_affine=affine, dtype=dtype)
    (bound,) = answers_of(module)
    assert set(bound.parameters) == ({"weight"} if affine else set())
    # Small enough for a wrong epsilon to show.
    x = (torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3e-3).to(dtype)
    weight = module.weight if affine else None
    got = rms_norm.reference(x, weight, **bound.parameters.attributes)
    # Without a weight, nothing tells the claim that the input is float64.
    unknown = dtype == torch.float64 and not affine
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-5)
    assert torch.allclose(got.detach(), module(x).detach(), rtol=tolerance, atol=0) != unknown


class TwoInputsRMSNorm(torch.nn.RMSNorm):
    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x) * (1 if gate is None else gate)


class BiasedRMSNorm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.zeros(4))
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + self.bias


class NamelessEpsilonRMSNorm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class GatedMLP(torch.nn.Module):
    def __init__(self, act_fn: torch.nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (torch.nn.Linear(4, 4) for _ in range(3))
        self.act_fn = act_fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        assert isinstance(result, torch.Tensor)
        return result


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.RMSNorm((2, 3)),
        torch.nn.LayerNorm(4),
        TwoInputsRMSNorm(4),
        BiasedRMSNorm(),
        NamelessEpsilonRMSNorm(),
        GatedMLP(torch.nn.SiLU()),
        torch.nn.SiLU(),
        torch.nn.TransformerEncoderLayer(8, 2, activation=torch.nn.functional.silu),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_only_looks_like_a_layer_is_left_alone(module: torch.nn.Module) -> None:
    assert answers_of(module) == ()


@pytest.mark.parametrize(
    ("activation", "layers"),
    [(torch.nn.SiLU(), [silu_mul.name]), (torch.nn.GELU(), [gelu_mul.name]), (torch.nn.Tanh(), [])],
)
def test_a_gate_is_found_in_an_mlp_of_ones_own(activation: torch.nn.Module, layers: list[str]) -> None:
    findings, _ = search_in(GatedMLP(activation), (torch.randn(2, 4),), plugin.layerport_layers())
    assert [one.layer for one in findings.places] == layers


def test_the_pack_lists_its_layers() -> None:
    names = [layer.short_name for layer in plugin.layerport_layers()]
    assert names == [
        *("rms_norm", "add_rms_norm", "layer_norm", "silu_mul", "gelu_mul", "rope", "circular_pad"),
        *("ms_deform_attn", "experts_linear", "selective_scan", "weight_only_linear"),
        *("deform_conv2d", "grid_sample", "roi_align", "nms", "local_correlation", "scatter_pillars"),
        *("add_layer_norm", "gated_rms_norm", "packed_gate_mul", "group_norm_silu", "causal_conv1d"),
        *("ssd_scan", "index_add"),
    ]
    assert all(isinstance(layer, lp.Layer) for layer in plugin.layerport_layers())


class Deprecates(torch.nn.Module):
    """Names that a library gives up: a property and a `__getattr__`, either of which says so."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (torch.nn.Linear(4, 4, bias=False) for _ in range(3))

    @property
    def act_fn(self) -> Any:
        raise AssertionError("act_fn was touched")

    @property
    def eps(self) -> float:
        raise AssertionError("eps was touched")

    def __getattr__(self, name: str) -> Any:
        if name in {"activation", "act", "variance_epsilon", "norm_eps"}:
            raise AssertionError(f"{name} was touched")
        return super().__getattr__(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class DeprecatesRMSNorm(Deprecates):
    """The same by the name of a norm, with one epsilon that it does hold."""

    epsilon = 1e-5


class DeprecatesLayerNorm(Deprecates):
    """By a name that is a norm's only with an epsilon for a variance."""


def test_looking_touches_no_deprecated_attribute() -> None:
    assert answers_of(Deprecates()) == ()
    assert answers_of(DeprecatesLayerNorm()) == ()
    assert answers_of(DeprecatesRMSNorm()) == ()  # it has three weights, which is found out by looking at all of it


def test_what_is_held_is_still_seen() -> None:
    class Norm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("norm_eps", torch.ones(1))
            self.weight = torch.nn.Parameter(torch.ones(4))
            self.act = torch.nn.SiLU()
            self.nothing = None

        eps = 1e-6
        function = staticmethod(torch.nn.functional.silu)

        @property
        def computed(self) -> float:
            return 1.0

    norm = Norm()
    assert held(norm, "eps") == 1e-6
    assert held(norm, "norm_eps") is norm.norm_eps
    assert held(norm, "weight") is norm.weight
    assert held(norm, "act") is norm.act
    assert held(norm, "function") is torch.nn.functional.silu
    assert [held(norm, name) for name in ("nothing", "computed", "forward", "absent")] == [None] * 4
