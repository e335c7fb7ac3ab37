"""The front half in order: claim, export, bodies, plugins, files.  Called by `building`, with a folder to write to."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from layerport.bundle import bundle as bundles
from layerport.bundle.plugin_spec import PluginSet, to_bytes
from layerport.errors import UsageError
from layerport.front import onnx_files
from layerport.front.bodies import Bodies
from layerport.front.claim_records import ClaimRecord
from layerport.front.claims import claim_layers
from layerport.front.export import ExportedModel, export_model
from layerport.front.export_errors import UnknownOperatorError
from layerport.front.found_in_onnx import find_in_onnx
from layerport.front.found_layers import FindWishes, find_wishes, require_found
from layerport.front.layer_records import FOUND, MODULE, WRITTEN, LayerRecord
from layerport.front.leaves import refuse_caches, with_plain_outputs
from layerport.front.lookalikes import Lookalike
from layerport.front.losses import changed_outputs, losses_of
from layerport.front.nodes import LayerNode, layer_nodes, unknown_layers
from layerport.front.portable import write_portable
from layerport.front.precisions import coarsest_types
from layerport.front.realise import Realisation, realise
from layerport.front.samples import record_outputs, torch_samples, write_samples
from layerport.front.size_checks import check_layers, check_model, leave_out_size_one
from layerport.front.sources import Source
from layerport.front.ways import Ways
from layerport.kernels.declaration import Kernel
from layerport.kernels.sources import source_digest
from layerport.packs.host import DroppedPack, Packs
from layerport.packs.lossy import LossyWish
from layerport.parameters.comparison import Loss
from layerport.parameters.origins import Origin
from layerport.parameters.steps import Step
from layerport.search.searching import Findings
from layerport.sizes.dims import DimRange, apply_ranges, port_json, require_limits
from layerport.system.records import plain
from layerport.targets import Target

TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript", "nvidia-cuda-nvrtc")


@dataclass(frozen=True)
class Wishes:
    """What the user asked for, beside the source: see `layerport.build`."""

    target: Target
    ranges: Mapping[str, tuple[int, int | None, int]]
    claim: tuple[str, ...]
    no_claim: tuple[str, ...]
    ways: Ways
    strict: bool
    samples: bool
    find: tuple[str, ...] = ()
    no_find: tuple[str, ...] = ()
    lossy: tuple[LossyWish, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """What the engine half and the manifest need, beside the files in the folder.

    profile: per input its least, usual and greatest shape.  digests: SHA-256 by name of the files in the folder.
    """

    manifest: dict[str, Any]
    profile: dict[str, list[list[int]]]
    layers: tuple[LayerRecord, ...]
    claims: tuple[ClaimRecord, ...]
    losses: Mapping[str, Loss]
    lookalikes: tuple[Lookalike, ...]
    findings: Findings
    warnings: list[str]
    digests: dict[str, str]


def prepare(source: Source, packs: Packs, folder: Path, wishes: Wishes, start: Callable[[str], None]) -> Prepared:
    """Write the portable model, plugin specs and samples of a source into a folder.

    start: told of each stage.  Raises UsageError, PackError and BuildError.
    """
    claims: tuple[ClaimRecord, ...] = ()
    lookalikes: tuple[Lookalike, ...] = ()
    warnings: list[str] = []
    outputs: Any = None
    changed: Any = None
    dropped: tuple[DroppedPack, ...] = ()
    model: Any = source.model
    if not isinstance(source.model, torch.nn.Module) and (wishes.claim or wishes.no_claim or wishes.lossy):
        raise UsageError(
            f"nothing is claimed in {source.name}: it is no nn.Module, its layers are nodes already",
            "leave --claim, --no-claim and --lossy away; --decompose takes layers out of the engine",
        )
    if isinstance(source.model, Path):
        start("export")
        exported = onnx_files.read_model(source.model, wishes.ranges, packs)
        find = find_wishes(packs, find=wishes.find, refused=wishes.no_find)
        exported = find_in_onnx(exported, source.kwargs, packs, find)
        require_found(exported.findings, find)
    else:
        refuse_caches(source.args, source.kwargs)
        start("claim")
        if isinstance(model, torch.export.ExportedProgram):
            outputs = record_outputs(source)
        else:
            if model.training:
                warnings.append("the model is in training mode; its copy is built in eval mode")
            claimed = claim_layers(
                source,
                packs,
                required=wishes.claim,
                refused=wishes.no_claim,
                strict=wishes.strict,
                lossy=wishes.lossy,
            )
            model = claimed.model
            changed = changed_outputs(source, claimed)
            outputs = with_plain_outputs(model, claimed.outputs)
            claims = tuple(one.record() for one in claimed.claims)
            lookalikes = claimed.lookalikes
            dropped = claimed.dropped
            warnings += [one.warning for one in dropped]
        start("export")
        with _without_collection():
            find = find_wishes(packs, find=wishes.find, refused={*wishes.no_find, *wishes.no_claim}, dropped=dropped)
            exported = _exported(source, model, packs, outputs, find)
        require_found(exported.findings, find)
        taken = [(one.layer, one.module) for one in exported.findings.places]
        lookalikes = tuple(left for one in lookalikes if (left := one.without(taken)) is not None)
    trial = exported.guards.trial(source, model, exported.dims) if exported.guards is not None else None
    if trial is not None:
        dims, said = leave_out_size_one(exported.dims, trial)
        exported = replace(exported, dims=dims)
        warnings += said
    dims = apply_ranges(exported.dims, wishes.ranges)
    _check_example(exported.dims, dims)
    if wishes.target.flavour != "portable":
        require_limits(dims, str(wishes.target))
    nodes = layer_nodes(exported.model, packs, exported.origins)
    _refuse_dropped(nodes, packs, dropped)
    warnings += [
        f"{count} nodes {name} are built from their bodies: no installed pack provides that layer"
        for name, count in unknown_layers(exported.model, packs).items()
    ]
    bodies = Bodies(dims)
    bodies.attach(exported.model, nodes)
    checked = check_layers(nodes, bodies, dims)
    if exported.guards is not None:
        check_model(exported.guards, trial, dims, checked)
    checked.conditions += [one for one in exported.conditions if one not in checked.conditions]
    warnings += checked.warnings
    start("compile")
    realisations, plugins = realise(nodes, bodies, packs, wishes.target, checked.unfit, wishes.ways)
    digests = _source_digests(realisations)
    via = _Via(claims, exported.findings, in_file=isinstance(source.model, Path))
    layers = tuple(_layer_record(one, packs, digests, plugins, via) for one in realisations)
    start("write")
    reference, written = _samples(source, exported, dims, outputs, folder, wishes)
    losses = {} if changed is None else losses_of(source, exported, outputs, changed)
    if reference is not None and losses:
        reference["losses"] = plain(losses)
    if reference is not None and (coarse := coarsest_types(exported.model)):
        reference["precisions"] = coarse
    written |= write_portable(exported.model, folder)
    if plugins.specs:
        written[bundles.PLUGINS] = bundles.write_hashed(folder / bundles.PLUGINS, [to_bytes(plugins)])
    manifest = {
        "layerport": metadata.version("layerport"),
        "inputs": [port_json(port) for port in exported.inputs],
        "outputs": [port_json(port) for port in exported.outputs],
        "dims": plain(tuple(dims.values())),
        "conditions": plain(checked.conditions),
        "conditions_dropped": checked.notes,
        "layers": plain(layers),
        "claims": plain(claims),
        "samples": reference,
        "targets": [],
        "tools": {name: version for name in TOOLS if (version := _version(name))},
    }
    return Prepared(
        manifest, _profile(exported, dims), layers, claims, losses, lookalikes, exported.findings, warnings, written
    )


def _exported(source: Source, model: Any, packs: Packs, outputs: Any, find: FindWishes) -> ExportedModel:
    try:
        return export_model(source, model, packs.every_version, outputs, find)
    except UnknownOperatorError as error:
        # The model's own code may have imported a layer whose pack is not loaded.
        if missing := packs.missing(error.operator):
            raise missing from error
        raise


def _refuse_dropped(nodes: Iterable[LayerNode], packs: Packs, dropped: Iterable[DroppedPack]) -> None:
    """Raise PackError where the model itself calls a layer of a pack that fails, which is to ask for it."""
    for one in dropped:
        for node in nodes:
            if packs.owner(node.layer) is one.pack:
                raise one.needed_by(node.layer.name, node.module or node.name)


def _check_example(exported: Mapping[str, DimRange], dims: Mapping[str, DimRange]) -> None:
    """Raise UsageError where the user's ranges leave out the example inputs, which are the samples to verify with."""
    faults = [
        f"dim {name}: the example has {exported[name].opt}, --range says {dim.min}..{dim.max}"
        for name, dim in dims.items()
        if not dim.min <= exported[name].opt <= (exported[name].opt if dim.max is None else dim.max)
    ]
    if faults:
        raise UsageError(
            "the ranges leave out the example inputs", "widen them, or give other example inputs", faults=faults
        )


