"""Audio models of transformers: speech encoders, recognisers, codecs, synthesis."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from zoo.cases import ids, zoo

SPEECH = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "conv_dim": [16, 16],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
SAMPLES = (400, 600, 250)


def waves(batch: int, samples: int) -> dict[str, Tensor]:
    """Raw audio."""
    return {"input_values": torch.randn(batch, samples)}


def enter(name: str, model: str, **more: Any) -> None:
    """One encoder of raw audio."""

    @zoo(name, samples=SAMPLES)
    def make() -> tuple[nn.Module, Any]:
        model_class = getattr(hf, model)
        return model_class(model_class.config_class(**SPEECH, **more)), waves


enter("wav2vec2", "Wav2Vec2Model")
enter("wav2vec2-ctc", "Wav2Vec2ForCTC", feat_extract_norm="layer", do_stable_layer_norm=True)
enter("hubert", "HubertModel")
enter("wavlm", "WavLMModel")
enter("data2vec-audio", "Data2VecAudioModel", conv_pos_kernel_size=3)


@zoo("whisper", tokens=(6, 9))
def whisper() -> tuple[nn.Module, Any]:
    config = hf.WhisperConfig(
        vocab_size=99,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=32,
        use_cache=False,
        pad_token_id=0,
    )

    def inputs(batch: int, tokens: int) -> dict[str, Tensor]:
        return {"input_features": torch.randn(batch, 8, 40), "decoder_input_ids": ids(batch, tokens)}

    return hf.WhisperModel(config), inputs


@zoo("audio-spectrogram-transformer")
def spectrogram() -> tuple[nn.Module, Any]:
    config = hf.ASTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_length=32,
        num_mel_bins=16,
        patch_size=8,
        time_stride=4,
        frequency_stride=4,
    )
    return hf.ASTModel(config), lambda batch: {"input_values": torch.randn(batch, 32, 16)}


@zoo("encodec", samples=320)
def encodec() -> tuple[nn.Module, Any]:
    config = hf.EncodecConfig(
        num_filters=4, hidden_size=16, upsampling_ratios=[4, 2], codebook_size=16, codebook_dim=16, num_lstm_layers=1
    )

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = hf.EncodecModel(config).encoder

        def forward(self, wave: Tensor) -> Tensor:
            return self.encoder(wave)

    return Encoder(), lambda batch, samples: {"wave": torch.randn(batch, 1, samples)}


@zoo("vocoder", frames=(10, 17))
def vocoder() -> tuple[nn.Module, Any]:
    config = hf.SpeechT5HifiGanConfig(
        model_in_dim=8,
        upsample_initial_channel=16,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
    )
    return hf.SpeechT5HifiGan(config), lambda batch, frames: {"spectrogram": torch.randn(batch, frames, 8)}


@zoo("patchtst")
def patchtst() -> tuple[nn.Module, Any]:
    config = hf.PatchTSTConfig(
        num_input_channels=2,
        context_length=32,
        patch_length=8,
        patch_stride=8,
        d_model=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=32,
        prediction_length=4,
    )
    return hf.PatchTSTForPrediction(config), lambda batch: {"past_values": torch.randn(batch, 32, 2)}
