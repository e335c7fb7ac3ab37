"""The core's own answers to the step hooks: an ordinary plugin that `packs` asks last.

It is made whenever packs are loaded, so importing this file must stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerport.packs.hookspecs import hookimpl
from layerport.packs.kernel_plugins import plugin_from_kernels

if TYPE_CHECKING:
    from layerport.bundle.plugin_spec import PluginSpec
    from layerport.layers.layer import BoundLayer, Layer
    from layerport.targets import Target


class CorePlugin:
    """Answers where the pack that owns a layer has nothing to say.

    It claims no module and converts no parameters: both are a pack's knowledge.
    """

    @hookimpl
    def layerport_create_plugin(self, layer: Layer, bound: BoundLayer, target: Target) -> PluginSpec | None:
        """The plugin made from the layer's kernels."""
        return plugin_from_kernels(layer, bound, target)
