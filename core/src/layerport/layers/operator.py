"""Registers a layer as a Torch operator: define, generic implementation, CUDA, fake; `autograd` adds gradients.

`Library.define` + `impl` and not `torch.library.custom_op`: the latter costs 6 us a call where this costs 2.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from layerport.errors import UsageError
from layerport.foreign import torch_private
from layerport.layers.autograd import register_autograd, without_autocast
from layerport.layers.binding import TorchBinding
from layerport.layers.cuda_operator import CudaOperator
from layerport.layers.definitions import same_definition, same_place
from layerport.parameters.arguments import count

if TYPE_CHECKING:
    from layerport.layers.written import WrittenLayer

# Torch annotates this class in parts only.
_Library: Any = torch.library.Library


@dataclass
class _Registered:
    """The operator of an identity.

    library: kept here and nowhere else, because a torch Library unregisters its operators when it is collected.
    twins: layers made earlier by the same lines, which call the same operator.
    """

    library: Any
    layer: WrittenLayer
    binding: TorchBinding
    twins: list[weakref.ref[WrittenLayer]] = field(default_factory=list)


_registered: dict[tuple[str, int], _Registered] = {}


def registered_layer(name: str, version: int | None = None) -> WrittenLayer | None:
    """The layer of this process with this identity, in this version, else in the newest one."""
    found = {number: one.layer for (known, number), one in _registered.items() if known == name}
    return found.get(version or 0) or (found[max(found)] if found else None)


def register_operator(layer: WrittenLayer) -> TorchBinding:
    """Make `torch.ops.<namespace>.<name>` from the layer's reference; from version 2 on its overload `v2` and so on.

    So a saved program that names an operator never runs another version of it.  Within one file or session the last
    definition wins: a layer of other lines that had identity and version before says so when it is called, one of the
    same lines goes on.  Two places with one identity keep the first operator; calling the second layer raises, and the
    packs that bring both are refused by the host.
    """
    earlier = _registered.get((layer.name, layer.version))
    if earlier is not None:
        if not same_place(earlier.layer.reference, layer.reference):
            return TorchBinding(_conflict(layer, earlier.layer), None)
        earlier.library = None
    library = _Library(layer.namespace, "FRAGMENT")
    name = layer.operator_name
    try:
        library.define(layer.signature.schema(name))
    except RuntimeError as error:
        raise UsageError(
            f"layer {layer.name} ({layer.origin}): torch does not take its operator: {str(error).splitlines()[0]}",
            "choose another namespace or layer name",
        ) from error
    implementation, without_data = (_ruled(layer, one) for one in (_with_plain_outputs(layer), _without_data(layer)))
    overloads = getattr(getattr(torch.ops, layer.namespace), layer.short_name)
    binding = TorchBinding(getattr(overloads, name.partition(".")[2] or "default"), None)
    dispatch = torch_private.dispatch(binding.operator)
    if dispatch is None:
        implementation, without_data = without_autocast(implementation), without_autocast(without_data)
    binding.cuda = CudaOperator(layer, implementation)
    library.impl(name, implementation, "CompositeExplicitAutograd")
    library.impl(name, binding.cuda, "CUDA")
    torch.library.register_fake(f"{layer.namespace}::{name}", without_data, lib=library)
    register_autograd(layer, binding, library, dispatch)
    binding.direct = torch_private.called_directly(binding.operator)
    binding.is_compiling = torch.compiler.is_dynamo_compiling
    now = _registered[layer.name, layer.version] = _Registered(library, layer, binding)
    if earlier is not None:
        _supersede(earlier, now)
    return binding


def _supersede(earlier: _Registered, now: _Registered) -> None:
    """Settle what the layers that had the identity before do from here on."""
    layer = now.layer
    alive = [found for twin in earlier.twins if (found := twin()) is not None]
    for old in (*alive, earlier.layer):
        same = same_definition(old.reference, layer.reference)
        if same:
            _follow(old, now)
        elif same is None:
            # The new module is still being run: what the reference refers to is known at the first call.
            before = old._torch
            old._torch = TorchBinding(_undecided(old), before.cuda, before.backward)
        else:
            _retire(old, layer)
            if old is earlier.layer:
                print(
                    f"layerport: layer {layer.name} at {layer.origin} takes the place of the one defined before at "
                    f"{old.origin}; modules made with that one have to be made again",
                    file=sys.stderr,
                )


def _follow(old: WrittenLayer, now: _Registered) -> None:
    old._torch = now.binding
    now.twins.append(weakref.ref(old))


def _undecided(old: WrittenLayer) -> Any:
    def settle(*args: Any, **kwargs: Any) -> Any:
        now = _registered[old.name, old.version]
        if same_definition(old.reference, now.layer.reference) is False:
            _retire(old, now.layer)
        else:
            _follow(old, now)
        return old.operator(*args, **kwargs)

    return settle


def _retire(old: WrittenLayer, layer: WrittenLayer) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise UsageError(
            f"layer {old.name}, defined at {old.origin}, was defined anew at {layer.origin}",
            "use the new one: import it again, and make its modules again with layer.module(...); or give one of the "
            "two another name",
        )

    old._torch = TorchBinding(refuse, None)


def _conflict(layer: WrittenLayer, first: WrittenLayer) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise UsageError(
            f"layer {layer.name} is defined twice: at {first.origin} and at {layer.origin}",
            "remove or disable one of the two packs (LAYERPORT_DISABLE_PACKS=name)",
        )

    return refuse


def _with_plain_outputs(layer: WrittenLayer) -> Callable[..., Any]:
    """The reference, its outputs contiguous and in memory of their own.

    Contiguous, because a kernel writes them so: what runs without data must not tell a compiler other strides.  In
    memory of their own, because an operator must not return its input, a view of it, or views of one tensor, which a
    plain function may well do.  That is asked at each call, because what a function returns may depend on shapes,
    strides and dtypes; so by Torch's own check, written in C++.  Inference tensors do not record views, and it compares
    storages.
    """
    reference, shares = layer.reference, torch_private.shares_memory()

    is_contiguous = torch.Tensor.is_contiguous

    def run(*args: Any) -> Any:
        result = reference(*args)
        try:
            contiguous = is_contiguous(result)
        except TypeError:  # no tensor: cheaper to find out than to ask
            raise _wrong_outputs(layer, result) from None
        if not contiguous:
            return result.contiguous()
        return result.clone() if shares(args, None, (result,)) else result

    def run_several(*args: Any) -> Any:
        results = tuple([item.contiguous() for item in _several(layer, reference(*args))])
        if not shares(args, None, results):
            return results
        outputs: list[torch.Tensor] = []
        for item in results:
            outputs.append(item.clone() if shares((*args, *outputs), None, (item,)) else item)
        return tuple(outputs)

    return run if layer.signature.outputs == 1 else run_several


def _ruled(layer: WrittenLayer, call: Callable[..., Any]) -> Callable[..., Any]:
    """A call that refuses attributes which break their rules; the same where there are none."""
    ruled = layer.signature.ruled
    if not ruled:
        return call

    def run(*args: Any) -> Any:
        # The dispatcher leaves away trailing arguments that have their default.
        given = [(one, args[place]) for place, one in ruled if place < len(args)]
        if faults := [fault for one, value in given for fault in one.broken(value, path=layer.name)]:
            what = f"layer {layer.name}: {count(len(faults), 'attribute')} at fault"
            raise UsageError(what, "give the values that its signature allows", faults=faults)
        return call(*args)

    return run


def _without_data(layer: WrittenLayer) -> Callable[..., Any]:
    """What the operator gives for tensors without data; whether sizes that depend on data are dense is not asked."""

    def empty(output: torch.Tensor) -> torch.Tensor:
        return torch.empty(output.shape, dtype=output.dtype, device=output.device)

    def run(*args: Any) -> Any:
        result = layer.reference(*args)
        if layer.signature.outputs > 1:
            return tuple(map(empty, _several(layer, result)))
        if not isinstance(result, torch.Tensor):
            raise _wrong_outputs(layer, result)
        return empty(result)

    return run


def _several(layer: WrittenLayer, results: Any) -> Sequence[torch.Tensor]:
    if not isinstance(results, (tuple, list)) or len(results) != layer.signature.outputs:
        raise _wrong_outputs(layer, results)
    if not all(isinstance(item, torch.Tensor) for item in results):
        raise _wrong_outputs(layer, results)
    return results


def _wrong_outputs(layer: WrittenLayer, result: Any) -> UsageError:
    """Raised before the dispatcher sees the result: it ends the process where the number of outputs is wrong."""
    kinds = ", ".join(type(item).__name__ for item in (result if isinstance(result, (tuple, list)) else [result]))
    wanted = "a tensor" if layer.signature.outputs == 1 else f"a tuple of {layer.signature.outputs} tensors"
    given = f"a {type(result).__name__} of {kinds}" if isinstance(result, (tuple, list)) else kinds
    return UsageError(
        f"layer {layer.name} ({layer.origin}): its reference returned {given}, its annotation says {wanted}",
        "return what the annotation says, or correct the annotation",
    )
