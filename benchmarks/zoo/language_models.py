"""Language models of transformers: encoders, decoders, both, state spaces, mixtures of experts."""

from __future__ import annotations

from typing import Any

import transformers as hf
from torch import Tensor, nn

from zoo.cases import SIZES, ids, mask, zoo

SEQUENCE = SIZES["sequence"]
BASE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODER = {**BASE, "num_key_value_heads": 2, "head_dim": 8, "use_cache": False}
T5 = {
    "vocab_size": 99,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
SHORT = {"vocab_size": 99, "use_cache": False}
BOTH = {
    **SHORT,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
DEEPSEEK = {
    "use_cache": False,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def encoder_inputs(batch: int, sequence: int) -> dict[str, Tensor]:
    """Ids and a mask."""
    return {"input_ids": ids(batch, sequence), "attention_mask": mask(batch, sequence)}


def decoder_inputs(batch: int, sequence: int) -> dict[str, Tensor]:
    """Ids alone: the causal mask is the model's."""
    return {"input_ids": ids(batch, sequence)}


def both_inputs(batch: int, sequence: int) -> dict[str, Tensor]:
    """What an encoder and its decoder get, the decoder a fixed number of tokens."""
    return {"input_ids": ids(batch, sequence), "decoder_input_ids": ids(batch, 5)}


def enter(name: str, model: str, inputs: Any, settings: dict[str, Any], experts: str | None = None) -> None:
    """One model; a `sequence` among the settings keeps that dim static.  experts: how a mixture runs its experts."""
    length = settings.pop("sequence", SEQUENCE)

    @zoo(name, sequence=length)
    def make() -> tuple[nn.Module, Any]:
        model_class = getattr(hf, model)
        made = model_class(model_class.config_class(**settings))
        if experts:
            made.set_experts_implementation(experts)
        return made, inputs


for _name in ("Bert", "Roberta", "Electra", "Camembert", "MPNet", "RoFormer", "Ernie", "NomicBert"):
    enter(_name.lower(), f"{_name}Model", encoder_inputs, {**BASE})
enter("bert-masked-lm", "BertForMaskedLM", encoder_inputs, {**BASE})
enter("albert", "AlbertModel", encoder_inputs, {**BASE, "embedding_size": 16})
enter(
    "distilbert", "DistilBertModel", encoder_inputs, {**SHORT, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
)
enter(
    "deberta-v2", "DebertaV2Model", encoder_inputs, {**BASE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
)
enter("modernbert", "ModernBertModel", encoder_inputs, {**BASE, "global_attn_every_n_layers": 2, "local_attention": 8})
enter("fnet", "FNetModel", decoder_inputs, {**BASE})
enter("mobilebert", "MobileBertModel", encoder_inputs, {**BASE, "embedding_size": 32, "intra_bottleneck_size": 32})

for _name in ("Llama", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Mistral", "Phi3", "Olmo2", "Granite", "Cohere", "Glm4"):
    enter(_name.lower(), f"{_name}ForCausalLM", decoder_inputs, {**DECODER})
for _name in ("StableLm", "Starcoder2", "GPTNeoX", "SmolLM3", "Nemotron"):
    enter(_name.lower(), f"{_name}ForCausalLM", decoder_inputs, {**DECODER})
enter("gemma3", "Gemma3ForCausalLM", decoder_inputs, {**DECODER, "sliding_window": 8})
enter("llama-mask", "LlamaModel", encoder_inputs, {**DECODER})
enter("falcon", "FalconForCausalLM", decoder_inputs, {**BASE, "use_cache": False})
enter("gpt2", "GPT2LMHeadModel", decoder_inputs, {**SHORT, "n_embd": 32, "n_layer": 2, "n_head": 4})
enter("gptj", "GPTJForCausalLM", decoder_inputs, {**SHORT, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4})
enter("opt", "OPTForCausalLM", decoder_inputs, {**DECODER, "ffn_dim": 64, "word_embed_proj_dim": 32})
enter("bloom", "BloomForCausalLM", encoder_inputs, {**SHORT, "hidden_size": 32, "n_layer": 2, "n_head": 4})

# Their scans are loops over the example's length.
SCAN = {**BASE, "use_cache": False, "state_size": 8, "sequence": 12}
enter("mamba", "MambaForCausalLM", decoder_inputs, {**SCAN})
enter(
    "mamba2",
    "Mamba2ForCausalLM",
    decoder_inputs,
    {**SCAN, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
)
enter("falcon-mamba", "FalconMambaForCausalLM", decoder_inputs, {**SCAN})
STATES = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 8, "sequence": 12}
enter("bamba", "BambaForCausalLM", decoder_inputs, {**DECODER, **STATES, "attn_layer_indices": [1]})
enter(
    "zamba2",
    "Zamba2ForCausalLM",
    decoder_inputs,
    {
        **BASE,
        "use_cache": False,
        "num_key_value_heads": 4,
        "mamba_d_state": 16,
        "mamba_ngroups": 2,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "chunk_size": 8,
        "sequence": 12,
        "layers_block_type": ["mamba", "hybrid"],
        "num_mem_blocks": 1,
        "adapter_rank": 4,
    },
)
GRIFFIN = {"lru_width": 32, "attention_window_size": 8, "sequence": 12}
enter("recurrent-gemma", "RecurrentGemmaForCausalLM", decoder_inputs, {**DECODER, **GRIFFIN})

enter("t5", "T5Model", both_inputs, {**T5})
enter("t5-encoder", "T5EncoderModel", encoder_inputs, {**T5})
enter("mt5", "MT5ForConditionalGeneration", both_inputs, {**T5})
enter("bart", "BartModel", both_inputs, {**BOTH})
enter("marian", "MarianMTModel", both_inputs, {**BOTH, "pad_token_id": 0, "decoder_start_token_id": 0})

# As they come they run through an operator that has no ONNX form; so does the last.
for _name in ("Mixtral", "Qwen3Moe", "Olmoe", "GptOss"):
    enter(_name.lower(), f"{_name}ForCausalLM", decoder_inputs, {**DECODER, **EXPERTS}, experts="batched_mm")
enter("deepseek-v3", "DeepseekV3ForCausalLM", decoder_inputs, {**BASE, **EXPERTS, **DEEPSEEK}, experts="batched_mm")
enter("mixtral-as-it-comes", "MixtralForCausalLM", decoder_inputs, {**DECODER, **EXPERTS})
