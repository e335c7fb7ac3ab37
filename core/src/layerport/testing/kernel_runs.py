"""Runs a layer's kernel on the CPU, through the layer's own launch rule, and checks that it behaves.

For tests: `run_kernel` is reached through `layerport.testing`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerport.dtypes import DType
from layerport.errors import PackError, UsageError
from layerport.harness.execution import Outputs, execute, make_job
from layerport.kernels.choice import Candidate, candidates, select
from layerport.kernels.declaration import Kernel
from layerport.kernels.tracing import trace
from layerport.layers.layer import Layer
from layerport.packs.conversions import installed_packs
from layerport.packs.host import Packs, load
from layerport.packs.loading import Pack
from layerport.parameters.conversion import to_standard
from layerport.parameters.signature import Kind
from layerport.parameters.standard_form import Parameters
from layerport.sizes.tensors import TensorType, renamed, sizes_of
from layerport.targets import Target, TorchTarget
from layerport.testing.host_outputs import data_dependent, greatest_sizes, output_arrays

Array = np.ndarray[Any, np.dtype[Any]]


def run_kernel(
    layer: Layer,
    *args: Any,
    order: str | int = "forward",
    strict: bool = True,
    once: bool = False,
    sanitize: bool = False,
    time_limit: float | None = None,
    kernel: str | None = None,
    offset: int | Mapping[str, int] = 0,
    target: str | Target | TorchTarget = "rtx:sm_89",
    pack: object = None,
    **named: Any,
) -> Any:
    """What the layer's kernel computes, as NumPy arrays: one, or a tuple for several outputs.

    args, named: arrays of any framework and attributes, in the layer's order or by name; None for an absent tensor.
    Parameters are in the standard form, as the reference takes them; the pack's own conversion is applied to them.
    order: in which the threads of a block (and the blocks) run: "forward", "backward", or a seed for a random one.
    strict: False lets pass what many GPUs let pass, and runs once: threads that have returned count as being at a
    barrier and as in a warp's mask, and results may depend on the order of the threads.
    once: True refuses that two threads (or Triton programs) write one element of an output, even the same value, with
    neither a barrier nor an atomic operation between.
    sanitize: build with the address sanitiser instead, which sees arrays of the kernel's own too; CUDA only, slower.
    time_limit: seconds after which a run is stopped; None for 60.
    kernel: the name of one kernel; without it the first that fits.
    offset: bytes by which every pointer misses the alignment of a device allocation, or those of some by name.
    target: what the parameters are converted for.  pack: the pack whose conversion is applied, as in `layerport.build`;
    without it the one that provides the layer: the module of its reference, or an installed pack.

    Where sizes depend on data, the outputs have the sizes that the kernel wrote.
    Raises PackError if the kernel reads or writes out of bounds, writes an input, leaves an output unwritten, has a
    barrier that not all threads reach, does not end, or gives other results over other garbage or in the opposite
    order; UsageError if no kernel takes these arguments.
    """
    call = _Call.of(layer, args, named, Target.parse(target) if isinstance(target, str) else target, pack)
    chosen = _choose(call, kernel)
    label = f"layer {layer.name}, kernel {chosen.name}"
    known = call.known_tensors()
    traced = call.tensors if chosen.in_cuda else known
    launches = trace(chosen, layer.signature, traced, call.attributes, layer=layer.name).launches
    outputs = call.outputs.empty(0)
    job = make_job(
        layer,
        chosen,
        launches,
        call.sizes,
        known,
        call.attributes,
        order=order,
        offset=offset,
        sanitize=sanitize,
        strict=strict,
        once=once,
        time_limit=time_limit,
    )
    if job is not None:
        outputs = execute(job, call.arrays, call.outputs, strict=strict)
    elif any(array.size for array in outputs.values()):
        raise PackError(
            f"{label}: its launch rule gives an empty grid, but the outputs are not empty",
            "correct the launch rule",
        )
    answer = tuple(outputs.values())
    return answer[0] if len(answer) == 1 else answer


def kernels_for(layer: Layer, *args: Any, pack: object = None, **named: Any) -> list[str]:
    """The names of all kernels that take these arguments, in the layer's order; `run_kernel` runs each by its name."""
    call = _Call.of(layer, args, named, Target.parse("rtx:sm_89"), pack)
    tensors = call.known_tensors()
    return [one.kernel.name for one in candidates(layer, tensors, call.attributes) if isinstance(one, Candidate)]


def kernel_for(layer: Layer, *args: Any, **named: Any) -> str:
    """The name of the kernel that these arguments get.  Raises UsageError if none takes them."""
    return _choose(_Call.of(layer, args, named, Target.parse("rtx:sm_89"), None), None).name


