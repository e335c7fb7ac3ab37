"""What references call that Torch has under private names only: `lp.scan`, a loop, and `lp.check_values`.

Pack authors use them through `layerport`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from layerport.errors import UsageError
from layerport.foreign import torch_private


def scan(
    step: Callable[..., tuple[Tensor, ...]],
    carry: Sequence[Tensor],
    xs: Sequence[Tensor],
    others: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """Run a step over the first axis of `xs`, for references that go through a sequence or through experts.

    step: `step(*carry, *slices, *others) -> (*next_carry, *ys)`, in Torch operators, without a change of its inputs;
    the carry keeps its shapes and dtypes.  Tensors of the reference that the step reads are named in `others`.
    Returns the last carry, then each of the ys stacked along a new first axis.
    It becomes ONNX's `Scan`, has gradients, and is a loop in TensorRT.
    Raises UsageError without a carry or without xs, or for xs of several lengths.
    """
    if not carry or not xs or any(one.ndim == 0 or one.shape[0] != xs[0].shape[0] for one in xs):
        raise UsageError(
            f"scan over {len(xs)} tensors of shapes {[list(one.shape) for one in xs]} with {len(carry)} carried",
            "give at least one tensor to carry and one to go through, the latter all of one length",
        )

    def flat(*tensors: Tensor) -> list[Tensor]:
        return list(step(*tensors))

    length = xs[0].shape[0]
    if isinstance(length, int) and length == 0:
        # Torch's own loop takes a first slice to see what a step makes.
        made = flat(*carry, *(one.new_zeros(one.shape[1:]) for one in xs), *others)[len(carry) :]
        return (*carry, *(one.new_zeros((0, *one.shape)) for one in made))
    wants_gradients = torch.is_grad_enabled() and any(one.requires_grad for one in (*carry, *xs, *others))
    if wants_gradients and isinstance(length, int) and length > 0:
        # Torch's own loop would load its compiler to differentiate the step, and has first derivatives only.
        return _unrolled(flat, list(carry), xs, others)
    return tuple(torch_private.scan(flat, list(carry), list(xs), tuple(others)))


def _unrolled(
    step: Callable[..., list[Tensor]], carry: list[Tensor], xs: Sequence[Tensor], others: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    kept: list[list[Tensor]] = []
    for place in range(xs[0].shape[0]):
        results = step(*carry, *(one[place] for one in xs), *others)
        carry = results[: len(carry)]
        kept.append(results[len(carry) :])
    return (*carry, *(torch.stack(each) for each in zip(*kept, strict=True)))


def check_values(condition: Tensor, message: str) -> None:
    """Refuse inputs of a reference by their values, such as sizes or indices that have to fit other inputs.

    condition: a tensor of one bool.  Where it has a value and is False, this raises RuntimeError with the message; a
    trace and an export keep no check, so that the kernel has to bear any values.
    """
    torch_private.check_values(condition, message)
