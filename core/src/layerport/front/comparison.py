"""How far a candidate's outputs are from its module's: the figure that decides on a claim.  Used by `proving`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# How far a claim may be from the module, relative to the value plus the mean magnitude of its tensor.  Two kernels that
# round once more or less on the way differ by one or two units in the last place.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# Elements compared at once: few enough to stay in a core's cache, which is faster and needs no memory to speak of.
CHUNK = 1 << 15


@dataclass(frozen=True)
class Difference:
    """How far outputs are apart.

    error: the largest, see `relative_error`.  fault: why it is too much, None where it is not.
    """

    error: float
    fault: str | None = None


def compare(expected: Sequence[Any], got: Sequence[Any], loss: float | None = None) -> Difference:
    """Compare a candidate's outputs with the module's: number, types, shapes and values.

    loss: the error that a lossy candidate declares, which it may have where the dtype allows less.
    """
    if len(expected) != len(got):
        return Difference(math.inf, f"gives {len(got)} outputs where the module gives {len(expected)}")
    worst, fault = 0.0, None
    for place, (want, have) in enumerate(zip(expected, got, strict=True)):
        if not isinstance(want, torch.Tensor) or not isinstance(have, torch.Tensor):
            if want is not have and not _equal(want, have):
                return Difference(math.inf, f"output {place} is {have!r} where the module gives {want!r}")
            continue
        if want.shape != have.shape or want.dtype != have.dtype:
            return Difference(math.inf, f"output {place} is {type_text(have)} where the module gives {type_text(want)}")
        error, allowed = relative_error(want, have)
        if loss is not None and allowed:  # whole numbers have to be equal all the same
            allowed = max(allowed, loss)
        worst = max(worst, error)
        if not error <= allowed:
            fault = _miss(place, want, error, allowed)
    return Difference(worst, fault)


def relative_error(want: torch.Tensor, have: torch.Tensor) -> tuple[float, float]:
    """The largest error relative to the value plus the tensor's mean magnitude, and what its dtype allows.

    want, have: of one shape and dtype.  Infinities and NaN must stand in the same places, and tell nothing else: the
    mean is that of the finite values.  Whole numbers and bools must be equal.  In float16 a distance of its least
    number, 6e-8, is none.
    """
    allowed = TOLERANCES.get(want.dtype, 0.0)
    if want.numel() == 0:
        return 0.0, allowed
    if want.dtype not in TOLERANCES:
        return (0.0 if torch.equal(want, have) else math.inf), 0.0
    if torch.equal(want, have):
        return 0.0, allowed
    mean = mean_magnitude(want)
    # The least value of a narrow type: nothing can be stored below it, so nothing can be met any closer.
    info = torch.finfo(want.dtype)
    least = info.smallest_normal * info.eps if want.dtype == torch.float16 else 0.0
    worst = 0.0
    for one, other in _chunks(want, have):
        gap = (one - other).abs_()
        if least:
            gap.sub_(least).clamp_(min=0.0)
        worst_here = float(gap.div_(one.abs().add_(mean)).amax())
        if not math.isfinite(worst_here):  # zeros alone, or values that are not finite
            worst_here = _careful_error(one, other, mean, least)
        worst = max(worst, worst_here)
    return worst, allowed


def mean_magnitude(tensor: torch.Tensor) -> float:
    """The mean magnitude of a tensor's finite values; 0 where none is finite."""
    total = math.fsum(float(chunk.abs().sum()) for (chunk,) in _chunks(tensor))
    if math.isfinite(total):
        return total / tensor.numel()
    total, count = 0.0, 0
    for (chunk,) in _chunks(tensor):
        finite = chunk[chunk.isfinite()].double()
        total += float(finite.abs().sum())
        count += finite.numel()
    return total / count if count else 0.0


def tells_something(value: Any) -> bool:
    """Whether an output is evidence at all: a tensor with a value that is neither zero nor infinite nor NaN."""
    if not isinstance(value, torch.Tensor):
        return False
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    if value.dtype in TOLERANCES:
        return mean_magnitude(value) > 0
    return bool((value if value.itemsize > 1 or not value.is_floating_point() else value.float()).any())


def type_text(tensor: torch.Tensor) -> str:
    """Dtype and shape, as `float32[3, 16]`."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _careful_error(one: torch.Tensor, other: torch.Tensor, mean: float, least: float) -> float:
    same = (one == other) | (one.isnan() & other.isnan())
    error = ((one - other).abs() - least).clamp(min=0.0) / (one.abs() + mean)
    return float(torch.where(same, torch.zeros_like(error), error).nan_to_num(nan=math.inf).max())


def _miss(place: int, want: torch.Tensor, error: float, allowed: float) -> str:
    if want.dtype not in TOLERANCES:
        return f"output {place} ({type_text(want)}) differs, and must be equal"
    return f"output {place} is off by {error:.3g} (relative), {allowed:.1g} is allowed"


def _chunks(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Flat parts of tensors of one shape, in float32 or wider; a tensor that is not contiguous is copied in parts."""
    first = tensors[0]
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    if all(tensor.is_contiguous() for tensor in tensors):
        flat = [tensor.detach().reshape(-1) for tensor in tensors]
        for start in range(0, first.numel(), CHUNK):
            yield tuple(part[start : start + CHUNK].to(wide) for part in flat)
    elif first.numel() <= CHUNK:
        yield tuple(tensor.detach().reshape(-1).to(wide) for tensor in tensors)
    else:
        axis = next(place for place, size in enumerate(first.shape) if size > 1)
        rows = max(1, CHUNK * first.shape[axis] // first.numel())
        for start in range(0, first.shape[axis], rows):
            size = min(rows, first.shape[axis] - start)
            yield from _chunks(*(tensor.narrow(axis, start, size) for tensor in tensors))


def _equal(want: Any, have: Any) -> bool:
    try:
        return bool(want == have)
    except Exception:  # an object of the model's own that cannot be compared
        return False
