"""Models of transformers that take text and images."""

from __future__ import annotations

import os
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from zoo.cases import ids, image, mask, zoo

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "eos_token_id": 98,
    "pad_token_id": 0,
    "bos_token_id": 1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def pair(texts: int, images: int, sequence: int) -> dict[str, Tensor]:
    """Texts and images, as many of each as you like."""
    return {"input_ids": ids(texts, sequence), "pixel_values": image(images), "attention_mask": mask(texts, sequence)}


@zoo("clip", batch=1, texts=(3, 2, 1), images=(3, 5, 4), sequence=(12, 7, 21))
def clip() -> tuple[nn.Module, Any]:
    config = hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    return hf.CLIPModel(config), lambda batch, texts, images, sequence: pair(texts, images, sequence)


@zoo("clip-text", sequence=(12, 7, 21))
def clip_text() -> tuple[nn.Module, Any]:
    model = hf.CLIPTextModelWithProjection(hf.CLIPTextConfig(**TEXT, projection_dim=16))
    return model, lambda batch, sequence: {"input_ids": ids(batch, sequence), "attention_mask": mask(batch, sequence)}


@zoo("clip-vision")
def clip_vision() -> tuple[nn.Module, Any]:
    model = hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**VISION, projection_dim=16))
    return model, lambda batch: {"pixel_values": image(batch)}


@zoo("siglip", batch=1, texts=(3, 2, 1), images=(3, 5, 4), sequence=(12, 7, 21))
def siglip() -> tuple[nn.Module, Any]:
    config = hf.SiglipConfig(text_config=TEXT, vision_config=VISION)
    return hf.SiglipModel(config), lambda batch, texts, images, sequence: pair(texts, images, sequence)


@zoo("altclip-text", sequence=(12, 7, 21))
def chinese_clip() -> tuple[nn.Module, Any]:
    config = hf.ChineseCLIPConfig(text_config={**TEXT, "type_vocab_size": 2}, vision_config=VISION, projection_dim=16)
    return hf.ChineseCLIPModel(config).text_model, lambda batch, sequence: {
        "input_ids": ids(batch, sequence),
        "attention_mask": mask(batch, sequence),
    }


@zoo("clipseg", sequence=(12, 7))
def clipseg() -> tuple[nn.Module, Any]:
    config = hf.CLIPSegConfig(
        text_config=TEXT,
        vision_config=VISION,
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=16,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=32,
    )
    return hf.CLIPSegForImageSegmentation(config), lambda batch, sequence: {
        "input_ids": ids(batch, sequence),
        "pixel_values": image(batch),
        "attention_mask": mask(batch, sequence),
    }


@zoo("owlvit", sequence=(12, 7))
def owlvit() -> tuple[nn.Module, Any]:
    config = hf.OwlViTConfig(text_config=TEXT, vision_config=VISION, projection_dim=32)
    return hf.OwlViTModel(config), lambda batch, sequence: {
        "input_ids": ids(batch, sequence),
        "pixel_values": image(batch),
        "attention_mask": mask(batch, sequence),
    }


@zoo("blip-vqa-vision")
def blip_vision() -> tuple[nn.Module, Any]:
    return hf.BlipVisionModel(hf.BlipVisionConfig(**VISION)), lambda batch: {"pixel_values": image(batch)}


@zoo("vilt", sequence=(12, 7))
def vilt() -> tuple[nn.Module, Any]:
    config = hf.ViltConfig(**{**VISION, **TEXT}, max_image_length=-1)

    def inputs(batch: int, sequence: int) -> dict[str, Tensor]:
        return {
            "input_ids": ids(batch, sequence),
            "pixel_values": image(batch),
            "pixel_mask": torch.ones(batch, 32, 32, dtype=torch.int64),
        }

    return hf.ViltModel(config), inputs


@zoo("git", batch=2)
def git() -> tuple[nn.Module, Any]:
    config = hf.GitConfig(**TEXT, vision_config=VISION, use_cache=False)
    return hf.GitModel(config), lambda batch: {"input_ids": ids(batch, 6), "pixel_values": image(batch)}


@zoo("layoutlm", sequence=(12, 7, 21))
def layoutlm() -> tuple[nn.Module, Any]:
    config = hf.LayoutLMConfig(**{**TEXT, "bos_token_id": 1}, max_2d_position_embeddings=64)

    def inputs(batch: int, sequence: int) -> dict[str, Tensor]:
        corner = torch.randint(0, 30, (batch, sequence, 2))
        return {
            "input_ids": ids(batch, sequence),
            "bbox": torch.cat([corner, corner + 7], -1),
            "attention_mask": mask(batch, sequence),
        }

    return hf.LayoutLMModel(config), inputs


@zoo("llava", batch=2)
def llava() -> tuple[nn.Module, Any]:
    os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"  # its check of values has no ONNX form
    text = hf.LlamaConfig(**{**TEXT, "num_key_value_heads": 2, "use_cache": False})
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=text,
        image_token_index=97,
        image_seq_length=16,
        vision_feature_layer=-1,
    )

    def inputs(batch: int) -> dict[str, Any]:
        tokens = torch.cat([torch.full((batch, 16), 97), ids(batch, 6, 90)], 1)
        return {"input_ids": tokens, "pixel_values": image(batch)}

    return hf.LlavaForConditionalGeneration(config), inputs


@zoo("groupvit-text", sequence=(12, 7, 21))
def groupvit() -> tuple[nn.Module, Any]:
    return hf.GroupViTTextModel(hf.GroupViTTextConfig(**TEXT)), lambda batch, sequence: {
        "input_ids": ids(batch, sequence),
        "attention_mask": mask(batch, sequence),
    }
