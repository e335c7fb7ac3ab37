"""Whether a written backward is the gradient of its reference.  For packs' tests; through `layerport.testing`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layerport.errors import UsageError

if TYPE_CHECKING:
    import torch

    from layerport.layers.layer import Layer


def check_backward(layer: Layer, *args: Any, tolerance: float = 1e-6) -> None:
    """Raise AssertionError unless the backward of a layer agrees with its reference.

    args: those of a call; floating-point tensors are taken in float64, and each gets a gradient.  First and second
    derivatives are compared with those of the reference, and the first ones with finite differences
    (`torch.autograd.gradcheck`), but for inputs that the reference detaches; so take small tensors.
    tolerance: the largest difference that is allowed, beside the largest value of the gradient.
    Raises UsageError for a layer without a written backward.
    """
    import torch

    if not has_backward(layer):
        raise UsageError(f"layer {layer.name} has no backward of its own", "write one with @layer.backward")
    wide = tuple(
        one.detach().double().clone().requires_grad_()
        if isinstance(one, torch.Tensor) and one.is_floating_point()
        else one
        for one in args
    )
    arguments = zip(layer.signature.arguments, wide, strict=False)
    names = [argument.name for argument, one in arguments if _differentiable(one)]
    if not names:
        raise UsageError(
            f"layer {layer.name}: none of these arguments has a gradient", "give a tensor of floating-point numbers"
        )
    got, wanted = (_derivatives(function, wide) for function in (layer, layer.reference))
    for order, (ours, theirs) in enumerate(zip(got, wanted, strict=True), start=1):
        for name, one, expected in zip(names, ours, theirs, strict=True):
            _compare(f"layer {layer.name}: derivative {order} by {name}", one, expected, tolerance)
    # What the reference detaches stands still, by definition.
    moved = tuple(one if _reaches(layer.reference, wide, one) else _detached(one) for one in wide)
    if any(map(_differentiable, moved)) and not torch.autograd.gradcheck(layer, moved, raise_exception=False):
        torch.autograd.gradcheck(layer.reference, moved)  # where this fails, it is not the backward that is wrong
        raise AssertionError(f"layer {layer.name}: gradcheck: its backward is not the gradient of what it computes")


def has_backward(layer: Layer) -> bool:
    """Whether a layer's author has written its backward."""
    return layer._torch.backward is not None


def _differentiable(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.requires_grad


def _reaches(function: Any, args: Sequence[Any], one: Any) -> bool:
    """Whether an output has a gradient by this argument."""
    import torch

    if not _differentiable(one):
        return False
    answer = function(*args)
    outputs = (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)
    total = [output.sum() for output in outputs if output.requires_grad]
    return bool(total) and torch.autograd.grad(sum(total), [one], allow_unused=True)[0] is not None


def _detached(value: Any) -> Any:
    return value.detach() if _differentiable(value) else value


def _derivatives(function: Any, args: Sequence[Any]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The first and second derivatives of a fixed random projection of the outputs."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def project(tensors: Sequence[Any]) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for one in tensors:
            weights = torch.randn(one.shape, generator=generator, dtype=torch.float64)
            if one.requires_grad:
                total = total + (one * weights).sum()
        return total

    inputs = [one for one in args if _differentiable(one)]
    answer = function(*args)
    outputs = (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)
    first = _gradients(project(outputs), inputs)
    return first, _gradients(project(first), inputs)


def _gradients(value: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    import torch

    if not value.requires_grad:
        return [torch.zeros_like(one) for one in inputs]
    found = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True)
    return [
        torch.zeros_like(one) if gradient is None else gradient for one, gradient in zip(inputs, found, strict=True)
    ]


def _compare(what: str, got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    import torch

    if got.shape != expected.shape:
        raise AssertionError(f"{what}: expected shape {list(expected.shape)}, got {list(got.shape)}")
    if not expected.numel():
        return
    got, expected = got.detach(), expected.detach()
    allowed = tolerance * max(float(expected.abs().max()), 1e-12)
    distance = (got - expected).abs().nan_to_num(torch.inf, torch.inf).reshape(-1)
    worst = int(distance.argmax())
    if float(distance[worst]) > allowed:
        index = [int(part) for part in torch.unravel_index(torch.tensor(worst), expected.shape)]
        raise AssertionError(
            f"{what}: the worst is {index}: expected {float(expected.reshape(-1)[worst]):.9g}, "
            f"got {float(got.reshape(-1)[worst]):.9g}, allowed difference {allowed:.3g}"
        )
