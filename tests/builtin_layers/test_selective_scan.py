"""The selective scan: against transformers' own, in whole models, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.export import Dim
from transformers.models.mamba.modeling_mamba import mamba_selective_scan

import layerport as lp
from layerport.testing import check_backward, run_kernel
from layerport_builtin_layers import plugin
from layerport_builtin_layers.selective_scan import selective_scan
from small_models import Hidden
from small_setup import ENGINE

EVERY = bool(os.environ.get("LAYERPORT_TEST_FAMILIES"))
LAYERS = 2 if EVERY else 1
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")


def drawn(batch: int = 2, channels: int = 3, length: int = 5, states: int = 4, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows, of_states = (batch, channels, length), (batch, states, length)
    return {
        "x": draw(*rows),
        "dt": draw(*rows),
        "a": -draw(channels, states).abs(),
        "b": draw(*of_states),
        "c": draw(*of_states),
        "d": draw(channels),
        "z": draw(*rows),
        "dt_bias": draw(channels),
    }


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("absent", [(), ("d",), ("z",), ("dt_bias",), ("d", "z", "dt_bias")])
def test_it_computes_what_transformers_computes(absent: tuple[str, ...], softplus: bool) -> None:
    given = {name: None if name in absent else one.float() for name, one in drawn().items()}
    named = {"D": given["d"], "z": given["z"], "delta_bias": given["dt_bias"], "delta_softplus": softplus}
    first = [given[name] for name in ("x", "dt", "a", "b", "c")]
    expected, last = mamba_selective_scan(*first, **named, return_last_state=True)
    got, state = selective_scan(**given, softplus=softplus)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


def tiny(name: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "state_size": 8, "num_hidden_layers": LAYERS, "time_step_rank": 4}
    config = getattr(transformers, f"{name}Config")(**sizes, use_mambapy=False, residual_in_fp32=False)
    model: nn.Module = getattr(transformers, f"{name}Model")(config).eval()
    return model


@needs_compiler
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32] if EVERY else [torch.float16])
@pytest.mark.parametrize("name", ["Mamba", "FalconMamba"] if EVERY else ["Mamba"])
def test_models_build_at_any_length_with_each_scan_as_a_plugin(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = Hidden(tiny(name).to(dtype))
    args = (torch.randint(0, 40, (2, 6), generator=torch.Generator().manual_seed(2)),)
    shapes = ({0: Dim("batch", min=1, max=4), 1: Dim("sequence", min=1, max=16)},)
    report = lp.build((model, args, shapes), tmp_path / "a.lp", target=ENGINE)
    assert report.counts[selective_scan.name] == {"plugin": LAYERS}
    assert report.verification is not None and report.verification.passed
    kernels = [one for one in report.verification.kernels if one.layer == selective_scan.name]
    assert kernels and {one.answer for one in kernels} == {"right"}
    limit = 1e-4 if dtype == torch.float32 else 2e-2
    with lp.load(tmp_path / "a.lp") as session:
        for length in (1, 11):
            ids = torch.randint(0, 40, (1, length), generator=torch.Generator().manual_seed(3))
            (got,) = session(input_ids=ids.numpy()).values()
            torch.testing.assert_close(torch.from_numpy(got), model(ids), rtol=limit, atol=limit)


def test_a_module_that_calls_nothing_of_it_is_left_alone() -> None:
    for other in (nn.Identity(), nn.GRU(2, 2), nn.Sequential()):
        assert plugin.layerport_export_parameters(module=other, name="it") is None


SHAPES, DTYPES = "selective_scan: shapes do not fit: x ", "selective_scan: dtypes do not fit: x "


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.ones(2, 3)}, SHAPES),
        ({"dt": torch.ones(2, 3, 4)}, SHAPES),
        ({"a": torch.ones(2, 4)}, SHAPES),
        ({"a": torch.ones(3, 5)}, SHAPES),
        ({"b": torch.ones(2, 4, 6)}, SHAPES),
        ({"b": torch.ones(1, 4, 5), "c": torch.ones(1, 4, 5)}, SHAPES),
        ({"d": torch.ones(4)}, SHAPES),
        ({"z": torch.ones(2, 3, 1)}, SHAPES),
        ({"dt_bias": torch.ones(1, 3)}, SHAPES),
        ({"dt": torch.ones(2, 3, 5).half()}, DTYPES),
        ({"a": -torch.ones(3, 4).half()}, DTYPES),
        ({"z": torch.ones(2, 3, 5).double()}, DTYPES),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Tensor], message: str) -> None:
    given: dict[str, Any] = {name: one.float() for name, one in drawn().items()} | changed
    with pytest.raises(ValueError, match=message):
        selective_scan(**given)


@needs_compiler
def test_what_is_not_finite_goes_on_in_its_channel_alone() -> None:
    given: dict[str, Any] = {name: one.float() for name, one in drawn().items()}
    given["x"][0, 1, 2] = float("nan")
    given["dt"][1, 0, 3] = float("inf")
    expected = selective_scan(**given, softplus=True)
    assert expected[0][0, 1, :2].isfinite().all() and expected[0][0, 1, 2:].isnan().all()
    assert expected[0][0, [0, 2]].isfinite().all()
    for got, wanted in zip(run_kernel(selective_scan, *given.values(), True), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_gradients_are_those_of_the_recurrence() -> None:
    for absent in (None, "d", "z", "dt_bias"):
        given = [one if name != absent else None for name, one in drawn(2, 2, 3, 2).items()]
        for softplus in (True, False):
            check_backward(selective_scan, *given, softplus)
