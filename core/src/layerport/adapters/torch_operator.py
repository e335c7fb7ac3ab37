"""Registers a layer as a Torch operator: define, CPU and generic implementation, fake, autograd.

`Library.define` + `impl` and not `torch.library.custom_op`: the latter costs 6 us a call where this costs 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from layerport.errors import UsageError

if TYPE_CHECKING:
    from layerport.layers import Layer

# A torch Library unregisters its operators when it is collected, so the libraries live here.
_libraries: dict[str, tuple[torch.library.Library, Layer]] = {}


def register_operator(layer: Layer) -> None:
    """Make `torch.ops.<namespace>.<name>` from the layer's reference.

    The same source registered again (a reloaded file) replaces the first.  Two sources with one identity keep the
    first operator; calling the second layer raises, and the packs that bring both are refused by the host.
    """
    earlier = _libraries.get(layer.name)
    if earlier is not None:
        library, first = earlier
        if first.origin.rpartition(":")[0] != layer.origin.rpartition(":")[0]:
            layer._operator = _conflict(layer, first)
            return
        library._destroy()
    library = torch.library.Library(layer.namespace, "FRAGMENT")
    try:
        library.define(layer.signature.schema(layer.short_name))
    except RuntimeError as error:
        raise UsageError(
            f"layer {layer.name} ({layer.origin}): torch does not take its operator: {str(error).splitlines()[0]}",
            "choose another namespace or layer name",
        ) from error
    library.impl(layer.short_name, _without_aliases(layer.reference), "CompositeExplicitAutograd")
    torch.library.register_fake(layer.name, layer.reference, lib=library)
    _register_autograd(layer, library)
    _libraries[layer.name] = (library, layer)
    layer._operator = getattr(getattr(torch.ops, layer.namespace), layer.short_name).default


def _conflict(layer: Layer, first: Layer) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise UsageError(
            f"layer {layer.name} is defined twice: at {first.origin} and at {layer.origin}",
            "remove or disable one of the two packs (LAYERPORT_DISABLE_PACKS=name)",
        )

    return refuse


def _without_aliases(reference: Any) -> Any:
    """An operator must not return its input or a view of it, which a plain function may well do."""

    def run(*args: Any, **kwargs: Any) -> Any:
        result = reference(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            return result.clone() if _shares(result, args, kwargs) else result
        return tuple(item.clone() if _shares(item, args, kwargs) else item for item in result)

    return run


def _shares(result: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    # Inference tensors do not record views, so the storages are compared.
    storage = result.untyped_storage()._cdata
    for value in args:
        if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata == storage:
            return True
    for value in kwargs.values():
        if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata == storage:
            return True
    return False


def _register_autograd(layer: Layer, library: torch.library.Library) -> None:
    names = [argument.name for argument in layer.signature.arguments]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.tensor_places = [place for place, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
        ctx.save_for_backward(*(inputs[place] for place in ctx.tensor_places))
        ctx.others = tuple(None if isinstance(value, torch.Tensor) else value for value in inputs)

    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        values = list(ctx.others)
        wanted = []
        with torch.enable_grad():
            for place, saved in zip(ctx.tensor_places, ctx.saved_tensors, strict=True):
                if ctx.needs_input_grad[place]:
                    # The view keeps the saved tensor's own graph, which a second derivative needs.
                    saved = saved.view_as(saved) if saved.requires_grad else saved.detach().requires_grad_()
                    wanted.append(place)
                values[place] = saved
            result = layer.reference(**dict(zip(names, values, strict=True)))
        outputs = (result,) if isinstance(result, torch.Tensor) else tuple(result)
        pairs = [
            (output, gradient)
            for output, gradient in zip(outputs, gradients, strict=True)
            if gradient is not None and output.requires_grad
        ]
        answer: list[Any] = [None] * len(values)
        if pairs:
            found = torch.autograd.grad(
                [output for output, _ in pairs],
                [values[place] for place in wanted],
                [gradient for _, gradient in pairs],
                allow_unused=True,
                create_graph=torch.is_grad_enabled(),
            )
            for place, gradient in zip(wanted, found, strict=True):
                answer[place] = gradient
        return tuple(answer)

    torch.library.register_autograd(layer.name, backward, setup_context=setup_context, lib=library)
