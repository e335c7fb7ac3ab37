"""Layers found in models of transformers: as many as there are, which is counted while the model runs.

Each family is searched in one dtype, with one block; `tox run -e families` takes all of it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.overrides import TorchFunctionMode

import layerport as lp
from layerport.layers.layer import Layer
from searched import search_in

pytest.importorskip("layerport_builtin_layers")
transformers = pytest.importorskip("transformers")

from layerport_builtin_layers.add_rms_norm import add_rms_norm  # noqa: E402
from layerport_builtin_layers.gelu_mul import gelu_mul  # noqa: E402
from layerport_builtin_layers.layer_norm import layer_norm  # noqa: E402
from layerport_builtin_layers.rms_norm import rms_norm  # noqa: E402
from layerport_builtin_layers.rope import rope  # noqa: E402
from layerport_builtin_layers.silu_mul import silu_mul  # noqa: E402

LAYERS: tuple[Layer, ...] = (rms_norm, add_rms_norm, silu_mul, rope, gelu_mul, layer_norm)
ASKED = tuple(layer.name for layer in LAYERS)
EVERY = bool(os.environ.get("LAYERPORT_TEST_FAMILIES"))
SIZES = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2 if EVERY else 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
NO_HEAD = {name: value for name, value in SIZES.items() if name != "head_dim"}
FAMILIES = {
    "Llama": ("LlamaModel", "LlamaConfig", SIZES),
    "Qwen3": ("Qwen3Model", "Qwen3Config", SIZES),
    "Gemma": ("GemmaModel", "GemmaConfig", SIZES),
    "Mistral": ("MistralModel", "MistralConfig", SIZES),
    "Phi3": ("Phi3Model", "Phi3Config", SIZES),
    "OLMo2": ("Olmo2Model", "Olmo2Config", SIZES),
    "GPT-NeoX": (
        "GPTNeoXModel",
        "GPTNeoXConfig",
        {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}},
    ),
    "Falcon": ("FalconModel", "FalconConfig", {**NO_HEAD, "alibi": False, "num_kv_heads": 1}),
    "BERT": ("BertModel", "BertConfig", SIZES),
    "T5": (
        "T5EncoderModel",
        "T5Config",
        {"vocab_size": 64, "d_model": 48, "d_ff": 80, "d_kv": 16, "num_heads": 4, "num_layers": 2 if EVERY else 1,
         "feed_forward_proj": "gated-gelu"},
    ),
    "ModernBERT": ("ModernBertModel", "ModernBertConfig", NO_HEAD),
    "ViT": ("ViTModel", "ViTConfig", {**SIZES, "image_size": 8, "patch_size": 4}),
}  # fmt: skip


class Hidden(nn.Module):
    """A model as a function from token ids, or pictures, to hidden states."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model = model
        self._options = {} if name in ("BERT", "T5", "ModernBERT", "ViT") else {"use_cache": False}

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.model(x, **self._options).last_hidden_state
        return states


def model_of(name: str, dtype: torch.dtype) -> tuple[nn.Module, tuple[Tensor], Any]:
    model_class, config_class, sizes = FAMILIES[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # fresh norms are ones or zeros
            if parameter.ndim == 1:
                parameter.uniform_(0.2, 0.8)
    batch = Dim("batch", min=1, max=8)
    if name == "ViT":
        return Hidden(model, name).to(dtype), (torch.randn(2, 3, 8, 8).to(dtype),), ({0: batch},)
    ids = torch.randint(1, 64, (2, 12))
    return Hidden(model, name).to(dtype), (ids,), ({0: batch, 1: Dim("sequence", min=1, max=64)},)


class Sums(TorchFunctionMode):
    """Remembers the sums of two tensors of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (Tensor.add, torch.add) and getattr(args[1], "shape", None) == args[0].shape:
            self.made.append(result)
        return result


@contextmanager
def counted(model: nn.Module) -> Iterator[Counter[str]]:
    """Counts, while the model runs, the calls of norms, of gates in its MLPs, and of functions that rotate."""
    counts: Counter[str] = Counter()
    handles = []
    sums = Sums()

    def count(name: str) -> Any:
        def hook(*args: Any) -> None:
            counts[name] += 1

        return hook

    def count_rms_norm(module: nn.Module, args: Any, output: Tensor) -> None:
        counts[(add_rms_norm if any(args[0] is one for one in sums.made) else rms_norm).name] += 1

    modules = {type(one).__module__ for one in model.modules() if type(one).__module__.startswith("transformers")}
    for one in model.modules():
        kind = type(one).__name__
        if kind.endswith("RMSNorm") or kind == "T5LayerNorm":
            handles.append(one.register_forward_hook(count_rms_norm))
        elif isinstance(one, nn.LayerNorm):
            handles.append(one.register_forward_hook(count(layer_norm.name)))
        elif hasattr(one, "up_proj") or hasattr(one, "gate_up_proj") or hasattr(one, "wi_1") or kind == "ModernBertMLP":
            gate = getattr(one, "act_fn", None) or getattr(one, "activation_fn", None) or one.act
            gated = silu_mul if "SiLU" in type(gate).__name__ else gelu_mul
            handles.append(one.register_forward_hook(count(gated.name)))
    with pytest.MonkeyPatch.context() as patch, sums:
        for name in modules:
            module = import_module(name)
            original = getattr(module, "apply_rotary_pos_emb", None)
            if original is not None:

                def rotated(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
                    counts[rope.name] += 2
                    return _original(*args, **kwargs)

                patch.setattr(module, "apply_rotary_pos_emb", rotated)
        yield counts
    for handle in handles:
        handle.remove()


DTYPES = (torch.float32, torch.bfloat16)
CASES = [
    (name, dtype)
    for place, name in enumerate(FAMILIES)
    for turn, dtype in enumerate(DTYPES)
    if EVERY or place % 2 == turn
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_as_many_are_found_as_there_are(name: str, dtype: torch.dtype) -> None:
    model, args, shapes = model_of(name, dtype)
    with counted(model) as wanted, torch.no_grad():
        model(*args)
    findings, _ = search_in(model, args, LAYERS, shapes, asked=ASKED)
    assert Counter(one.layer for one in findings.places) == wanted, findings.misses
    assert wanted.total() >= 3
    if dtype == torch.float32:
        assert all(one.error is None or one.error < 1e-5 for one in findings.places)


BUILDS = [("GPT-NeoX", torch.float32), ("Gemma", torch.bfloat16)]


@pytest.mark.parametrize(("name", "dtype"), BUILDS if EVERY else BUILDS[:1])
def test_a_plan_with_plugins_agrees_with_torch_as_well_as_without_the_search(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    errors = []
    for place, refused in enumerate(((), [layer.name for layer in (rms_norm, silu_mul, rope)])):
        target = "portable" if refused else "rtx:sm_89"
        report = lp.build(
            model_of(name, dtype), tmp_path / f"{place}.lp", target=target, no_find=refused, no_claim=refused
        )
        assert report.verification is not None and report.verification.passed
        errors.append(report.verification.outputs[0].max_abs)
        assert bool(report.found) != bool(refused)
        ropes = {(one.via, one.realised) for one in report.layers if one.layer == rope.name}
        assert ropes == (set() if refused else {("found", "plugin")})
    assert errors[0] <= 2 * errors[1] + (1e-5 if dtype == torch.float32 else 5e-2)
