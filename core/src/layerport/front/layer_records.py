"""What a report and a manifest say of one layer node.  Made by `pipeline`; imports no framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from layerport.parameters.origins import Origin
from layerport.system.records import Record

MODULE, FOUND, WRITTEN = "module", "found", "written"


@dataclass(frozen=True)
class LayerRecord(Record):
    """A layer node of the model and what became of it.

    node: its name in the portable model.  module: the path of the Torch module it came from.
    pack, distribution, pack_version: whose layer it is.  parameters: their digest in the standard form.
    realised: "plugin", "decomposed" into its body, or "function" in a portable bundle; reason: why.
    plugin: the key of its plugin spec.  plugin_class: the pack's own, where it has one.
    via: how it came to be: "module" (a claim), "found" (in the graph, by its reference), or "written" (the model, or
    the file, calls it).  grade: of a found one, "exact" to the bit or "formula", where the numbers were compared.
    kernels: those that the plugin holds; kernel_sources: what identifies their sources; kernels_left_out: why others
    are not among them.  origins: where each parameter came from.
    """

    node: str
    layer: str
    version: int
    module: str
    pack: str
    distribution: str | None
    pack_version: str | None
    parameters: str
    realised: str
    reason: str
    plugin: str | None
    plugin_class: str | None
    kernels: tuple[str, ...]
    kernel_sources: Mapping[str, str | None]
    kernels_left_out: tuple[str, ...]
    origins: tuple[Origin, ...] = ()
    via: str = WRITTEN
    grade: str | None = None
