"""layerport: custom Torch layers, written once, as TensorRT plugins.

The public names, each imported when first used: `import layerport` loads no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerport.building import BuildReport, build
    from layerport.bundle import Bundle
    from layerport.dispatch import Dispatch, explain_dispatch
    from layerport.errors import BuildError, LayerportError, PackError, UsageError, VerifyError
    from layerport.expressions import cdiv, maximum, minimum, next_power_of_2, where
    from layerport.hookspecs import hookimpl, hookspec
    from layerport.kernels import Launch, cuda
    from layerport.layers import BoundLayer, Layer, layer
    from layerport.parameters import Parameters
    from layerport.plugin_spec import PluginSpec
    from layerport.records import rewrite
    from layerport.session import Session, load
    from layerport.shape_rules import SizeSymbol
    from layerport.signature import Param
    from layerport.targets import Target
    from layerport.triton_source import triton
    from layerport.verification import verify

_HOMES = {
    "BoundLayer": "layers",
    "BuildError": "errors",
    "BuildReport": "building",
    "Bundle": "bundle",
    "Dispatch": "dispatch",
    "Launch": "kernels",
    "Layer": "layers",
    "LayerportError": "errors",
    "PackError": "errors",
    "Param": "signature",
    "Parameters": "parameters",
    "PluginSpec": "plugin_spec",
    "Session": "session",
    "SizeSymbol": "shape_rules",
    "Target": "targets",
    "UsageError": "errors",
    "VerifyError": "errors",
    "build": "building",
    "cdiv": "expressions",
    "cuda": "kernels",
    "explain_dispatch": "dispatch",
    "hookimpl": "hookspecs",
    "hookspec": "hookspecs",
    "layer": "layers",
    "load": "session",
    "maximum": "expressions",
    "minimum": "expressions",
    "next_power_of_2": "expressions",
    "rewrite": "records",
    "triton": "triton_source",
    "verify": "verification",
    "where": "expressions",
}

__version__ = "0.1.0"
__all__ = [
    "BoundLayer",
    "BuildError",
    "BuildReport",
    "Bundle",
    "Dispatch",
    "Launch",
    "Layer",
    "LayerportError",
    "PackError",
    "Param",
    "Parameters",
    "PluginSpec",
    "Session",
    "SizeSymbol",
    "Target",
    "UsageError",
    "VerifyError",
    "build",
    "cdiv",
    "cuda",
    "explain_dispatch",
    "hookimpl",
    "hookspec",
    "layer",
    "load",
    "maximum",
    "minimum",
    "next_power_of_2",
    "rewrite",
    "triton",
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
