"""The types of what a manifest holds: its schema, with which `manifest` compares a file.  Imports no framework."""

from __future__ import annotations

import re
from typing import Annotated, Any, NotRequired, TypedDict


class TextRule:
    """What a text must look like; words: the same for people."""

    def __init__(self, pattern: str, words: str) -> None:
        self.pattern, self.words = re.compile(pattern), words

    def holds(self, text: str) -> bool:
        return text.isprintable() and self.pattern.fullmatch(text) is not None


Name = Annotated[str, TextRule(r".{0,4096}", "text without control characters")]
FileName = Annotated[str, TextRule(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}", "the name of a file in the bundle")]
Digest = Annotated[str, TextRule(r"[0-9a-f]{64}", "a SHA-256 in hex")]
Layer = Annotated[str, TextRule(r"[A-Za-z_][A-Za-z0-9_]{0,127}::[A-Za-z_][A-Za-z0-9_]{0,127}", "namespace::name")]
Distribution = Annotated[str, TextRule(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}", "the name of a distribution")]
PluginClass = Annotated[str, TextRule(r"[A-Za-z_][\w.]{0,255}:[A-Za-z_]\w{0,127}", "module:name")]
Architecture = Annotated[str, TextRule(r"sm_\d{2,3}", "a GPU architecture such as sm_89")]


class FileEntry(TypedDict):
    """A file of the bundle."""

    bytes: int
    sha256: Digest


class PortEntry(TypedDict):
    """An input or output; `layerport.sizes.dims.port`."""

    name: str
    dtype: str
    dims: list[int | str | None]


class DimEntry(TypedDict):
    """A dynamic dim; `layerport.sizes.dims.DimRange`."""

    name: Name
    min: int
    opt: int
    max: int | None


class ConditionEntry(TypedDict):
    """A condition on sizes; `layerport.sizes.conditions.Condition`."""

    condition: str
    layer: Name
    module: Name


class StepEntry(TypedDict):
    """A step on the way of a parameter; `layerport.conversion.Step`."""

    source_type: str
    dtype: Name
    shape: list[int]
    nbytes: int
    action: str
    by: Name
    path: str


class OriginEntry(TypedDict):
    """Where a parameter came from; `layerport.Origin`."""

    name: Name
    dtype: Name
    shape: list[int]
    sources: list[Name]
    tied: list[Name]
    steps: list[StepEntry]


class LayerEntry(TypedDict):
    """A layer node of the model and what became of it."""

    node: Name
    layer: Layer
    version: int
    module: Name
    pack: Name
    distribution: Distribution | None
    pack_version: Name | None
    realised: Name
    reason: str
    parameters: NotRequired[Name | None]
    plugin: NotRequired[Name | None]
    plugin_class: NotRequired[PluginClass | None]
    kernels: NotRequired[list[Name]]
    kernel_sources: NotRequired[dict[Name, Name | None] | None]
    kernels_left_out: NotRequired[list[str]]
    origins: NotRequired[list[OriginEntry]]
    via: NotRequired[Name]
    grade: NotRequired[Name | None]


class ProbeEntry(TypedDict):
    """A trial of a claim beside the example inputs."""

    magnitude: float
    max_relative_error: float | None
    proves_nothing: str | None


class EvidenceEntry(TypedDict):
    """What a claim rests on."""

    kind: Name
    calls: int
    telling_calls: int
    probes: list[ProbeEntry]
    probed_at: NotRequired[Name | None]
    summary: str


class CandidateEntry(TypedDict):
    """An answer of a pack for a module."""

    layers: list[Layer]
    pack: Name
    max_relative_error: float | None
    fault: str | None


ClaimEntry = TypedDict(
    "ClaimEntry",
    {
        "module": Name,
        "class": Name,
        "status": Name,
        "reason": str,
        "layers": list[Layer],
        "pack": Name | None,
        "max_relative_error": float | None,
        "evidence": EvidenceEntry,
        "candidates": list[CandidateEntry],
        "bound": NotRequired[float | None],
    },
)


class LossEntry(TypedDict):
    """What the lossy claims of a model change in an output; `layerport.parameters.comparison.Loss`."""

    error: float
    cosine: float


class SamplesEntry(TypedDict):
    """Whose outputs the samples are.

    losses: of the outputs that lossy claims change.  precisions: of those computed through a coarser dtype, that one.
    """

    reference: Name
    version: Name | None
    losses: NotRequired[dict[str, LossEntry]]
    precisions: NotRequired[dict[str, Name]]


class TargetEntry(TypedDict):
    """An engine: its plan, what it is for and what made it."""

    target: Name
    flavour: Name
    architectures: list[Architecture]
    file: FileName
    plugins: int
    tensorrt: Name
    options: NotRequired[dict[Name, Any] | None]
    profile: NotRequired[dict[str, list[list[int]]]]


class Manifest(TypedDict):
    """A whole manifest."""

    format: int
    layerport: Name
    inputs: list[PortEntry]
    outputs: list[PortEntry]
    dims: list[DimEntry]
    conditions: NotRequired[list[ConditionEntry]]
    conditions_dropped: NotRequired[list[Any]]
    layers: list[LayerEntry]
    claims: list[ClaimEntry]
    samples: NotRequired[SamplesEntry | None]
    targets: list[TargetEntry]
    tools: dict[Name, Name]
    files: dict[FileName, FileEntry]
