"""Compares what a bundle computes with what Torch computed when it was built.  Imports NumPy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerport.session import Session, load

if TYPE_CHECKING:
    import numpy as np

# (absolute, relative) by dtype; an element passes when |got - want| <= absolute + relative * |want|.
TOLERANCES = {"float64": (1e-9, 1e-7), "float32": (1e-4, 1e-3), "float16": (1e-2, 1e-2), "bfloat16": (5e-2, 5e-2)}


@dataclass(frozen=True)
class OutputCheck:
    """How far one output is from Torch's: largest absolute and relative error, cosine, and whether it passes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    cosine: float
    passed: bool
    fault: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The check as a program reads it; a figure that is infinite is null."""
        figures = {name: getattr(self, name) for name in ("max_abs", "max_rel", "cosine")}
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        return {**self.__dict__, "shape": list(self.shape), **finite}


@dataclass(frozen=True)
class Verification:
    """The checks of all outputs; device says what ran, note what it does not show, on_gpu whether it was the engine."""

    outputs: tuple[OutputCheck, ...]
    device: str
    note: str | None = None
    on_gpu: bool = False

    @property
    def passed(self) -> bool:
        """Whether every output passed."""
        return bool(self.outputs) and all(one.passed for one in self.outputs)

    def to_json(self) -> dict[str, Any]:
        """The verification as a program reads it."""
        return {
            "passed": self.passed,
            "device": self.device,
            "note": self.note,
            "on_gpu": self.on_gpu,
            "outputs": [one.to_json() for one in self.outputs],
        }


def verify(
    bundle: str | Path | Session, *, device: str = "auto", atol: float | None = None, rtol: float | None = None
) -> Verification:
    """Run a bundle on its stored samples and compare with Torch's outputs.

    atol, rtol: None takes the tolerance of each output's dtype.  Raises as `load` does; a mismatch is an answer.
    """
    if not isinstance(bundle, Session):
        with load(bundle, device=device) as session:
            return verify(session, atol=atol, rtol=rtol)
    session = bundle
    inputs, expected = session.bundle.samples()
    got = session.run(inputs)
    checks = [compare(name, got.get(name), want, atol=atol, rtol=rtol) for name, want in expected.items()]
    return Verification(tuple(checks), session.why, session.precision_note, session.on_gpu)


def compare(
    name: str,
    got: np.ndarray[Any, Any] | None,
    want: np.ndarray[Any, Any],
    *,
    atol: float | None = None,
    rtol: float | None = None,
) -> OutputCheck:
    """Compare one output with Torch's, in float64; equal infinities and NaN in the same place agree."""
    import numpy as np

    dtype = want.dtype.name
    shape = tuple(want.shape)
    if got is None or got.shape != want.shape or got.dtype != want.dtype:
        found = "nothing" if got is None else f"{got.dtype.name}{list(got.shape)}"
        fault = f"expected {dtype}{list(shape)}, got {found}"
        return OutputCheck(name, dtype, shape, float("inf"), float("inf"), 0.0, False, fault)
    absolute, relative = TOLERANCES.get(dtype, (0.0, 0.0))
    absolute = absolute if atol is None else atol
    relative = relative if rtol is None else rtol
    left, right = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(all="ignore"):
        difference = np.where(same, 0.0, np.abs(left - right))
        ratio = np.where(same, 0.0, difference / np.maximum(np.abs(right), np.finfo(np.float64).tiny))
    # An infinity allows infinite error by the formula, so it has to be met exactly.
    passed = bool(np.all(same | (np.isfinite(right) & (difference <= absolute + relative * np.abs(right)))))
    max_abs = float(np.where(np.isnan(difference), np.inf, difference).max(initial=0.0))
    max_rel = float(np.where(np.isnan(ratio), np.inf, ratio).max(initial=0.0))
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    cosine = float(left @ right) / norms if norms and np.isfinite(norms) else (1.0 if same.all() else 0.0)
    return OutputCheck(name, dtype, shape, max_abs, max_rel, cosine, passed)
