"""Vision models of transformers: classifiers, backbones, detectors, segmenters, depth, upscaling."""

from __future__ import annotations

import os
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from zoo.cases import image, zoo

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "image_size": 32, "patch_size": 2}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 8,
    "num_labels": 5,
}


def pixels(side: int) -> Any:
    """Square images of a fixed side."""

    def inputs(batch: int) -> dict[str, Tensor]:
        return {"pixel_values": image(batch, side)}

    return inputs


def any_pixels(batch: int, height: int, width: int) -> dict[str, Tensor]:
    """Images of any size."""
    return {"pixel_values": image(batch, height, width)}


def enter(name: str, model: str, settings: dict[str, Any], side: int = 32, **more: Any) -> None:
    """One model on images of a fixed side."""

    @zoo(name)
    def make() -> tuple[nn.Module, Any]:
        model_class = getattr(hf, model)
        return model_class(model_class.config_class(**settings, **more)), pixels(side)


def backbone() -> Any:
    """A small ResNet for detectors."""
    return hf.ResNetConfig(**RESNET, out_features=["stage2", "stage3", "stage4"])


enter("vit", "ViTModel", SMALL)
enter("deit", "DeiTForImageClassification", SMALL)
enter("beit", "BeitModel", SMALL, use_relative_position_bias=True)
enter("dinov2", "Dinov2Model", SMALL)
enter("dinov3-vit", "DINOv3ViTModel", SMALL, num_register_tokens=2)
enter("ijepa", "IJepaModel", SMALL)
enter("yolos", "YolosForObjectDetection", {**SMALL, "image_size": [32, 32]}, num_detection_tokens=8, num_labels=5)
enter("vit-mae-encoder", "ViTMSNModel", SMALL)
enter("swin", "SwinModel", STAGES)
enter("swinv2", "Swinv2Model", STAGES)
enter("convnext", "ConvNextModel", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2})
enter("convnextv2", "ConvNextV2Model", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2})
enter("mobilenet-v2", "MobileNetV2Model", {"depth_multiplier": 0.25, "min_depth": 8})
enter(
    "mobilevit", "MobileViTModel", {"hidden_sizes": [8, 16, 24], "neck_hidden_sizes": [4, 4, 8, 8, 16, 16, 32]}, side=64
)
enter("efficientnet", "EfficientNetModel", {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320})
enter("poolformer", "PoolFormerModel", {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}, side=64)
enter(
    "pvt-v2",
    "PvtV2Model",
    {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]},
    side=64,
)
enter(
    "levit",
    "LevitModel",
    {
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [2, 3, 4],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "image_size": 64,
    },
    side=64,
)
enter(
    "focalnet",
    "FocalNetModel",
    {
        "embed_dim": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "image_size": 32,
        "focal_levels": [2, 2],
        "focal_windows": [3, 3],
    },
)
enter(
    "dpt",
    "DPTForDepthEstimation",
    {**SMALL, "num_hidden_layers": 4},
    neck_hidden_sizes=[8, 8, 16, 16],
    backbone_out_indices=[0, 1, 2, 3],
    fusion_hidden_size=16,
)
enter(
    "depth-anything",
    "DepthAnythingForDepthEstimation",
    {
        "neck_hidden_sizes": [8, 8],
        "fusion_hidden_size": 8,
        "head_hidden_size": 8,
        "reassemble_factors": [2, 1],
        "reassemble_hidden_size": 32,
        "patch_size": 8,
    },
    backbone_config=hf.Dinov2Config(**SMALL, out_features=["stage1", "stage2"], reshape_hidden_states=False),
)
enter(
    "swin2sr",
    "Swin2SRForImageSuperResolution",
    {
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
        "image_size": 32,
        "patch_size": 1,
        "upscale": 2,
    },
)
enter("vitmatte-backbone", "VitDetModel", SMALL, window_size=2, window_block_indices=[0])
enter(
    "upernet",
    "UperNetForSemanticSegmentation",
    {"hidden_size": 16, "pool_scales": [1, 2], "num_labels": 4, "use_auxiliary_head": False},
    backbone_config=hf.ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    ),
)


@zoo("resnet", height=(64, 96), width=(64, 32))
def resnet() -> tuple[nn.Module, Any]:
    return hf.ResNetForImageClassification(hf.ResNetConfig(**RESNET)), any_pixels


@zoo("regnet", height=(64, 96), width=(64, 32))
def regnet() -> tuple[nn.Module, Any]:
    return hf.RegNetModel(
        hf.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], groups_width=8)
    ), any_pixels


