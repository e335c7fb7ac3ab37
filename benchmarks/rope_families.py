"""How many of the rotary embeddings of transformers' models `layerport_builtin::rope` is found in.

    python benchmarks/rope_families.py                 # all of them, a line each
    python benchmarks/rope_families.py -k gptj --why   # some, and what came near

Each model is small, of one block, with random weights.  How many rotations there are is counted while it runs: each
call of a function of its file that rotates counts the tensors that it gives.
Exit code 1: some are not found, of a model that can be exported at all.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers as hf
from torch import Tensor, nn
from torch.export import Dim

BASE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODER = {**BASE, "num_key_value_heads": 2, "head_dim": 16}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DEEPSEEK = {
    **BASE,
    **EXPERTS,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "n_ctx": 64, "rotary_dim": 4}
VISION = {**BASE, "depth": 1, "embed_dim": 64, "num_heads": 4, "image_size": 32, "patch_size": 8}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
GEMMA3N = {
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "laurel_rank": 8,
    "intermediate_size": [64],
    "activation_sparsity_pattern": [0.0],
    "layer_types": ["full_attention"],
}

# By name: the class of the model, that of its configuration, its settings, and how it is fed.
MODELS: dict[str, tuple[str, str, dict[str, Any], str]] = {}


def enter(name: str, settings: dict[str, Any], feed: str = "ids", *, model: str = "", config: str = "") -> None:
    """A model by its name, or by its classes where these are named otherwise."""
    MODELS[name] = (model or f"{name}Model", config or f"{name}Config", settings, feed)


for _name in ("Llama", "Mistral", "Phi3", "Qwen3", "Gemma", "StableLm", "Nemotron", "Olmo2", "Exaone4", "SmolLM3"):
    enter(_name, DECODER)
for _name in ("Granite", "Persimmon", "GPTNeoX", "Cohere", "Glm", "Glm4", "Ernie4_5", "Helium", "NanoChat"):
    enter(_name, DECODER)
PARTLY = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
enter("Phi3, half of the width", {**DECODER, **PARTLY}, model="Phi3Model", config="Phi3Config")
for _name in ("ModernBert", "Esm", "RoFormer"):
    enter(_name, {**BASE, **({"position_embedding_type": "rotary"} if _name == "Esm" else {})})
enter("Falcon", {**BASE, "alibi": False})
enter("Gemma3n", {**DECODER, **GEMMA3N}, model="Gemma3nTextModel", config="Gemma3nTextConfig")
enter("Gemma4", {**DECODER, **GEMMA3N, "intermediate_size": 64}, model="Gemma4TextModel", config="Gemma4TextConfig")
enter("GPTJ", GPT)
enter("CodeGen", GPT)
enter("GptOss", {**DECODER, **EXPERTS})
enter("DeepseekV2", DEEPSEEK)
enter("DeepseekV3", DEEPSEEK)
enter("Llama4", {**DECODER, **EXPERTS, "intermediate_size_mlp": 64}, model="Llama4TextModel", config="Llama4TextConfig")
enter("Qwen2.5-VL", {**DECODER, **MROPE}, model="Qwen2_5_VLTextModel", config="Qwen2_5_VLTextConfig")
enter(
    "Chameleon",
    {
        **DECODER,
        "vocab_size": 80,
        "vq_config": {"base_channels": 32, "num_res_blocks": 1, "channel_multiplier": [1], "resolution": 32},
        "vocabulary_map": {"<image>": 70, "IMGIMGA": 71, "IMGIMGB": 72},
    },
)
enter("Qwen2-VL vision", VISION, "grid", model="Qwen2VisionTransformerPretrainedModel", config="Qwen2VLVisionConfig")
SHUFFLED = {"intermediate_size": 256, "projector_input_dim": 64, "projector_output_dim": 64}
enter("Llama4 vision", {**VISION, **SHUFFLED}, "image", model="Llama4VisionModel", config="Llama4VisionConfig")
enter("Pixtral", VISION, "one image", model="PixtralVisionModel", config="PixtralVisionConfig")
enter("DINOv3", VISION, "image", model="DINOv3ViTModel", config="DINOv3ViTConfig")
VIDEO = {"crop_size": 32, "frames_per_clip": 2, "mlp_ratio": 2.0}
PREDICTOR = {"pred_hidden_size": 64, "pred_num_attention_heads": 4, "pred_num_hidden_layers": 1}
enter("VJEPA2", {**VISION, **VIDEO, **PREDICTOR}, "video")
SOUND = {
    "position_embeddings_type": "rotary",
    "conv_dim": [16],
    "conv_kernel": [4],
    "conv_stride": [4],
    "num_feat_extract_layers": 1,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
enter("Wav2Vec2Conformer", {**BASE, **SOUND}, "audio")

# Their code reads sizes from their inputs, at which torch.export stops.
NOT_EXPORTED = ("Qwen2-VL vision",)
# What rotates, by the name that a model's file gives it.
FUNCTIONS = (
    *("apply_rotary_pos_emb", "apply_rotary_pos_emb_interleave", "apply_rotary_pos_emb_vision", "apply_rotary_emb"),
    *("vision_apply_rotary_emb", "rotate_queries_or_keys"),
)
METHODS = ("apply_rotary_position_embeddings", "_apply_rotary_embedding")


class Run(nn.Module):
    """A model as a function of one tensor, without what it keeps for a next token."""

    def __init__(self, model: nn.Module, feed: str) -> None:
        super().__init__()
        self.model, self.feed = model, feed

    def forward(self, x: Tensor) -> Tensor:
        if self.feed == "ids":
            result = self.model(x, **({} if "Bert" in type(self.model).__name__ else {"use_cache": False}))
        elif self.feed == "grid":
            result = self.model(x, grid_thw=torch.tensor([[1, 4, 4]]))
        elif self.feed == "video":
            result = self.model(x, skip_predictor=True)
        else:
            result = self.model(x)
        states: Tensor = result.last_hidden_state if hasattr(result, "last_hidden_state") else result
        return states


def made(name: str, dtype: torch.dtype) -> tuple[nn.Module, tuple[Tensor], Any]:
    """A model, its inputs, and which of their sizes change."""
    model, config, settings, feed = MODELS[name]
    torch.manual_seed(0)
    kind = getattr(hf, model, None) or _within(model)
    built = kind((getattr(hf, config, None) or _within(config))(**settings)).eval()
    if hasattr(built, "set_experts_implementation"):
        built.set_experts_implementation("batched_mm")
    batch = Dim("batch", min=1, max=8)
    with torch.no_grad():
        for parameter in built.parameters():  # fresh biases are zeros
            if parameter.ndim == 1 and parameter.is_floating_point():
                parameter.uniform_(0.2, 0.8)
    inputs, shapes = {
        "ids": lambda: (torch.randint(3, 64, (2, 12)), {0: batch, 1: Dim("sequence", min=1, max=32)}),
        "image": lambda: (torch.randn(2, 3, 32, 32), {0: batch}),
        "one image": lambda: (torch.randn(1, 3, 32, 32), None),
        "video": lambda: (torch.randn(2, 2, 3, 32, 32), {0: batch}),
        "grid": lambda: (torch.randn(16, 3 * 2 * 64), None),
        "audio": lambda: (torch.randn(2, 400), {0: batch}),
    }[feed]()
    inputs = inputs if feed == "ids" else inputs.to(dtype)
    # Torch casts complex buffers to real ones, without their imaginary parts.
    turns = {name: buffer.clone() for name, buffer in built.named_buffers() if buffer.is_complex()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built.to(dtype)
    for name, buffer in turns.items():
        owner, _, own = name.rpartition(".")
        setattr(built.get_submodule(owner), own, buffer)
    return Run(built, feed), (inputs,), (shapes,)


def _within(name: str) -> Any:
    """A class that transformers does not hand out at its top."""
    files = {"Llama4": "llama4", "Pixtral": "pixtral", "Qwen2": "qwen2_vl"}
    stem = next(one for start, one in files.items() if name.startswith(start))
    for kind in ("modeling", "configuration"):
        found = getattr(import_module(f"transformers.models.{stem}.{kind}_{stem}"), name, None)
        if found is not None:
            return found
    raise LookupError(name)


@contextmanager
def counted(model: nn.Module) -> Iterator[list[str]]:
    """Notes the tensors that rotate, by the function that gives them, while the model runs."""
    seen: list[str] = []
    put: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, function: Any) -> None:
        def run(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            seen.extend([name] * (len(result) if isinstance(result, tuple) else 1))
            return result

        put.append((owner, name, vars(owner)[name]))
        setattr(owner, name, staticmethod(run) if isinstance(put[-1][2], staticmethod) else run)

    every = {kind for one in model.modules() for kind in type(one).__mro__}
    kinds = [kind for kind in every if kind.__module__.startswith("transformers.models")]
    for file in {sys.modules[kind.__module__] for kind in kinds}:
        for name in FUNCTIONS:
            if callable(vars(file).get(name)):
                replace(file, name, getattr(file, name))
    for kind in kinds:
        for name in METHODS:
            if name in vars(kind):
                replace(kind, name, getattr(kind, name))
    try:
        yield seen
    finally:
        for owner, name, value in put:
            setattr(owner, name, value)


EMPTY: dict[str, Any] = {"there": 0, "found": 0, "how": [], "note": ""}


def measure(name: str, dtype: torch.dtype, *, why: bool) -> dict[str, Any]:
    """How many rotations a model has, and how many are found."""
    from layerport_builtin_layers.rope import rope
    from searched import search_in

    model, args, shapes = made(name, dtype)
    with counted(model) as there, torch.no_grad():
        model(*args)
    row: dict[str, Any] = {**EMPTY, "there": len(there)}
    try:
        findings, _ = search_in(model, args, [rope], shapes)
    except Exception as error:
        return {**row, "note": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:150]}"}
    row["found"] = len(findings.places)
    row["how"] = sorted({f"{one.attributes['form']}, {one.grade}" for one in findings.places})
    if why:
        row["note"] = "\n".join([*map(str, findings.misses), *findings.absent.values()])
    return row


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", action="append", help="only models with this in their name")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--why", action="store_true")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    print(f"transformers {hf.__version__}, torch {torch.__version__}, {options.dtype}", flush=True)
    short = 0
    for name in MODELS:
        if options.k and not any(part.lower() in name.lower() for part in options.k):
            continue
        begun = time.perf_counter()
        try:
            row = measure(name, getattr(torch, options.dtype), why=options.why)
        except Exception as error:  # transformers' own
            row = {**EMPTY, "note": f"{type(error).__name__}: {str(error)[:400]}"}
        short += name not in NOT_EXPORTED and (not row["there"] or row["found"] != row["there"])
        seconds = time.perf_counter() - begun
        print(f"{name}: {row['found']} of {row['there']}  {row['how']}  ({seconds:.1f} s)  {row['note']}", flush=True)
    return 1 if short else 0


if __name__ == "__main__":
    raise SystemExit(main())
