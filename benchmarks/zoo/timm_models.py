"""Models of timm, by their registered names, with few and narrow stages."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

from torch import Tensor, nn

from zoo.cases import image, zoo


class _Anything(type):
    """A class whose every public attribute is such a class again, good enough to import, to subclass, to ask for."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Stand(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes any module of torchvision: nothing of it runs in a model, timm names it when it is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: getattr(_Anything(spec.name, (), {}), name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def _import_timm() -> Any:
    """timm, also where torchvision is not there or, built for another Torch, does not import."""
    try:
        import torchvision  # noqa: F401
    except Exception:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        stand = _Stand()
        sys.meta_path.insert(0, stand)
        try:
            return importlib.import_module("timm")
        finally:
            sys.meta_path.remove(stand)
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
    return importlib.import_module("timm")


timm = _import_timm()


def enter(name: str, architecture: str, side: int = 64, free: bool = False, **settings: Any) -> None:
    """One architecture; `free` where height and width are dynamic too."""
    sizes = {"height": (side, side + 32), "width": (side, side * 2)} if free else {}

    @zoo(name, **sizes)
    def make() -> tuple[nn.Module, Any]:
        def inputs(batch: int, height: int = side, width: int = side) -> dict[str, Tensor]:
            return {"x": image(batch, height, width)}

        return timm.create_model(architecture, num_classes=7, **settings), inputs


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
enter("timm-vit", "vit_tiny_patch16_224", 32, **VIT)
enter("timm-vit-rope", "eva02_tiny_patch14_224", 32, **VIT)
enter("timm-deit3", "deit3_small_patch16_224", 32, **VIT)
enter(
    "timm-swin",
    "swin_tiny_patch4_window7_224",
    32,
    img_size=32,
    patch_size=2,
    window_size=4,
    embed_dim=16,
    depths=(1, 1),
    num_heads=(2, 4),
)
enter("timm-resnet", "resnet10t", free=True)
enter("timm-seresnext", "seresnext26ts", free=True)
enter("timm-convnext", "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), free=True)
enter("timm-efficientnet", "efficientnet_lite0", free=True)
enter("timm-mobilenetv3", "mobilenetv3_small_050", free=True)
enter("timm-mobilenetv4", "mobilenetv4_conv_small_035", free=True)
enter("timm-regnet", "regnetx_002", free=True)
enter("timm-densenet", "densenet121", growth_rate=8, block_config=(1, 1, 1, 1), free=True)
enter("timm-xcit", "xcit_nano_12_p16_224", 64, depth=2, embed_dim=32, img_size=64)
enter("timm-fastvit", "fastvit_t8", 64)
enter("timm-hgnet", "hgnetv2_b0", free=True)
MLP = {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 32, "num_classes": 7}


@zoo("timm-mixer")
def mixer() -> tuple[nn.Module, Any]:
    return timm.models.mlp_mixer.MlpMixer(**MLP), lambda batch: {"x": image(batch)}


@zoo("timm-gmlp")
def gmlp() -> tuple[nn.Module, Any]:
    parts = timm.models.mlp_mixer
    return parts.MlpMixer(
        **MLP, mlp_ratio=4, block_layer=parts.SpatialGatingBlock, mlp_layer=timm.layers.GatedMlp
    ), lambda batch: {"x": image(batch)}


@zoo("timm-glu-mixer")
def glu_mixer() -> tuple[nn.Module, Any]:
    layer = functools.partial(timm.layers.GluMlp, act_layer=nn.SiLU)
    return timm.models.mlp_mixer.MlpMixer(**MLP, mlp_layer=layer), lambda batch: {"x": image(batch)}


@zoo("timm-metaformer", height=(64, 96), width=(64, 128))
def metaformer() -> tuple[nn.Module, Any]:
    model = timm.models.metaformer.MetaFormer(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=7)
    return model, lambda batch, height, width: {"x": image(batch, height, width)}


@zoo("timm-maxvit")
def maxvit() -> tuple[nn.Module, Any]:
    parts = timm.models.maxxvit
    config = parts.MaxxVitCfg(embed_dim=(16, 32), depths=(1, 1), block_type=("C", "M"), stem_width=8)
    return parts.MaxxVit(config, img_size=64, num_classes=7), lambda batch: {"x": image(batch, 64)}
