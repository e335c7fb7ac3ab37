"""The core's own plugin of a layer: its kernels, chosen by dtype and predicate, traced and compiled for the target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from layerport.bundle.kernel_code import KernelCode, KernelStep
from layerport.bundle.plugin_spec import PluginSpec
from layerport.dtypes import DType
from layerport.kernels import compilation
from layerport.kernels.choice import Candidate, candidates, dtypes_for
from layerport.kernels.compilation import Compilation
from layerport.kernels.declaration import Kernel
from layerport.parameters.standard_form import Parameters
from layerport.sizes.tensors import TensorType, renamed

if TYPE_CHECKING:
    from layerport.kernels.launch_rules import LaunchRule
    from layerport.layers.layer import BoundLayer, Layer
    from layerport.targets import Target


@dataclass(frozen=True, eq=False)
class Choice:
    """The kernels of a layer that fit one place, with their guards, and why each other one does not."""

    kernels: tuple[Candidate, ...]
    reasons: tuple[str, ...]


def tensor_arguments(bound: BoundLayer) -> dict[str, TensorType | None]:
    """What a launch rule sees at this place: sizes that are known as numbers, the others as symbols; outputs last."""
    assert bound.place is not None
    tensors: dict[str, TensorType | None] = {}
    for name, tensor in bound.place.tensors.items():
        if tensor is None:
            tensors[name] = None
        elif name in bound.parameters:
            array = bound.parameters[name]
            tensors[name] = TensorType(name, DType(array.dtype.name), tuple(int(size) for size in array.shape))
        else:
            tensors[name] = tensor.by_place()
    for output in renamed(bound.place.derivation.outputs, bound.layer.signature.output_names):
        tensors[output.name] = output
    for size in bound.place.derivation.size_symbols:
        tensors[size.name] = TensorType(size.name, DType.INT64, ())
    return tensors


def with_wide_parameters(bound: BoundLayer) -> BoundLayer:
    """With parameters of 16 bits as float32, which loses nothing, where the layer's kernels take only that here.

    A model of 16 bits may keep its residual sum in float32, and then normalises that with weights of 16 bits.
    """
    parameters = bound.parameters
    narrow = {name: array for name, array in parameters.items() if array.dtype.name in ("float16", "bfloat16")}
    if not narrow or _have_dtypes(bound):
        return bound
    arrays = {**parameters, **{name: array.astype("float32") for name, array in narrow.items()}}
    wide = replace(bound, parameters=Parameters(arrays, parameters.attributes))
    return wide if _have_dtypes(wide) else bound


def _have_dtypes(bound: BoundLayer) -> bool:
    """Whether any kernel of the layer takes the dtypes of this place."""
    signature, tensors = bound.layer.signature, tensor_arguments(bound)
    return any(dtypes_for(kernel, signature, tensors) is not None for kernel in bound.layer.kernels)


def choose_kernels(bound: BoundLayer, target: Target) -> Choice:
    """The kernels that may run here, in the layer's order; none where there are shapes that none of them takes.

    One after the first that takes every shape is there only where the target's build may measure it as the faster one.
    """
    chosen: list[Candidate] = []
    reasons = []
    first: Kernel | None = None  # that takes every shape
    for one in candidates(bound.layer, tensor_arguments(bound), bound.parameters.attributes):
        if isinstance(one, str):
            reasons.append(one)
        elif first is not None and not target.measures:
            reasons.append(f"{one.kernel.name}: {first.name} takes every shape before it, and no GPU compares them")
        else:
            first = one.kernel if one.guard is None and first is None else first
            chosen.append(one)
    if first is not None:
        return Choice(tuple(chosen), tuple(reasons))
    if chosen:
        reasons.append(
            "no kernel takes every shape: " + ", ".join(f"{one.kernel.name} only where {one.guard}" for one in chosen)
        )
    return Choice((), tuple(reasons))


def why_no_kernel(bound: BoundLayer, target: Target) -> str:
    """Why a layer has no plugin at this place."""
    if not bound.layer.kernels:
        return "the layer has no kernel"
    return "; ".join(choose_kernels(bound, target).reasons) or f"its pack gives no plugin for {target}"


def why_not_chosen(bound: BoundLayer, spec: PluginSpec, target: Target) -> tuple[str, ...]:
    """For each kernel of a layer that its plugin at this place does not hold, the reason."""
    held = {kernel.name for kernel in spec.kernels}
    if spec.plugin_class is not None or held >= {kernel.name for kernel in bound.layer.kernels}:
        return ()
    return choose_kernels(bound, target).reasons


def plugin_from_kernels(layer: Layer, bound: BoundLayer, target: Target) -> PluginSpec | None:
    """The plugin spec made from the layer's kernels; None where none of them fits.

    Raises PackError for a launch rule and BuildError for a kernel that is at fault.
    """
    assert bound.place is not None
    choice = choose_kernels(bound, target)
    if not choice.kernels:
        return None
    tensors = tensor_arguments(bound)
    attributes = bound.parameters.attributes
    built = iter(
        compilation.build_kernels(
            [
                Compilation(one.kernel, layer.signature, one.dtypes, attributes, architecture, layer.name, tensors)
                for one in choice.kernels
                for architecture in target.architectures
            ]
        )
    )
    kernels: list[KernelCode] = []
    images: dict[str, bytes] = {}
    for candidate in choice.kernels:
        # A compiler may want another block or more shared memory for one architecture than for another.
        by_launch: dict[tuple[tuple[str, LaunchRule], ...], dict[str, tuple[str, ...]]] = {}
        for architecture in target.architectures:
            one = next(built)
            images |= {step.cubin.digest: step.cubin.image for step in one.steps}
            launches = tuple((step.cubin.symbol, step.rule) for step in one.steps)
            by_launch.setdefault(launches, {})[architecture] = tuple(step.cubin.digest for step in one.steps)
            scratch = one.scratch
        for launches, digests in by_launch.items():
            steps = tuple(
                KernelStep(symbol, rule, {architecture: each[place] for architecture, each in digests.items()})
                for place, (symbol, rule) in enumerate(launches)
            )
            kernels.append(KernelCode(candidate.kernel.name, steps, candidate.guard, scratch))
    return PluginSpec.of(bound, kernels=tuple(kernels), images=images)
