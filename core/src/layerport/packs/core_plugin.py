"""The core's own answers to the step hooks: an ordinary plugin that `packs` asks last.

It is made whenever packs are loaded, so importing this file must stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerport import __version__
from layerport.errors import PackError
from layerport.packs.discovery import CORE_NAME, PackInfo
from layerport.packs.hookspecs import hookimpl
from layerport.packs.kernel_plugins import plugin_from_kernels
from layerport.packs.loading import Pack, load_pack

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


def core_pack() -> Pack:
    """The core's own answers: an ordinary plugin, and the last one to be asked."""
    info = PackInfo(CORE_NAME, CORE_NAME, __version__, "layerport.packs.core_plugin:CorePlugin")
    pack = load_pack(info, plugin=CorePlugin())
    if pack.failure is not None:
        raise PackError(f"the core's own hooks are at fault: {pack.failure}", "report it") from pack.error
    return pack