@dataclass(frozen=True)
class _Call:
    """The arguments of one call, sorted: arrays as the kernel takes them, attributes, shapes, outputs."""

    layer: Layer
    arrays: dict[str, Array]
    attributes: dict[str, Any]
    tensors: dict[str, TensorType | None]
    outputs: Outputs

    @classmethod
    def of(
        cls, layer: Layer, args: tuple[Any, ...], named: Mapping[str, Any], target: Target | TorchTarget, pack: object
    ) -> _Call:
        values = layer.signature.bind(args, named, layer=layer.name)
        given = {
            argument.name: to_standard(value, path=argument.name).array
            for argument in layer.signature.tensors
            if (value := values.pop(argument.name)) is not None
        }
        attributes = dict(layer.signature.bind_attributes(values, path=layer.name))
        arrays = _converted(layer, given, attributes, target, pack)
        tensors: dict[str, TensorType | None] = {}
        for argument in layer.signature.tensors:
            array = arrays.get(argument.name)
            if array is None:
                tensors[argument.name] = None
                continue
            # As in a plugin: sizes of parameters are numbers, those of inputs symbols.
            symbolic = TensorType.symbolic(argument.name, DType.from_numpy(array.dtype), array.ndim)
            known = TensorType(argument.name, symbolic.dtype, tuple(int(size) for size in array.shape))
            tensors[argument.name] = known if argument.kind is Kind.PARAM else symbolic
        derivation = data_dependent(layer, given, attributes)
        if derivation is None:
            known_outputs = output_arrays(layer, given, attributes)
            tensors |= {one.name: TensorType.symbolic(one.name, one.dtype, one.ndim) for one in known_outputs}
            outputs = Outputs(known_outputs, {}, {})
        else:
            # As in a plugin: memory for the greatest size, and the kernel writes how much of it is used.
            written = renamed(derivation.outputs, layer.signature.output_names)
            outputs = Outputs(written, greatest_sizes(layer, derivation), {})
            tensors |= {one.name: one for one in written}
            tensors |= {name: TensorType(name, DType.INT64, ()) for name in outputs.most}
        return cls(layer, arrays, attributes, tensors, outputs)

    @property
    def sizes(self) -> dict[str, int]:
        shapes = {name: array.shape for name, array in self.arrays.items()}
        return sizes_of(shapes | {name: one.shape for name, one in self.outputs.largest().items()})

    def known_tensors(self) -> dict[str, TensorType | None]:
        """The tensors with numbers for all sizes, which the constexprs of a Triton kernel may depend on."""
        sizes = self.sizes
        return {
            name: tensor and TensorType(name, tensor.dtype, tensor.by_place().resolve(sizes))
            for name, tensor in self.tensors.items()
        }


def _converted(
    layer: Layer, arrays: dict[str, Array], attributes: Mapping[str, Any], target: Target | TorchTarget, pack: object
) -> dict[str, Array]:
    """The arrays with the parameters as the pack converts them for its kernels."""
    names = {argument.name for argument in layer.signature.params} & set(arrays)
    packs = _packs_of(layer, pack) if names else None
    if packs is None:
        return arrays
    standard = Parameters({name: arrays[name] for name in arrays if name in names}, attributes)
    return arrays | dict(packs.convert_parameters(layer, standard, target, path="run_kernel").items())


def _packs_of(layer: Layer, pack: object) -> Packs | None:
    """The pack of this very layer, whatever others provide; None where there is none, so that nothing is converted.

    pack: as in `run_kernel`, or loaded packs, which are taken as they are.
    """
    if isinstance(pack, Packs):
        return pack
    if pack is not None:
        return load(pack)
    home = sys.modules.get(layer.reference.__module__)
    if home is not None and callable(getattr(home, "layerport_layers", None)):
        found = load(home)
    else:
        found = installed_packs()
    own = [pack for pack in found if any(one is layer for one in pack.layers)]
    return _alone(own[0]) if own else None


@functools.lru_cache(maxsize=4)
def _alone(pack: Pack) -> Packs:
    """A pack without the others, each of whose layers is then its own."""
    return Packs((pack,))


def _choose(call: _Call, wanted: str | None) -> Kernel:
    layer = call.layer
    selection = select(layer, call.known_tensors(), call.attributes, only=wanted)
    if selection.kernel is not None:
        return selection.kernel
    names = ", ".join(kernel.name for kernel in layer.kernels) or "none"
    raise UsageError(
        f"layer {layer.name} has no kernel {wanted or 'for these arguments'}",
        f"its kernels: {names}",
        faults=selection.reasons,
    )
