"""Models of diffusers: denoisers and autoencoders.  Their outputs are records."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from zoo.cases import image, zoo

BLOCKS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
SIDES = (16, 24, 8)


def times(batch: int) -> Tensor:
    """One time step for each sample."""
    return torch.randint(0, 900, (batch,)).float()


@zoo("unet-2d-condition", height=SIDES, width=(16, 8, 24), tokens=(7, 5, 11))
def unet_condition() -> tuple[nn.Module, Any]:
    model = diffusers.UNet2DConditionModel(
        **BLOCKS,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    )

    def inputs(batch: int, height: int, width: int, tokens: int) -> dict[str, Tensor]:
        return {
            "sample": image(batch, height, width, 4),
            "timestep": times(batch),
            "encoder_hidden_states": torch.randn(batch, tokens, 32),
        }

    return model, inputs


@zoo("unet-2d")
def unet() -> tuple[nn.Module, Any]:
    model = diffusers.UNet2DModel(
        **BLOCKS,
        sample_size=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )
    return model, lambda batch: {"sample": image(batch, 16), "timestep": times(batch)}


@zoo("controlnet")
def controlnet() -> tuple[nn.Module, Any]:
    model = diffusers.ControlNetModel(
        **BLOCKS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        conditioning_embedding_out_channels=(8, 16),
    )

    def inputs(batch: int) -> dict[str, Tensor]:
        return {
            "sample": image(batch, 16, channels=4),
            "timestep": times(batch),
            "encoder_hidden_states": torch.randn(batch, 7, 32),
            "controlnet_cond": image(batch, 32),
        }

    return model, inputs


AUTOENCODER = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, **BLOCKS}


@zoo("autoencoder-kl", height=(32, 48, 16), width=(32, 16, 64))
def autoencoder() -> tuple[nn.Module, Any]:
    return diffusers.AutoencoderKL(**AUTOENCODER), lambda batch, height, width: {"sample": image(batch, height, width)}


@zoo("autoencoder-tiny", height=(32, 48), width=(32, 64))
def autoencoder_tiny() -> tuple[nn.Module, Any]:
    model = diffusers.AutoencoderTiny(encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8))
    return model, lambda batch, height, width: {"sample": image(batch, height, width)}


@zoo("vq-model")
def vq() -> tuple[nn.Module, Any]:
    return diffusers.VQModel(**AUTOENCODER, num_vq_embeddings=16), lambda batch: {"sample": image(batch, 32)}


@zoo("sd3", tokens=(7, 5, 11))
def sd3() -> tuple[nn.Module, Any]:
    model = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=16,
    )

    def inputs(batch: int, tokens: int) -> dict[str, Tensor]:
        return {
            "hidden_states": image(batch, 16, channels=4),
            "encoder_hidden_states": torch.randn(batch, tokens, 32),
            "pooled_projections": torch.randn(batch, 16),
            "timestep": times(batch),
        }

    return model, inputs


@zoo("flux", latents=(16, 36, 9), tokens=(7, 5, 11))
def flux() -> tuple[nn.Module, Any]:
    model = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )

    def inputs(batch: int, latents: int, tokens: int) -> dict[str, Tensor]:
        return {
            "hidden_states": torch.randn(batch, latents, 16),
            "encoder_hidden_states": torch.randn(batch, tokens, 32),
            "pooled_projections": torch.randn(batch, 16),
            "timestep": torch.rand(batch),
            "img_ids": torch.randn(latents, 3).round(),
            "txt_ids": torch.zeros(tokens, 3),
        }

    return model, inputs


@zoo("dit")
def dit() -> tuple[nn.Module, Any]:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        num_layers=2,
        sample_size=16,
        norm_num_groups=8,
        num_embeds_ada_norm=10,
    )

    def inputs(batch: int) -> dict[str, Tensor]:
        return {
            "hidden_states": image(batch, 16, channels=4),
            "timestep": torch.randint(0, 9, (batch,)),
            "class_labels": torch.randint(0, 9, (batch,)),
        }

    return model, inputs


@zoo("pixart", tokens=(7, 5))
def pixart() -> tuple[nn.Module, Any]:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=16,
        cross_attention_dim=32,
        caption_channels=24,
        use_additional_conditions=False,
    )

    def inputs(batch: int, tokens: int) -> dict[str, Any]:
        return {
            "hidden_states": image(batch, 16, channels=4),
            "encoder_hidden_states": torch.randn(batch, tokens, 24),
            "timestep": times(batch),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }

    return model, inputs


@zoo("sana", tokens=(7, 5))
def sana() -> tuple[nn.Module, Any]:
    model = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=4,
        cross_attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=24,
        sample_size=8,
    )

    def inputs(batch: int, tokens: int) -> dict[str, Tensor]:
        return {
            "hidden_states": image(batch, 8, channels=4),
            "encoder_hidden_states": torch.randn(batch, tokens, 24),
            "timestep": times(batch),
        }

    return model, inputs


@zoo("prior")
def prior() -> tuple[nn.Module, Any]:
    model = diffusers.PriorTransformer(
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        embedding_dim=16,
        num_embeddings=7,
        additional_embeddings=4,
    )

    def inputs(batch: int) -> dict[str, Tensor]:
        return {
            "hidden_states": torch.randn(batch, 16),
            "timestep": times(batch),
            "proj_embedding": torch.randn(batch, 16),
            "encoder_hidden_states": torch.randn(batch, 7, 16),
        }

    return model, inputs
