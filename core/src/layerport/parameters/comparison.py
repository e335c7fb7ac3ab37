"""How far an array is from another one, and whether that is close enough.  Imports NumPy only, when it is used.

Verification compares a bundle's outputs with Torch's by it, the check of a kernel its outputs with the reference's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerport.system.records import Record

if TYPE_CHECKING:
    import numpy as np

# (share of the tensor's magnitude, share of the element) by dtype; an element passes when
# |got - want| <= first * magnitude + second * |want|.  Whole numbers and bools have to be equal.
TOLERANCES = {
    "float64": (1e-9, 1e-7),
    "float32": (1e-4, 1e-3),
    "float16": (1e-2, 1e-2),
    "bfloat16": (5e-2, 5e-2),
    # One unit in the last place: three bits of mantissa, two bits.
    "float8_e4m3fn": (0.02, 0.13),
    "float8_e5m2": (0.04, 0.26),
}
KERNEL_TOLERANCES = {
    **TOLERANCES,
    "float64": (1e-12, 1e-12),
    "float32": (1e-4, 1e-4),
    "float16": (5e-3, 5e-3),
    "bfloat16": (3e-2, 3e-2),
}
LEAST_COSINE = 0.99
# Values beyond so many medians do not set a tensor's magnitude: a mask of -3e38 would allow any error elsewhere.
_OUTLIER = 1000.0
# What may be there where nothing but zeros is wanted: the remains of a difference of rounded values around 1.
_REMAINS = {"float64": 1e-15, "float32": 1e-7, "float16": 1e-7, "bfloat16": 1e-7}


@dataclass(frozen=True)
class Loss(Record):
    """What lossy claims change in an output, measured in Torch on the example inputs.

    error: the largest |changed - own| / (|own| + the magnitude); of whole numbers and bools, the share that differs.
    cosine: of the two.
    """

    error: float
    cosine: float


@dataclass(frozen=True)
class OutputCheck:
    """How far one output is from Torch's: largest absolute and relative error, cosine, and whether it passes.

    nan, infinite: how many elements are that in both and were met by the same; nothing is shown by them.
    loss: the error of the model's lossy claims, which is allowed beside what the dtype allows.
    precision: the coarser dtype that it was computed through, whose tolerance counted; None where there is none.
    fault: why it does not pass, where that is no matter of size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    cosine: float
    passed: bool
    fault: str | None = None
    nan: int = 0
    infinite: int = 0
    loss: float | None = None
    precision: str | None = None

    @property
    def answer(self) -> str:
        """The answer in words: a plain "pass" only where every element was compared."""
        if not self.passed:
            return f"FAIL{': ' + self.fault if self.fault else ''}"
        counts = [f"{count} {what}" for count, what in ((self.nan, "NaN"), (self.infinite, "infinite")) if count]
        answer = f"pass where finite; {' and '.join(counts)} in both" if counts else "pass"
        if self.precision is not None:
            answer = f"{answer}, computed in {self.precision}"
        return answer if self.loss is None else f"{answer}, with the {self.loss:.2g} that its lossy claims lose"

    def to_json(self) -> dict[str, Any]:
        """The check as a program reads it; a figure that is infinite is null."""
        figures = {name: getattr(self, name) for name in ("max_abs", "max_rel", "cosine")}
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        return {**self.__dict__, "shape": list(self.shape), **finite}


