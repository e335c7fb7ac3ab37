"""A small Llama of transformers with random weights: the architecture of the real ones, dynamic batch and sequence.

`layerport build examples/tiny_llama.py:tiny_llama -o tiny_llama.lp` builds it.  Run as a script, this file builds it
into a temporary folder, asserts what became of its layers, and runs the portable model in ONNX Runtime alone.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

LAYERS = 4


class LogitsOnly(torch.nn.Module):
    """The model as a function from token ids to logits, which is what an engine computes."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.model(input_ids=input_ids, use_cache=False).logits}


def tiny_llama(dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, tuple[Any, ...], Any]:
    """The model, its example inputs and its dynamic shapes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # trained norms are not all ones
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    input_ids = torch.randint(0, config.vocab_size, (2, 16))
    shapes = ({0: Dim("batch", min=1, max=8), 1: Dim("sequence", min=1, max=128)},)
    return LogitsOnly(model).eval().to(dtype), (input_ids,), shapes


def tiny_llama_fp16() -> tuple[torch.nn.Module, tuple[Any, ...], Any]:
    """The same in float16."""
    return tiny_llama(torch.float16)


def tiny_llama_bf16() -> tuple[torch.nn.Module, tuple[Any, ...], Any]:
    """The same in bfloat16."""
    return tiny_llama(torch.bfloat16)


def main() -> None:
    import onnxruntime

    import layerport as lp

    source = tiny_llama()
    with tempfile.TemporaryDirectory() as folder:
        report = lp.build(source, Path(folder) / "tiny_llama.lp")
        realised = "function" if report.target.flavour == "portable" else "plugin"
        assert report.counts == {
            "layerport_builtin::rms_norm": {realised: 2 * LAYERS + 1},
            "layerport_builtin::silu_mul": {realised: LAYERS},
            "layerport_builtin::rope": {realised: 2 * LAYERS},
        }, report.counts
        assert report.verification is not None and report.verification.passed
        error = report.verification.outputs[0].max_abs
        assert error <= 1e-4, error

        # The portable model needs no layerport: ONNX Runtime alone runs it, here with other sizes.
        alone = onnxruntime.InferenceSession(report.path / "model.onnx", providers=["CPUExecutionProvider"])
        input_ids = torch.randint(0, 512, (5, 37))
        (logits,) = alone.run(["logits"], {"input_ids": input_ids.numpy()})
        with torch.inference_mode():
            expected = source[0](input_ids)["logits"]
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-4)
    print(f"target {report.target}: {report.counts}, largest error against Torch {error:.2g}")


if __name__ == "__main__":
    main()
