"""The hooks that a pack may implement, all of them, typed, each with one complete example.

Pack authors read this file; tests run its examples and the docs pull from it.  `packs` asks the hooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pluggy

if TYPE_CHECKING:
    import torch

    from layerport.bundle.plugin_spec import PluginSpec
    from layerport.layers.layer import BoundLayer, Layer
    from layerport.packs.records import ExportAnswer
    from layerport.parameters.standard_form import Parameters
    from layerport.targets import Target, TorchTarget

PROJECT: Final = "layerport"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# The specifications return nothing themselves, so their bodies raise for the type checker's sake.


@hookspec
def layerport_layers() -> tuple[Layer, ...]:
    """Return a tuple of all the layers that the pack provides; every pack is asked once, when it is loaded.

    Example::

        import torch
        from torch import Tensor

        import layerport as lp


        @lp.layer("hook_layers_example::scaled_swish", version=1)
        def scaled_swish(x: Tensor, scale: lp.Param, beta: float = 1.0) -> Tensor:
            return x * torch.sigmoid(beta * x) * scale


        @lp.hookimpl
        def layerport_layers():
            return (scaled_swish,)
    """
    raise NotImplementedError


@hookspec
def layerport_export_parameters(module: torch.nn.Module, name: str) -> ExportAnswer:
    """Return the layer that computes what this module computes, bound to the module's parameters, or None.

    module: one module of the user's model; read it, never change it.  name: its path in the model, such as
    `model.layers.3.norm`, and "" for the model itself.  Every pack is asked about every module.

    A claim is proven on the module's real inputs before it is used, so a pack may claim by the look of a
    class.  Where the module alone does not tell, return a tuple of candidates; exactly one has to agree.
    Where the layer is one step inside the module's forward, return `lp.rewrite(forward, layers=(layer,))`.

    Example::

        import torch
        from torch import Tensor

        import layerport as lp


        @lp.layer("hook_export_example::scaled_swish", version=1)
        def scaled_swish(x: Tensor, scale: lp.Param, beta: float = 1.0) -> Tensor:
            return x * torch.sigmoid(beta * x) * scale


        class ScaledSwish(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = torch.nn.Parameter(torch.ones(8))
                self.beta = 1.5

            def forward(self, x: Tensor) -> Tensor:
                return x * torch.sigmoid(self.beta * x) * self.scale


        class GatedBlock(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = torch.nn.Parameter(torch.ones(8))
                self.projection = torch.nn.Linear(8, 8)

            def forward(self, x: Tensor) -> Tensor:
                return self.projection(x * torch.sigmoid(x) * self.scale)


        def gated_block(module, x):
            return module.projection(scaled_swish(x, module.scale))


        @lp.hookimpl
        def layerport_layers():
            return (scaled_swish,)


        @lp.hookimpl
        def layerport_export_parameters(module, name):
            if isinstance(module, ScaledSwish):
                return scaled_swish.bind(scale=module.scale, beta=module.beta)
            if isinstance(module, GatedBlock):
                return lp.rewrite(gated_block, layers=(scaled_swish,))
            return None
    """
    raise NotImplementedError


@hookspec
def layerport_convert_parameters(
    layer: Layer, parameters: Parameters, target: Target | TorchTarget
) -> Parameters | None:
    """Return the parameters in the dtype, layout and packing that the kernel wants, or None for as they are.

    layer: one of the pack's own layers.  parameters: in the standard form; `parameters.replace(name=array)`
    makes the changed ones.  target: what the engine is built for, or a
    `layerport.TorchTarget` where the Torch operator runs a kernel.  Only the pack that owns it is asked.

    Example::

        import numpy as np
        from torch import Tensor

        import layerport as lp


        @lp.layer("hook_convert_example::project", version=1)
        def project(x: Tensor, weight: lp.Param) -> Tensor:
            return x @ weight.T


        @lp.hookimpl
        def layerport_layers():
            return (project,)


        @lp.hookimpl
        def layerport_convert_parameters(layer, parameters, target):
            # The kernel reads the weight column by column.
            return parameters.replace(weight=np.ascontiguousarray(parameters["weight"].T))
    """
    raise NotImplementedError


@hookspec
def layerport_create_plugin(layer: Layer, bound: BoundLayer, target: Target) -> PluginSpec | None:
    """Return the plugin of a layer, or None for the one that the core makes from the layer's kernels.

    layer: one of the pack's own layers.  bound: the layer with its converted parameters; `bound.place` holds dtypes and
    dims of its tensors and the rule of its outputs here.  target: what the engine is built for.  Only the pack that
    owns it is asked; most packs do not need this hook, which is for what a kernel cannot say.

    Example::

        from torch import Tensor

        import layerport as lp


        @lp.layer("hook_create_example::halve", version=1)
        def halve(x: Tensor) -> Tensor:
            return x * 0.5


        @lp.hookimpl
        def layerport_layers():
            return (halve,)


        @lp.hookimpl
        def layerport_create_plugin(layer, bound, target):
            # A function (trt, spec) -> IPluginV3, importable where the engine is built and run.
            return lp.PluginSpec.of(bound, plugin_class="halve_pack.engine_plugin:make_halve_plugin")
    """
    raise NotImplementedError


HOOKS: Final[dict[str, tuple[str, ...]]] = {
    "layerport_layers": (),
    "layerport_export_parameters": ("module", "name"),
    "layerport_convert_parameters": ("layer", "parameters", "target"),
    "layerport_create_plugin": ("layer", "bound", "target"),
}
"""Every hook with its arguments, in the order in which a build asks them."""
