"""Decides what becomes of each layer node for a target: a plugin, or its body in its place, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerport.bundle.plugin_spec import PluginSet, PluginSpec
from layerport.errors import UsageError
from layerport.front.bodies import Bodies
from layerport.front.nodes import LayerNode
from layerport.front.ways import AS_PLUGIN, DECOMPOSE, Ways
from layerport.layers.layer import Place
from layerport.packs.host import Packs
from layerport.packs.kernel_plugins import why_no_kernel, why_not_chosen, with_wide_parameters
from layerport.parameters.frameworks.tensorrt_dtypes import in_plugins
from layerport.targets import Target

if TYPE_CHECKING:
    import numpy as np

    from layerport.layers.derivation import Derivation

PLUGIN, DECOMPOSED, FUNCTION = "plugin", "decomposed", "function"


@dataclass(frozen=True)
class Realisation:
    """What became of one node: "plugin", "decomposed" into its body, or "function" in a portable bundle.

    left_out: why a plugin holds this and that kernel of its layer not.
    """

    node: LayerNode
    realised: str
    reason: str
    spec: PluginSpec | None = None
    left_out: tuple[str, ...] = ()


def realise(
    nodes: Sequence[LayerNode],
    bodies: Bodies,
    packs: Packs,
    target: Target,
    wrong_rules: Mapping[str, str],
    ways: Ways,
) -> tuple[list[Realisation], PluginSet]:
    """The realisation of every node, and the plugin specs that the engine half needs.

    wrong_rules: why the derived output rule of a node does not fit a plugin.
    ways: what the user wants.  Raises PackError where a pack's hook fails, UsageError where a layer has to be a plugin
    and cannot be one.
    """
    for name in ways.named:
        packs.layer(name)
    results: list[Realisation] = []
    specs: dict[str, PluginSpec] = {}
    keys: dict[str, str] = {}
    changed: dict[str, Mapping[str, np.ndarray[Any, Any]]] = {}
    for node in nodes:
        if target.flavour == "portable":
            results.append(Realisation(node, FUNCTION, "target portable holds no engine"))
            continue
        if ways[node.layer.name] == DECOMPOSE:
            results.append(Realisation(node, DECOMPOSED, ways.said(node.layer.name)))
            continue
        place = node.module or node.name
        parameters = packs.convert_parameters(node.layer, node.bound.parameters, target, path=place)
        derivation = bodies.derivation(node)
        if unfit := _unbounded(derivation) or wrong_rules.get(node.name):
            results.append(Realisation(node, DECOMPOSED, unfit))
            continue
        bound = dataclasses.replace(
            node.bound, parameters=parameters, place=Place(node.tensors, derivation, node.module or node.name)
        )
        bound = with_wide_parameters(bound)
        spec = packs.create_plugin(node.layer, bound, target, path=place)
        if spec is None:
            results.append(Realisation(node, DECOMPOSED, why_no_kernel(bound, target)))
            continue
        if lacking := _types_that_tensorrt_lacks(spec, bound.parameters):
            results.append(Realisation(node, DECOMPOSED, lacking))
            continue
        specs[spec.key] = spec
        keys[node.name] = spec.key
        differing = {
            name: array for name, array in bound.parameters.items() if array is not node.bound.parameters.get(name)
        }
        if differing:
            changed[node.name] = differing
        reason = "its kernel is built for " + ", ".join(target.architectures)
        if node.layer.purpose is not None:
            reason += f"; {node.layer.purpose}"
        results.append(Realisation(node, PLUGIN, reason, spec, why_not_chosen(bound, spec, target)))
    _require_plugins(results, ways)
    return results, PluginSet(specs, keys, changed)


def _require_plugins(results: Sequence[Realisation], ways: Ways) -> None:
    """Raise UsageError with each node that has to be a plugin and is none."""
    faults = [
        f"{one.node.layer.name}, {one.node.module or one.node.name}: {one.reason}"
        for one in results
        if one.realised != PLUGIN and ways[one.node.layer.name] == AS_PLUGIN
    ]
    if faults:
        raise UsageError(
            f"{len(faults)} node{'s' if len(faults) > 1 else ''} cannot be a plugin, and --realise asks for one",
            "leave --realise away for these layers, or mend what the lines say",
            faults=faults,
        )


def _types_that_tensorrt_lacks(spec: PluginSpec, constants: Collection[str]) -> str | None:
    """Why TensorRT cannot hold the tensors of this plugin; constants may come in under another type."""
    held = [
        (f"input {one.name} is {one.dtype}", spec.carrier(one) if one.name in constants else one.dtype)
        for one in spec.inputs
    ]
    held += [(f"output {one.name} is {one.dtype}", one.dtype) for one in spec.outputs]
    lacking = [text for text, dtype in held if not in_plugins(dtype)]
    return f"TensorRT has no such tensors for a plugin: {', '.join(lacking)}" if lacking else None


def _unbounded(derivation: Derivation) -> str | None:
    """Why no plugin can be made of this output rule: a size without a greatest value."""
    unbounded = [size.name for size in derivation.size_symbols if size.upper_bound is None]
    if unbounded:
        return (
            f"no greatest value is known for its data-dependent size {', '.join(unbounded)}; state it with "
            "torch._check(size <= bound) in the reference, or with a shape_rule"
        )
    return None
