"""The scan of Mamba2: against transformers' own, in whole models, and what is refused."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.export import Dim
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

import layerport as lp
from layerport.testing import check_backward, run_kernel
from layerport_builtin_layers import plugin
from layerport_builtin_layers.causal_conv1d import causal_conv1d
from layerport_builtin_layers.gated_rms_norm import gated_rms_norm
from layerport_builtin_layers.ssd_scan import ssd_scan
from searched import Function
from small_models import Hidden
from small_setup import ENGINE

EVERY = bool(os.environ.get("LAYERPORT_TEST_FAMILIES"))
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")


def drawn(
    batch: int = 2, length: int = 5, heads: int = 4, dim: int = 3, groups: int = 2, states: int = 6
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows, of_states = (batch, length, heads, dim), (batch, length, groups, states)
    return {
        "x": draw(*rows),
        "dt": draw(batch, length, heads),
        "a": -draw(heads).abs(),
        "b": draw(*of_states),
        "c": draw(*of_states),
        "d": draw(heads),
        "z": draw(*rows),
        "dt_bias": draw(heads),
        "start": draw(batch, heads, dim, states),
    }


def single(**sizes: int) -> dict[str, Tensor]:
    return {name: one.float() for name, one in drawn(**sizes).items()}


@pytest.mark.parametrize("limit", [(0.0, math.inf), (0.3, 0.9)])
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("absent", [(), ("d",), ("dt_bias", "start")])
def test_it_computes_what_transformers_computes(
    absent: tuple[str, ...], softplus: bool, limit: tuple[float, float]
) -> None:
    given = {name: None if name in (*absent, "z") else one for name, one in single(length=11).items()}
    expected, last = mamba2_chunk_scan(
        *(given[name] for name in ("x", "dt", "a", "b", "c")),
        chunk_size=4,
        D=given["d"],
        dt_bias=given["dt_bias"],
        initial_states=given["start"],
        dt_softplus=softplus,
        dt_limit=limit,
        return_final_states=True,
    )
    got, state = ssd_scan(
        **given, softplus=softplus, dt_min=limit[0], dt_max=None if limit[1] == math.inf else limit[1]
    )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_a_sequence_in_two_parts_gives_what_the_whole_gives() -> None:
    given = single(length=21)
    whole, last = ssd_scan(**given, softplus=True)

    def part(begin: int, end: int, start: Tensor) -> tuple[Tensor, Tensor]:
        cut = {name: one[:, begin:end] for name, one in given.items() if name in ("x", "dt", "b", "c", "z")}
        y, state = run_kernel(ssd_scan, *(given | cut | {"start": start}).values(), True)
        return torch.from_numpy(y), torch.from_numpy(state)

    first, state = part(0, 17, given["start"])
    second, state = part(17, 21, state)
    torch.testing.assert_close(torch.cat((first, second), 1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_of_no_positions_the_state_is_what_it_was() -> None:
    given = single(length=0)
    for y, state in (ssd_scan(**given), map(torch.from_numpy, run_kernel(ssd_scan, *given.values()))):
        assert y.shape == (2, 0, 4, 3) and torch.equal(state, given["start"])


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_kernel_takes_misaligned_pointers_under_the_address_sanitiser(dtype: str) -> None:
    narrow = ("x", "dt", "b", "c", "z")
    given = {
        name: one.to(getattr(torch, dtype)) if name in narrow else one
        for name, one in single(length=18, dim=9, states=7).items()
    }
    expected = ssd_scan(**given, softplus=True)
    got = run_kernel(ssd_scan, *given.values(), True, offset=4, sanitize=dtype == "float16")
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-4, atol=1e-5)


SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2 if EVERY else 1}
ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 16, "mamba_chunk_size": 4}
NAMED = {"num_heads": 4, "head_dim": 8, "n_groups": 1, "state_size": 16, "chunk_size": 4}
# Layers of each kind in a model of two blocks, and what else its configuration says.
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "Mamba2": (2, {**NAMED, "residual_in_fp32": False}),
    "Bamba": (1, {**ATTENTION, **MAMBA, "attn_layer_indices": [1]}),
    "FalconH1": (2, {**ATTENTION, **MAMBA, "mamba_d_ssm": 32}),
    "GraniteMoeHybrid": (
        1,
        {**ATTENTION, **MAMBA, "layer_types": ["mamba", "attention"], "num_local_experts": 0},
    ),
    "NemotronH": (
        1,
        {
            **ATTENTION,
            "hybrid_override_pattern": "M*",
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "head_dim": 8,
            "ssm_state_size": 16,
            "chunk_size": 4,
        },
    ),
    "Zamba2": (
        2,
        {
            **ATTENTION,
            "n_mamba_heads": 4,
            "mamba_headdim": 8,
            "mamba_ngroups": 2,
            "mamba_d_state": 16,
            "chunk_size": 4,
            "layers_block_type": ["mamba", "hybrid"],
            "num_mem_blocks": 1,
            "adapter_rank": 4,
        },
    ),
}


def tiny(name: str, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **MODELS[name][1], **more})
    model: nn.Module = getattr(transformers, f"{name}Model")(config).eval()
    return model


@needs_compiler
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32] if EVERY else [torch.float16])
@pytest.mark.parametrize("name", list(MODELS) if EVERY else ["Mamba2"])
def test_models_build_at_any_length_with_each_scan_as_a_plugin(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = Hidden(tiny(name).to(dtype))
    args = (torch.randint(0, 40, (2, 6), generator=torch.Generator().manual_seed(2)),)
    shapes = ({0: Dim("batch", min=1, max=4), 1: Dim("sequence", min=1, max=16)},)
    report = lp.build((model, args, shapes), tmp_path / "a.lp", target=ENGINE)
    there = MODELS[name][0] if EVERY else 1
    # Falcon-H1 gates without a norm, but where its configuration says otherwise.
    norms = {} if name == "FalconH1" else {gated_rms_norm.name: there}
    for layer, count in {ssd_scan.name: there, causal_conv1d.name: there, **norms}.items():
        assert report.counts[layer] == {"plugin": count}
    assert report.verification is not None and report.verification.passed
    kernels = [one for one in report.verification.kernels if one.layer == ssd_scan.name]
    assert kernels and {one.answer for one in kernels} == {"right"}
    limit = 1e-4 if dtype == torch.float32 else 2e-2
    with lp.load(tmp_path / "a.lp") as session:
        for length in (1, 11):
            ids = torch.randint(0, 40, (1, length), generator=torch.Generator().manual_seed(3))
            (got,) = session(input_ids=ids.numpy()).values()
            torch.testing.assert_close(torch.from_numpy(got), model(ids), rtol=limit, atol=limit)


@pytest.mark.parametrize("name", MODELS)
def test_the_mixer_of_each_family_is_claimed(name: str) -> None:
    model = tiny(name, num_hidden_layers=2)
    claims = {
        path: claim
        for path, module in model.named_modules()
        if (claim := plugin.layerport_export_parameters(module=module, name=path)) is not None
        and ssd_scan in getattr(claim, "layers", ())
    }
    assert len(claims) == MODELS[name][0]
    for path, claim in claims.items():
        mixer, x = model.get_submodule(path), torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(4))
        torch.testing.assert_close(claim.forward(mixer, x), mixer(x))


def test_a_module_that_calls_nothing_of_it_is_left_alone() -> None:
    for other in (nn.Identity(), nn.GRU(2, 2), nn.Sequential()):
        assert plugin.layerport_export_parameters(module=other, name="it") is None


SHAPES, DTYPES = r"ssd_scan: shapes do not fit: x \[", "ssd_scan: dtypes do not fit: x "
LIMITS = "ssd_scan: dt_min is 0.5, dt_max is 0.25; give numbers of which the second is not below"
FAULTS = [
    ({"x": torch.ones(2, 5, 12)}, SHAPES),
    ({"dt": torch.ones(2, 5, 1)}, SHAPES),
    ({"a": -torch.ones(4, 6)}, SHAPES),
    ({"b": torch.ones(2, 5, 2, 7)}, SHAPES),
    ({"b": torch.ones(2, 4, 2, 6), "c": torch.ones(2, 4, 2, 6)}, SHAPES),
    ({"b": torch.ones(2, 5, 3, 6), "c": torch.ones(2, 5, 3, 6)}, "3, 6.*where groups divide heads"),
    ({"b": torch.ones(2, 5, 0, 6), "c": torch.ones(2, 5, 0, 6)}, SHAPES),
    ({"d": torch.ones(4, 3)}, SHAPES),
    ({"z": torch.ones(2, 5, 4, 1)}, SHAPES),
    ({"dt_bias": torch.ones(2)}, SHAPES),
    ({"start": torch.ones(2, 4, 6, 3)}, SHAPES),
    ({"dt": torch.ones(2, 5, 4).half()}, DTYPES),
    ({"a": -torch.ones(4).half()}, DTYPES),
    ({"start": torch.ones(2, 4, 3, 6).double()}, DTYPES),
    ({"dt_min": 0.5, "dt_max": 0.25}, LIMITS),
    ({"dt_min": math.nan}, "ssd_scan: dt_min is nan, dt_max is None"),
    ({"a": torch.ones(1).half(), "dt_min": 0.5, "dt_max": 0.25}, f"{SHAPES}.*; dtypes do not fit.*; dt_min is 0.5"),
]


@pytest.mark.parametrize(("changed", "message"), FAULTS)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {**single(), **changed}
    with pytest.raises(ValueError, match=message):
        ssd_scan(**given)


def test_what_does_not_fit_is_refused_in_a_build_as_well(tmp_path: Path) -> None:
    given = single()
    model = Function(lambda x, dt, b: ssd_scan(x, dt, given["a"][:3], b, b)[0])
    with pytest.raises(lp.LayerportError, match=r"ssd_scan: shapes do not fit: .* a \[3\]"):
        lp.build((model, (given["x"], given["dt"], given["b"])), tmp_path / "a.lp", target="portable")


@needs_compiler
def test_what_is_not_finite_goes_on_in_its_head_alone() -> None:
    given: dict[str, Any] = single()
    given["x"][0, 2, 1, 1] = math.nan
    given["dt"][1, 3, 0] = math.inf
    given["z"][1, 1, 3, 0] = -math.inf
    given["start"][0, 2, 0, 1] = math.inf
    expected = ssd_scan(**given, softplus=True)
    y = expected[0]
    assert y[0, :2, 1].isfinite().all() and y[0, 2:, 1, 1].isnan().all() and y[0, :, 1, [0, 2]].isfinite().all()
    assert y[1, 3:, 0].isnan().all() and y[1, 1, 3, 0].isnan() and y[0, :, [0, 3]].isfinite().all()
    for got, wanted in zip(run_kernel(ssd_scan, *given.values(), True), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_step_that_is_not_a_number_is_no_limit() -> None:
    given = single()
    given["dt"][0, 1, 0] = math.nan
    assert ssd_scan(**given, dt_min=0.1, dt_max=0.5).y[0, 1:, 0].isnan().all()
    got, _ = run_kernel(ssd_scan, *given.values(), False, 0.1, 0.5)
    assert torch.from_numpy(got)[0, 1:, 0].isnan().all()


@pytest.mark.parametrize("absent", ["", "d", "z", "dt_bias", "start"])
def test_gradients_are_those_of_the_recurrence(absent: str) -> None:
    given = [None if name == absent else one for name, one in drawn(2, 3, 2, 2, 1, 2).items()]
    for attributes in ((True,), (False, 0.3, 0.9)):
        check_backward(ssd_scan, *given, *attributes)
