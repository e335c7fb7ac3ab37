"""layerport: custom Torch layers, written once, as TensorRT plugins.

The public names, each imported when first used: `import layerport` loads no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerport.authoring import layer
    from layerport.building import BuildReport, build
    from layerport.bundle.bundle import Bundle
    from layerport.bundle.kernel_code import KernelCode, KernelStep
    from layerport.bundle.plugin_spec import PluginSpec
    from layerport.checks.verification import Verification, verify
    from layerport.dtypes import DType
    from layerport.engine.plugin import plugin_base
    from layerport.engine.progress import ProgressEvent
    from layerport.errors import BuildError, LayerportError, PackError, UsageError, VerifyError
    from layerport.front.claim_records import ClaimRecord
    from layerport.front.layer_records import LayerRecord
    from layerport.kernels.cuda_source import CudaSource, cuda
    from layerport.kernels.declaration import Kernel, Launch
    from layerport.kernels.launch_rules import LaunchRule
    from layerport.kernels.triton_source import TritonSource, triton
    from layerport.kernels.workspace import Scratch, scratch
    from layerport.layers.derivation import Derivation
    from layerport.layers.dispatch import Dispatch, explain_dispatch
    from layerport.layers.in_references import check_values, scan
    from layerport.layers.layer import BoundLayer, Layer, Place
    from layerport.layers.module import LayerModule
    from layerport.packs.call_rewrites import rewrite_call
    from layerport.packs.hookspecs import hookimpl
    from layerport.packs.process_packs import use_pack
    from layerport.packs.records import Lossy, Rewrite, lossy, rewrite
    from layerport.packs.saved_layers import installed_layer
    from layerport.parameters.origins import Origin
    from layerport.parameters.rules import Rule
    from layerport.parameters.signature import Param, Signature
    from layerport.parameters.standard_form import Parameters
    from layerport.session.session import Session, load
    from layerport.sizes.expressions import Expr, cdiv, maximum, minimum, next_power_of_2, where
    from layerport.sizes.output_rules import SizeSymbol
    from layerport.sizes.tensors import TensorType
    from layerport.targets import Target, TorchTarget


_HOMES = {
    "BoundLayer": "layers.layer",
    "BuildError": "errors",
    "BuildReport": "building",
    "Bundle": "bundle.bundle",
    "ClaimRecord": "front.claim_records",
    "CudaSource": "kernels.cuda_source",
    "DType": "dtypes",
    "Derivation": "layers.derivation",
    "Dispatch": "layers.dispatch",
    "Expr": "sizes.expressions",
    "Kernel": "kernels.declaration",
    "KernelCode": "bundle.kernel_code",
    "KernelStep": "bundle.kernel_code",
    "Launch": "kernels.declaration",
    "LaunchRule": "kernels.launch_rules",
    "Layer": "layers.layer",
    "LayerModule": "layers.module",
    "LayerRecord": "front.layer_records",
    "LayerportError": "errors",
    "Lossy": "packs.records",
    "Origin": "parameters.origins",
    "PackError": "errors",
    "Param": "parameters.signature",
    "Parameters": "parameters.standard_form",
    "Place": "layers.layer",
    "PluginSpec": "bundle.plugin_spec",
    "ProgressEvent": "engine.progress",
    "Rewrite": "packs.records",
    "Rule": "parameters.rules",
    "Session": "session.session",
    "Signature": "parameters.signature",
    "SizeSymbol": "sizes.output_rules",
    "Target": "targets",
    "TensorType": "sizes.tensors",
    "TorchTarget": "targets",
    "TritonSource": "kernels.triton_source",
    "UsageError": "errors",
    "Verification": "checks.verification",
    "VerifyError": "errors",
    "build": "building",
    "cdiv": "sizes.expressions",
    "check_values": "layers.in_references",
    "cuda": "kernels.cuda_source",
    "explain_dispatch": "layers.dispatch",
    "hookimpl": "packs.hookspecs",
    "installed_layer": "packs.saved_layers",
    "layer": "authoring",
    "load": "session.session",
    "lossy": "packs.records",
    "maximum": "sizes.expressions",
    "minimum": "sizes.expressions",
    "next_power_of_2": "sizes.expressions",
    "plugin_base": "engine.plugin",
    "rewrite": "packs.records",
    "rewrite_call": "packs.call_rewrites",
    "scan": "layers.in_references",
    "Scratch": "kernels.workspace",
    "scratch": "kernels.workspace",
    "triton": "kernels.triton_source",
    "use_pack": "packs.process_packs",
    "verify": "checks.verification",
    "where": "sizes.expressions",
}

__version__ = "0.1.0"
__all__ = [
    "BoundLayer",
    "BuildError",
    "BuildReport",
    "Bundle",
    "ClaimRecord",
    "CudaSource",
    "DType",
    "Derivation",
    "Dispatch",
    "Expr",
    "Kernel",
    "KernelCode",
    "KernelStep",
    "Launch",
    "LaunchRule",
    "Layer",
    "LayerModule",
    "LayerRecord",
    "LayerportError",
    "Lossy",
    "Origin",
    "PackError",
    "Param",
    "Parameters",
    "Place",
    "PluginSpec",
    "ProgressEvent",
    "Rewrite",
    "Rule",
    "Scratch",
    "Session",
    "Signature",
    "SizeSymbol",
    "Target",
    "TensorType",
    "TorchTarget",
    "TritonSource",
    "UsageError",
    "Verification",
    "VerifyError",
    "build",
    "cdiv",
    "check_values",
    "cuda",
    "explain_dispatch",
    "hookimpl",
    "installed_layer",
    "layer",
    "load",
    "lossy",
    "maximum",
    "minimum",
    "next_power_of_2",
    "plugin_base",
    "rewrite",
    "rewrite_call",
    "scan",
    "scratch",
    "triton",
    "use_pack",
    "verify",
    "where",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
