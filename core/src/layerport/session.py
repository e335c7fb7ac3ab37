"""A loaded bundle that runs.  Imports ONNX Runtime when a session is made, and never torch or a pack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from layerport.bundle import Bundle
from layerport.dims import Port
from layerport.errors import BuildError, UsageError

if TYPE_CHECKING:
    import numpy as np

DEVICES = ("auto", "cpu", "cuda")


def load(path: str | Path, *, device: str = "auto") -> Session:
    """Open a bundle to run it.

    device: "cpu" runs the portable model in ONNX Runtime, "cuda" the engine, "auto" the engine where one can run here.
    Raises UsageError for a folder that is no bundle, BuildError for a damaged one and where "cuda" cannot be had.
    """
    return Session(Bundle.open(path), device=device)


class Session:
    """Runs the portable model of a bundle in ONNX Runtime, on NumPy arrays (ml_dtypes for bfloat16).

    Engines are not run by this version: `device="cuda"` is refused, `why` says what "auto" decided.
    """

    def __init__(self, bundle: Bundle, *, device: str = "auto") -> None:
        if device not in DEVICES:
            raise UsageError(f"device {device!r} is not known", f"use one of {', '.join(DEVICES)}")
        if device == "cuda":
            raise BuildError(
                "this version of layerport runs bundles in ONNX Runtime only, not the engine on a GPU",
                'use device="auto" or "cpu", or run the plan with TensorRT yourself (see docs/bundles.md)',
            )
        self.bundle = bundle
        self.why = "ONNX Runtime on the CPU runs the portable model; this version does not run engines"
        self.precision_note: str | None = None
        self._session = self._open(bundle)

    def _open(self, bundle: Bundle) -> Any:
        from layerport.adapters.onnxruntime_session import open_session

        session, self.precision_note = open_session(bundle.model())
        return session

    def __call__(self, **inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        return self.run(inputs)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """The outputs by name for inputs by name, in any array type that the conversions know.

        Raises UsageError that lists every missing, unknown and ill-shaped input.
        """
        from layerport.adapters.onnxruntime_session import run_session
        from layerport.conversion import to_standard

        arrays = {name: to_standard(value, path=name).array for name, value in inputs.items()}
        faults = check_inputs(self.bundle, arrays)
        if faults:
            raise UsageError(
                f"{len(faults)} inputs do not fit {self.bundle.folder}",
                "it takes " + "; ".join(str(port) for port in self.bundle.inputs),
                faults=faults,
            )
        return run_session(self._session, arrays, self.bundle.outputs)

    def close(self) -> None:
        """Give back what the session holds."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_inputs(bundle: Bundle, arrays: Mapping[str, Any]) -> list[str]:
    """Every fault of the given arrays against the bundle's inputs and dims."""
    ports = {port.name: port for port in bundle.inputs}
    faults = [f"{name}: missing" for name in ports if name not in arrays]
    faults += [f"{name}: the model has no such input" for name in arrays if name not in ports]
    sizes: dict[str, tuple[int, str]] = {}
    for name, port in ports.items():
        if name in arrays:
            faults += _port_faults(port, arrays[name], bundle, sizes)
    return faults


def _port_faults(port: Port, array: Any, bundle: Bundle, sizes: dict[str, tuple[int, str]]) -> list[str]:
    got = f"{array.dtype.name}{list(array.shape)}"
    if array.dtype.name != port.dtype or array.ndim != len(port.dims):
        return [f"{port.name}: expected {port.dtype}[{', '.join(map(str, port.dims))}], got {got}"]
    faults = []
    for axis, (dim, size) in enumerate(zip(port.dims, array.shape, strict=True)):
        if isinstance(dim, int):
            if size != dim:
                faults.append(f"{port.name}: axis {axis} must be {dim}, got {got}")
            continue
        limits = bundle.dims.get(dim)
        if limits is not None and (size < limits.min or (limits.max is not None and size > limits.max)):
            faults.append(f"{port.name}: dim {dim} must be {limits.min}..{limits.max or 'any'}, got {size}")
        known = sizes.setdefault(dim, (size, port.name))
        if known[0] != size:
            faults.append(f"{port.name}: dim {dim} is {size} here and {known[0]} in {known[1]}")
    return faults
