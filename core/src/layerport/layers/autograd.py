"""The gradients of a layer's operator, and what autocast means for it.  For `operator` and `layers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from layerport.errors import UsageError
from layerport.kernels.declaration import parameter_names
from layerport.parameters.signature import Kind

if TYPE_CHECKING:
    from layerport.foreign.torch_private import Dispatch
    from layerport.layers.binding import TorchBinding
    from layerport.layers.written import WrittenLayer


class WrittenBackward:
    """The backward that an author wrote with `@layer.backward`, its parameters matched to the layer.

    Raises UsageError with all faults of its parameters at once.
    """

    def __init__(self, layer: WrittenLayer, function: Callable[..., Any]) -> None:
        self.layer, self.function = layer, function
        signature = layer.signature
        names = parameter_names(function, f"layer {layer.name}: its backward")
        gradients = [f"grad_{name}" for name in signature.output_names]
        arguments = [argument.name for argument in signature.arguments]
        known = [*arguments, *signature.output_names, *gradients]
        faults = [f"it takes {name}" for name in names if name not in known]
        faults += [f"it does not take {name}" for name in gradients if name not in names]
        if faults:
            raise UsageError(
                f"layer {layer.name}: its backward cannot be called",
                f"it may take {', '.join([*arguments, *signature.output_names])}, and takes {', '.join(gradients)}",
                faults=faults,
            )
        self._arguments = [(place, name) for place, name in enumerate(arguments) if name in names]
        self._outputs = [(place, name) for place, name in enumerate(signature.output_names) if name in names]
        self._gradients = gradients
        self._tensors = [place for place, one in enumerate(signature.arguments) if one.kind is not Kind.ATTRIBUTE]
        self._defaults = signature.defaults

    def save(self, ctx: Any, inputs: tuple[Any, ...], outputs: Sequence[torch.Tensor]) -> None:
        """Keep for the backward pass what it asks for."""
        given = len(inputs)
        inputs += self._defaults[given:]  # the dispatcher leaves away trailing arguments that have their default value
        values = {name: inputs[place] for place, name in self._arguments}
        values |= {name: outputs[place] for place, name in self._outputs}
        saved = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        ctx.save_for_backward(*saved.values())
        ctx.saved_names = tuple(saved)
        ctx.others = {name: value for name, value in values.items() if name not in saved}
        ctx.given = given

    def run(self, ctx: Any, gradients: Sequence[Any]) -> tuple[Any, ...]:
        """One gradient, or None, for each argument of the call."""
        saved: Mapping[str, Any] = dict(zip(ctx.saved_names, ctx.saved_tensors, strict=True))
        answer = self.function(**saved, **ctx.others, **dict(zip(self._gradients, gradients, strict=True)))
        if len(self._tensors) == 1 and (answer is None or isinstance(answer, torch.Tensor)):
            answer = (answer,)
        good = isinstance(answer, (tuple, list)) and len(answer) == len(self._tensors)
        if not good or not all(one is None or isinstance(one, torch.Tensor) for one in answer):
            names = ", ".join(argument.name for argument in self.layer.signature.tensors)
            given = (
                f"({', '.join(type(one).__name__ for one in answer)})"
                if isinstance(answer, (tuple, list))
                else type(answer).__name__
            )
            raise UsageError(
                f"layer {self.layer.name}: its backward returned {given}, not one gradient for each of {names}",
                "return a tuple of tensors, with None for what has no gradient",
            )
        placed: list[Any] = [None] * ctx.given
        for place, gradient in zip(self._tensors, answer, strict=True):
            if place < ctx.given:
                placed[place] = gradient
        return tuple(placed)


def register_autograd(layer: WrittenLayer, binding: TorchBinding, library: Any, dispatch: Dispatch | None) -> None:
    """Differentiate by the author's backward where there is one, else through the reference.

    By the same steps as `torch.library.register_autograd`, without what that does for lists of tensors and for
    keyword-only arguments, which no layer has: it costs more than all of a call's other overhead.  Autocast is off
    inside: what a layer computes in is what it is given.  Otherwise a compiled model, whose fake run sees it on and
    whose calls see it off, gets another dtype than it was told.

    dispatch: what those steps are made of; None where Torch no longer has it, and its own function is called.
    """
    if dispatch is None:
        _register_publicly(layer, binding, library)
        return
    # Looked up once: this runs at every call.
    below, after, redispatch, any_requires_grad, no_autocast = dispatch
    grad_enabled, operator = torch.is_grad_enabled, binding.operator

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *inputs: Any) -> Any:
            with below():
                result = redispatch(keyset & after, *inputs)
            _keep(binding, ctx, inputs, result)
            return result

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
            with no_autocast():
                return None, *_gradients(layer, ctx, gradients, ctx.needs_input_grad[1:])

    apply: Any = Differentiable.apply

    def differentiate(keyset: Any, *args: Any) -> Any:
        if grad_enabled() and any_requires_grad(*args):
            return apply(keyset, *args)
        with below():
            return redispatch(keyset & after, *args)

    def outside_autocast(keyset: Any, *args: Any) -> Any:
        with no_autocast():
            return operator(*args)

    library.impl(layer.operator_name, differentiate, "Autograd", with_keyset=True)
    for key in ("AutocastCPU", "AutocastCUDA"):
        library.impl(layer.operator_name, outside_autocast, key, with_keyset=True)


def _register_publicly(layer: WrittenLayer, binding: TorchBinding, library: Any) -> None:
    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _keep(binding, ctx, inputs, output)

    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        # Torch gave `keep` the arguments that were left away too, and wants gradients of those that were given.
        wanted = ctx.needs_input_grad
        return _gradients(layer, ctx, gradients, wanted)[: len(wanted)]

    name = f"{layer.namespace}::{layer.operator_name}"
    torch.library.register_autograd(name, without_autocast(backward), setup_context=keep, lib=library)


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which no autocast reaches."""

    def run(*args: Any) -> Any:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args)

    return run