def compare(
    name: str,
    got: np.ndarray[Any, Any] | None,
    want: np.ndarray[Any, Any],
    *,
    atol: float | None = None,
    rtol: float | None = None,
    tolerances: Mapping[str, tuple[float, float]] = TOLERANCES,
    loss: Loss | None = None,
    precision: str | None = None,
) -> OutputCheck:
    """Compare one output with the wanted one, whole numbers and bools exactly, others in float64.

    atol: an absolute tolerance instead of the share of the tensor's magnitude.  rtol: instead of the share of the
    element.  NaN and infinities must be met by the same, and are counted; a tensor of nothing else does not pass, nor
    one with a cosine below LEAST_COSINE.  loss: what the model's lossy claims change, which is allowed beside the
    tolerance of the dtype.  precision: a coarser dtype that the output was computed through; its tolerance counts.
    """
    import numpy as np

    dtype, judged = want.dtype.name, precision or want.dtype.name
    if loss is not None:
        tolerances = _with_loss(tolerances, judged, loss)
    shape = tuple(want.shape)
    if got is None or got.shape != want.shape or got.dtype != want.dtype:
        found = "nothing" if got is None else f"{got.dtype.name}{list(got.shape)}"
        return refused(name, want, f"expected {dtype}{list(shape)}, got {found}")
    if want.dtype.kind in "biu":
        return _compare_exactly(name, got, want, loss)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        left, right = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    nan, infinite = np.isnan(right), np.isinf(right)
    same = (left == right) | (np.isnan(left) & nan)
    finite = ~(nan | infinite)
    with np.errstate(all="ignore"):
        difference = np.where(same, 0.0, np.abs(left - right))
        ratio = np.where(same, 0.0, difference / np.maximum(np.abs(right), np.finfo(np.float64).tiny))
        allowed = _allowed(right, judged, atol, rtol, tolerances)
    # An infinity allows infinite error by the formula, so it has to be met exactly.
    passed = bool(np.all(same | (finite & (difference <= allowed))))
    cosine = _cosine(left[finite], right[finite])
    fault = None
    if passed and right.size and not finite.any():
        passed, fault = False, "every value is NaN or infinite, so nothing was compared"
    elif passed and cosine < (least := LEAST_COSINE * (1.0 if loss is None else loss.cosine)) and right[finite].any():
        passed, fault = False, f"the cosine is {cosine:.4f}, at least {least:.4g} is wanted"
    return OutputCheck(
        name,
        dtype,
        shape,
        float(np.where(np.isnan(difference), np.inf, difference).max(initial=0.0)),
        float(np.where(np.isnan(ratio), np.inf, ratio).max(initial=0.0)),
        cosine,
        passed,
        fault,
        int(nan.sum()) if passed else 0,
        int(infinite.sum()) if passed else 0,
        None if loss is None else loss.error,
        precision,
    )


