"""The gradients of a layer's operator, and what autocast means for it.  For `operator` and `layers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from layerport.errors import UsageError
from layerport.kernels.declaration import parameter_names
from layerport.parameters.signature import Kind

if TYPE_CHECKING:
    from layerport.layers.layer import Layer

# Torch's own operator registration is built from these, and has no public names for them.
_torch: Any = torch._C
_AUTOCAST = _torch.DispatchKeySet(_torch.DispatchKey.AutocastCPU) | _torch.DispatchKeySet(
    _torch.DispatchKey.AutocastCUDA
)


class WrittenBackward:
    """The backward that an author wrote with `@layer.backward`, its parameters matched to the layer.

    Raises UsageError with all faults of its parameters at once.
    """

    def __init__(self, layer: Layer, function: Callable[..., Any]) -> None:
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


def register_autograd(layer: Layer, library: Any) -> None:
    """Differentiate by the author's backward where there is one, else through the reference.

    By the same steps as `torch.library.register_autograd`, without what that does for lists of tensors and for
    keyword-only arguments, which no layer has: it costs more than all of a call's other overhead.  Autocast is off
    inside: what a layer computes in is what it is given.  Otherwise a compiled model, whose fake run sees it on and
    whose calls see it off, gets another dtype than it was told.
    """
    operator = getattr(getattr(torch.ops, layer.namespace), layer.short_name).default
    # Looked up once: this runs at every call.
    below, after = _torch._AutoDispatchBelowAutograd, _torch._after_autograd_keyset
    grad_enabled, any_requires_grad = torch.is_grad_enabled, _torch._any_requires_grad
    redispatch, excluded = operator.redispatch, _torch._ExcludeDispatchKeyGuard

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *inputs: Any) -> Any:
            written = ctx.written = layer._backward
            if written is not None:
                with below():
                    result = redispatch(keyset & after, *inputs)
                written.save(ctx, inputs, (result,) if isinstance(result, torch.Tensor) else result)
                return result
            ctx.tensor_places = [place for place, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
            ctx.save_for_backward(*(inputs[place] for place in ctx.tensor_places))
            ctx.others = tuple(None if isinstance(value, torch.Tensor) else value for value in inputs)
            with below():
                return redispatch(keyset & after, *inputs)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
            with excluded(_AUTOCAST):
                if ctx.written is not None:
                    return None, *ctx.written.run(ctx, gradients)
                return None, *_through_reference(layer, ctx, gradients)

    apply: Any = Differentiable.apply

    def differentiate(keyset: Any, *args: Any) -> Any:
        if grad_enabled() and any_requires_grad(*args):
            return apply(keyset, *args)
        with below():
            return redispatch(keyset & after, *args)

    def without_autocast(keyset: Any, *args: Any) -> Any:
        with excluded(_AUTOCAST):
            return operator(*args)

    library.impl(layer.short_name, differentiate, "Autograd", with_keyset=True)
    for key in ("AutocastCPU", "AutocastCUDA"):
        library.impl(layer.short_name, without_autocast, key, with_keyset=True)


def _through_reference(layer: Layer, ctx: Any, gradients: Sequence[Any]) -> tuple[Any, ...]:
    values = list(ctx.others)
    wanted = []
    with torch.enable_grad():
        for place, saved in zip(ctx.tensor_places, ctx.saved_tensors, strict=True):
            if ctx.needs_input_grad[place + 1]:
                # The view keeps the saved tensor's own graph, which a second derivative needs.
                saved = saved.view_as(saved) if saved.requires_grad else saved.detach().requires_grad_()
                wanted.append(place)
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
            [values[place] for place in wanted],
            [gradient for _, gradient in pairs],
            allow_unused=True,
            create_graph=torch.is_grad_enabled(),
        )
        for place, gradient in zip(wanted, found, strict=True):
            answer[place] = gradient
    return tuple(answer)