def _keep(binding: TorchBinding, ctx: Any, inputs: tuple[Any, ...], result: Any) -> None:
    """Keep for the backward pass what it takes."""
    written = binding.backward
    if written is not None:
        ctx.written = written
        written.save(ctx, inputs, (result,) if isinstance(result, torch.Tensor) else result)
        return
    ctx.written = None
    places = [place for place, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
    ctx.save_for_backward(*[inputs[place] for place in places])
    ctx.tensor_places = places
    ctx.others = [None if isinstance(value, torch.Tensor) else value for value in inputs]


def _gradients(layer: WrittenLayer, ctx: Any, gradients: Sequence[Any], wanted: Sequence[bool]) -> tuple[Any, ...]:
    """One gradient, or None, for each argument that was kept.  wanted: for which of the arguments one is."""
    if ctx.written is not None:
        return ctx.written.run(ctx, gradients)  # type: ignore[no-any-return]
    return _through_reference(layer, ctx, gradients, wanted)


def _through_reference(
    layer: WrittenLayer, ctx: Any, gradients: Sequence[Any], wanted: Sequence[bool]
) -> tuple[Any, ...]:
    values = list(ctx.others)
    places = []
    with torch.enable_grad():
        for place, saved in zip(ctx.tensor_places, ctx.saved_tensors, strict=True):
            if wanted[place]:
                # The view keeps the saved tensor's own graph, which a second derivative needs.
                saved = saved.view_as(saved) if saved.requires_grad else saved.detach().requires_grad_()
                places.append(place)
            values[place] = saved
        # The dispatcher leaves away trailing arguments that have their default value.
        result = layer.reference(*values)
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
            [values[place] for place in places],
            [gradient for _, gradient in pairs],
            allow_unused=True,
            create_graph=torch.is_grad_enabled(),
        )
        for place, gradient in zip(places, found, strict=True):
            answer[place] = gradient
    return tuple(answer)