@contextmanager
def _without_collection() -> Iterator[None]:
    """Put the collection of cycles off: it walks the exporter's graphs again and again, 5% of an export's time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _samples(
    source: Source,
    exported: ExportedModel,
    dims: Mapping[str, DimRange],
    outputs: Any,
    folder: Path,
    wishes: Wishes,
) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Write the samples; whose outputs they are, and the digest of the file."""
    if not isinstance(source.model, Path):
        digest = write_samples(*torch_samples(source, exported, outputs), folder)
        return {"reference": "torch", "version": _version("torch")}, {bundles.SAMPLES: digest}
    stored = None if source.kwargs else onnx_files.stored_samples(source.model, exported.inputs, dims)
    if stored is not None:
        return stored[2], {bundles.SAMPLES: write_samples(stored[0], stored[1], folder)}
    if not wishes.samples:
        return None, {}
    inputs = onnx_files.example(exported.inputs, dims, source.kwargs)
    digest = write_samples(inputs, onnx_files.reference_outputs(exported.model, inputs), folder)
    return {"reference": "onnx.reference", "version": _version("onnx")}, {bundles.SAMPLES: digest}


def _source_digests(realisations: Iterable[Realisation]) -> dict[Kernel, str | None]:
    """What identifies the source of each kernel that a plugin holds."""
    held = {
        kernel
        for one in realisations
        if one.spec is not None
        for kernel in one.node.layer.kernels
        if any(code.name == kernel.name for code in one.spec.kernels)
    }
    return {kernel: source_digest(kernel) for kernel in held}