@zoo("segformer", height=(64, 96), width=(64, 128))
def segformer() -> tuple[nn.Module, Any]:
    config = hf.SegformerConfig(hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], decoder_hidden_size=16, num_labels=5)
    return hf.SegformerForSemanticSegmentation(config), any_pixels


@zoo("detr")
def detr() -> tuple[nn.Module, Any]:
    config = hf.DetrConfig(**DETR, backbone_config=hf.ResNetConfig(**RESNET, out_features=["stage4"]))
    return hf.DetrForObjectDetection(config), pixels(64)


@zoo("conditional-detr")
def conditional_detr() -> tuple[nn.Module, Any]:
    config = hf.ConditionalDetrConfig(**DETR, backbone_config=hf.ResNetConfig(**RESNET, out_features=["stage4"]))
    return hf.ConditionalDetrForObjectDetection(config), pixels(64)


@zoo("deformable-detr")
def deformable_detr() -> tuple[nn.Module, Any]:
    config = hf.DeformableDetrConfig(**DETR, backbone_config=backbone(), num_feature_levels=3)
    return hf.DeformableDetrForObjectDetection(config), pixels(64)


def rt_detr_settings() -> dict[str, Any]:
    """What the two RT-DETRs share."""
    return {
        "encoder_hidden_dim": 32,
        "encoder_in_channels": [16, 24, 32],
        "feat_strides": [8, 16, 32],
        "d_model": 32,
        "encoder_layers": 1,
        "encoder_ffn_dim": 64,
        "encoder_attention_heads": 4,
        "decoder_in_channels": [32, 32, 32],
        "decoder_layers": 2,
        "decoder_ffn_dim": 64,
        "decoder_attention_heads": 4,
        "num_queries": 8,
        "num_labels": 5,
    }


def with_scores(model: nn.Module) -> nn.Module:
    """The model with weights that tell pixels apart: of equal scores each implementation of TopK chooses others."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


# Their code takes the batch for a constant.
@zoo("rt-detr", batch=2)
def rt_detr() -> tuple[nn.Module, Any]:
    config = hf.RTDetrConfig(
        **rt_detr_settings(),
        backbone_config=hf.RTDetrResNetConfig(**RESNET, out_features=["stage2", "stage3", "stage4"]),
    )
    return with_scores(hf.RTDetrForObjectDetection(config)), pixels(64)


@zoo("rt-detr-v2", batch=2)
def rt_detr_v2() -> tuple[nn.Module, Any]:
    os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"  # its check of values has no ONNX form
    config = hf.RTDetrV2Config(
        **rt_detr_settings(),
        backbone_config=hf.RTDetrResNetConfig(**RESNET, out_features=["stage2", "stage3", "stage4"]),
    )
    return with_scores(hf.RTDetrV2ForObjectDetection(config)), pixels(64)


@zoo("mask2former", batch=2)
def mask2former() -> tuple[nn.Module, Any]:
    config = hf.Mask2FormerConfig(
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=64,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=4,
        dim_feedforward=64,
        num_queries=8,
        num_labels=5,
        backbone_config=hf.SwinConfig(
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 2, 4],
            window_size=4,
            image_size=64,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
    )
    return hf.Mask2FormerForUniversalSegmentation(config), pixels(64)


@zoo("maskformer", batch=2)
def maskformer() -> tuple[nn.Module, Any]:
    config = hf.MaskFormerConfig(
        fpn_feature_size=32,
        mask_feature_size=32,
        backbone_config=hf.SwinConfig(
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 2, 4],
            window_size=4,
            image_size=64,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        decoder_config=hf.DetrConfig(**DETR),
    )
    return hf.MaskFormerForInstanceSegmentation(config), pixels(64)


@zoo("sam-encoder")
def sam_encoder() -> tuple[nn.Module, Any]:
    config = hf.SamVisionConfig(
        hidden_size=32,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        mlp_dim=64,
        window_size=2,
        global_attn_indexes=[1],
        num_pos_feats=8,
    )
    return hf.SamVisionModel(config), pixels(32)


@zoo("superpoint", batch=1)
def superpoint() -> tuple[nn.Module, Any]:
    config = hf.SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 8, 8], decoder_hidden_size=16, keypoint_decoder_dim=65, descriptor_decoder_dim=16
    )
    return hf.SuperPointForKeypointDetection(config), pixels(32)


@zoo("videomae")
def videomae() -> tuple[nn.Module, Any]:
    def inputs(batch: int) -> dict[str, Tensor]:
        return {"pixel_values": image(batch * 4, 32).reshape(batch, 4, 3, 32, 32)}

    return hf.VideoMAEModel(hf.VideoMAEConfig(**SMALL, num_frames=4)), inputs
