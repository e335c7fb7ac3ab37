"""A transformers Llama through the whole pipeline with the built-in pack: the main promise of the project."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.export import Dim

import layerport as lp
from layerport import building
from layerport.commands.reports import inspect_bundle
from small_setup import ENGINE, Built

pytest.importorskip("layerport_builtin_layers")
transformers = pytest.importorskip("transformers")

LAYERS = 2


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def llama(layers: int = LAYERS, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, tuple[Any, ...], Any]:
    """A small Llama with tied embeddings and norms that are not all ones."""
    config = transformers.LlamaConfig(
        vocab_size=160,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    ids = torch.randint(0, config.vocab_size, (2, 12))
    shapes = ({0: Dim("batch", min=1, max=8), 1: Dim("sequence", min=1, max=64)},)
    return Logits(model).eval().to(dtype), (ids,), shapes


@pytest.fixture(scope="session")
def built(once: Any) -> Built:
    return once("llama", lambda path: building.build(llama(), path, target=ENGINE))


def test_every_norm_and_every_gate_is_a_plugin(built: Built) -> None:
    summary = json.loads(json.dumps(inspect_bundle(built.path).to_json()))
    assert summary["counts"] == {
        "layerport_builtin::rms_norm": {"plugin": 2 * LAYERS + 1},
        "layerport_builtin::silu_mul": {"plugin": LAYERS},
        "layerport_builtin::rope": {"plugin": 2 * LAYERS},
    }
    assert {one["realised"] for one in summary["layers"]} == {"plugin"}
    assert {one["pack"] for one in summary["layers"]} == {"builtin_layers"}
    assert summary["targets"][0]["plugins"] == 5 * LAYERS + 1
    assert [one["status"] for one in summary["claims"]] == ["claimed"] * (2 * LAYERS + 1)
    assert {one["layer"]: one["via"] for one in summary["layers"]} == {
        "layerport_builtin::rms_norm": "module",
        "layerport_builtin::silu_mul": "found",
        "layerport_builtin::rope": "found",
    }
    assert [(dim["name"], dim["min"], dim["max"]) for dim in summary["dims"]] == [
        ("batch", 1, 8),
        ("sequence", 1, 64),
    ]


def test_it_agrees_with_torch(built: Built) -> None:
    (output,) = lp.verify(built.path).outputs
    assert output.passed and output.max_abs <= 1e-4


def test_the_plan_s_process_has_neither_torch_nor_a_pack(built: Built) -> None:
    loaded = set(built.build_modules)
    assert not loaded & {"torch", "transformers", "layerport_builtin_layers", "onnx_ir", "onnxscript"}
    assert "tensorrt_rtx" in loaded


def test_tied_embeddings_are_stored_once(built: Built) -> None:
    model = onnx.load(built.path / "model.onnx")
    tables = [one.name for one in model.graph.initializer if sorted(one.dims) == [64, 160]]
    assert len(tables) == 1
    assert sum(len(one.raw_data) for one in model.graph.initializer) < 1.2 * sum(
        parameter.nbytes for parameter in llama()[0].parameters()
    )


ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("layerport", "layerport_builtin_layers", "torch"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
for place, file in enumerate(sys.argv[2:]):
    (logits,) = session.run(None, {"input_ids": numpy.load(file)})
    numpy.save(file.replace("ids", "logits"), logits)
"""


def test_onnxruntime_alone_runs_it_at_other_sizes(built: Built, tmp_path: Path) -> None:
    model, _, _ = llama()
    sizes = [(1, 1), (1, 33), (5, 7), (8, 64)]
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randint(0, 160, size, generator=generator) for size in sizes]
    files = []
    for place, ids in enumerate(inputs):
        np.save(tmp_path / f"ids{place}.npy", ids.numpy())
        files.append(str(tmp_path / f"ids{place}.npy"))
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(built.path / "model.onnx"), *files],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for place, ids in enumerate(inputs):
        with torch.no_grad():
            want = model(ids).numpy()
        np.testing.assert_allclose(np.load(tmp_path / f"logits{place}.npy"), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    report = building.build(llama(1, dtype), tmp_path / "a.lp", target=ENGINE)
    assert report.counts == {
        "layerport_builtin::rms_norm": {"plugin": 3},
        "layerport_builtin::silu_mul": {"plugin": 1},
        "layerport_builtin::rope": {"plugin": 2},
    }
    assert report.verification is not None and report.verification.passed, report.verification


def test_decompose_says_why(tmp_path: Path) -> None:
    report = building.build(llama(1), tmp_path / "a.lp", target=ENGINE, decompose=["layerport_builtin::rms_norm"])
    assert report.counts == {
        "layerport_builtin::rms_norm": {"decomposed": 3},
        "layerport_builtin::silu_mul": {"plugin": 1},
        "layerport_builtin::rope": {"plugin": 2},
    }
    assert {one.reason for one in report.layers if one.realised == "decomposed"} == {
        "--decompose layerport_builtin::rms_norm"
    }
    assert b"layerport_builtin::rms_norm" not in (tmp_path / "a.lp" / "rtx-sm_89.plan").read_bytes()