def loss_between(changed: np.ndarray[Any, Any], own: np.ndarray[Any, Any]) -> Loss:
    """What lossy claims change in an output of one shape and dtype; infinite where one alone is infinite or NaN."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        left, right = changed.astype(np.float64).ravel(), own.astype(np.float64).ravel()
    finite = np.isfinite(left) & np.isfinite(right)
    cosine = _cosine(left[finite], right[finite])
    if own.dtype.kind in "biu":
        return Loss(float((changed != own).mean()) if own.size else 0.0, cosine)
    _, far = errors_within(left, right, own.dtype.name, TOLERANCES)
    return Loss(float(far.max(initial=0.0)), cosine)


def refused(name: str, want: np.ndarray[Any, Any], fault: str) -> OutputCheck:
    """The check of an output that cannot be compared at all."""
    return OutputCheck(name, want.dtype.name, tuple(want.shape), math.inf, math.inf, 0.0, False, fault)


def errors_within(
    got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], dtype: str, tolerances: Mapping[str, tuple[float, float]]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """For each element whether it is close enough, and how far it is: |got - want| / (|want| + the magnitude).

    got, want: float64 of one shape.  dtype: of the output as it is stored, which sets the tolerance.
    """
    import numpy as np

    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(all="ignore"):
        difference = np.where(same, 0.0, np.abs(got - want))
        near = same | (np.isfinite(want) & (difference <= _allowed(want, dtype, None, None, tolerances)))
        far = np.where(same, 0.0, difference / np.maximum(np.abs(want) + magnitude(want), np.finfo(np.float64).tiny))
    return near, np.where(np.isnan(far), np.inf, far)


def tolerance(
    want: np.ndarray[Any, Any], loss: Loss | None = None, precision: str | None = None
) -> tuple[float, float]:
    """How far an element may be from the wanted one: absolute, and as a share of that; for those who compare later."""
    import numpy as np

    dtype = precision or want.dtype.name
    tolerances = TOLERANCES if loss is None else _with_loss(TOLERANCES, dtype, loss)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return _tolerance(want.astype(np.float64).ravel(), dtype, tolerances)


def magnitude(values: np.ndarray[Any, Any]) -> float:
    """The mean magnitude of the finite values, each cut at _OUTLIER medians of those that are not 0."""
    import numpy as np

    sizes = np.abs(values[np.isfinite(values)])
    present = sizes[sizes > 0]
    if not present.size:
        return 0.0
    return float(np.minimum(sizes, _OUTLIER * _median(present)).mean())


def _allowed(
    want: np.ndarray[Any, Any],
    dtype: str,
    atol: float | None,
    rtol: float | None,
    tolerances: Mapping[str, tuple[float, float]],
) -> np.ndarray[Any, Any]:
    import numpy as np

    absolute, relative = _tolerance(want, dtype, tolerances)
    absolute, relative = absolute if atol is None else atol, relative if rtol is None else rtol
    allowed: np.ndarray[Any, Any] = absolute + relative * np.abs(want)
    return allowed


def _with_loss(
    tolerances: Mapping[str, tuple[float, float]], dtype: str, loss: Loss
) -> Mapping[str, tuple[float, float]]:
    share, relative = tolerances.get(dtype, (0.0, 0.0))
    return {**tolerances, dtype: (share + loss.error, relative + loss.error)}


def _tolerance(
    want: np.ndarray[Any, Any], dtype: str, tolerances: Mapping[str, tuple[float, float]]
) -> tuple[float, float]:
    share, relative = tolerances.get(dtype, (0.0, 0.0))
    size = magnitude(want)
    return (share * size if size else _REMAINS.get(dtype, 0.0)) + _least(dtype), relative


def _least(dtype: str) -> float:
    """The least value of a narrow type: below it nothing can be stored, so nothing can be met any closer."""
    if dtype not in ("float16", "float8_e4m3fn", "float8_e5m2"):
        return 0.0
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).smallest_subnormal)


def _compare_exactly(
    name: str, got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], loss: Loss | None
) -> OutputCheck:
    import numpy as np

    different = (got != want).ravel()
    with np.errstate(invalid="ignore"):  # a signalling NaN
        left, right = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    # In float64 neighbours beyond 2**53 are equal, so a difference counts as at least 1.
    difference = np.where(different, np.maximum(np.abs(left - right), 1.0), 0.0)
    ratio = difference / np.maximum(np.abs(right), 1.0)
    count = int(different.sum())
    passed = count <= (0.0 if loss is None else loss.error) * want.size
    return OutputCheck(
        name,
        want.dtype.name,
        tuple(want.shape),
        float(difference.max(initial=0.0)),
        float(ratio.max(initial=0.0)),
        _cosine(left, right),
        passed,
        None if passed else f"{count} of {want.size} values differ",
        loss=None if loss is None else loss.error,
    )


def _cosine(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    import numpy as np

    norms = [float(np.abs(values).max(initial=0.0)) for values in (left, right)]
    if not all(math.isfinite(norm) for norm in norms):
        return 0.0
    if not all(norms):
        return 1.0 if norms == [0.0, 0.0] else 0.0
    left, right = left / norms[0], right / norms[1]
    return float(left @ right) / float(np.linalg.norm(left) * np.linalg.norm(right))


def _median(values: np.ndarray[Any, Any]) -> float:
    """The median of numbers, at least one of them and none a NaN; NumPy's own loads all of np.ma to look for one."""
    import numpy as np

    half, odd = divmod(values.size, 2)
    least = half if odd else half - 1
    return float(np.partition(values, (least, half))[least : half + 1].mean())