class _Via:
    """How each layer node came to be."""

    def __init__(self, claims: Iterable[ClaimRecord], findings: Findings, *, in_file: bool) -> None:
        self._claimed = [(one.module, one.layers) for one in claims if one.status == "claimed"]
        self._findings, self._in_file = findings, in_file

    def __call__(self, node: LayerNode) -> tuple[str, str | None]:
        """How a node came to be, and the grade of a found one."""
        if (place := self._findings.at(node.name if self._in_file else node.call)) is not None:
            return FOUND, place.grade
        within = any(
            node.layer.name in layers and f"{node.module}.".startswith(f"{module}." if module else "")
            for module, layers in self._claimed
        )
        return (MODULE if within else WRITTEN), None


def _layer_record(
    one: Realisation, packs: Packs, digests: Mapping[Kernel, str | None], plugins: PluginSet, via: _Via
) -> LayerRecord:
    layer, spec = one.node.layer, one.spec
    how, grade = via(one.node)
    info = packs.owner(layer).info
    return LayerRecord(
        node=one.node.name,
        layer=layer.name,
        version=layer.version,
        module=one.node.module,
        pack=info.name,
        distribution=info.distribution,
        pack_version=info.version,
        parameters=one.node.bound.parameters.digest,
        realised=one.realised,
        reason=one.reason,
        plugin=spec.key if spec else None,
        plugin_class=spec.plugin_class if spec else None,
        kernels=tuple(dict.fromkeys(kernel.name for kernel in spec.kernels)) if spec else (),
        kernel_sources={kernel.name: digests[kernel] for kernel in layer.kernels if kernel in digests} if spec else {},
        kernels_left_out=one.left_out,
        origins=tuple(
            _converted(origin, array, info.name)
            if (array := plugins.parameters.get(one.node.name, {}).get(origin.name)) is not None
            else origin
            for origin in one.node.bound.origins
        ),
        via=how,
        grade=grade,
    )


def _converted(origin: Origin, array: Any, by: str) -> Origin:
    """The origin with the step to the form that the kernel wants."""
    path = origin.steps[-1].path if origin.steps else origin.name
    step = Step("numpy.ndarray", array.dtype.name, array.shape, array.nbytes, "layerport_convert_parameters", by, path)
    return replace(origin, steps=(*origin.steps, step))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _profile(exported: ExportedModel, dims: Mapping[str, DimRange]) -> dict[str, list[list[int]]]:
    """Per input its least, usual and greatest shape."""
    sizes = [
        {name: dim.min for name, dim in dims.items()},
        {name: dim.opt for name, dim in dims.items()},
        {name: dim.greatest for name, dim in dims.items()},
    ]
    return {port.name: [list(port.resolve(env)) for env in sizes] for port in exported.inputs}
