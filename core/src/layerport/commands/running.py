"""`layerport run`: a bundle on inputs from .npy files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from layerport.bundle.bundle import Bundle
from layerport.commands.output_files import OutputFolder, file_names
from layerport.commands.tables import print_table, say
from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.session.session import Session
from layerport.system.records import Record

# NumPy's file format has no such types; their bytes travel as unsigned integers of the same size.
_CARRIERS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


@dataclass(frozen=True)
class OutputSummary(Record):
    """An output in figures, None where it has no finite one; file: where it was written, if it was."""

    dtype: str
    shape: tuple[int, ...]
    min: float | None
    max: float | None
    mean: float | None
    file: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The summary as a program reads it; without a file where none was written."""
        return {name: value for name, value in super().to_json().items() if name != "file" or value is not None}


@dataclass(frozen=True)
class RunResult(Record):
    """What ran and why that, what it does not show, and each output by name."""

    device: str
    note: str | None
    outputs: Mapping[str, OutputSummary]


def run_bundle(
    bundle: str, inputs: Sequence[str], out: str | None, *, device: str = "auto", force: bool = False
) -> RunResult:
    """Run and, with `out`, write each output as NAME.npy; the report says shape, dtype, range and file of each.

    inputs: NAME=FILE.npy; none at all takes the bundle's samples.  Nothing runs unless every output can be a file, and
    nothing is written unless everything ran.
    """
    opened = Bundle.open(bundle)
    files, folder = {}, None
    if out is not None:
        files = file_names([port.name for port in opened.outputs])
        folder = OutputFolder(Path(out), list(files.values()), force=force)
    with Session(opened, device=device) as session:
        arrays = _read(inputs, {port.name: port.dtype for port in opened.inputs}) if inputs else opened.samples()[0]
        outputs = session.run(arrays)
    report = {name: _summary(array) for name, array in outputs.items()}
    if folder is not None:
        paths = folder.write({files[name]: _saving(array) for name, array in outputs.items()})
        report = {name: replace(one, file=str(paths[files[name]])) for name, one in report.items()}
    return RunResult(session.why, session.precision_note, report)


def print_result(result: RunResult) -> None:
    """Print a `run_bundle`."""
    print_table(
        ["output", "type", "min", "max", "mean", "file"],
        [
            [
                name,
                f"{one.dtype}{list(one.shape)}",
                *("" if figure is None else f"{figure:.6g}" for figure in (one.min, one.max, one.mean)),
                one.file or "not written",
            ]
            for name, one in result.outputs.items()
        ],
    )
    say(result.device)


def _read(inputs: Sequence[str], dtypes: Mapping[str, str]) -> dict[str, Any]:
    import numpy as np

    arrays, faults = {}, []
    for text in inputs:
        name, separator, file = text.partition("=")
        if not separator or not name or not file:
            faults.append(f"{text!r} is not NAME=FILE.npy")
            continue
        try:
            array = np.load(file, allow_pickle=False)
        except OSError as error:
            faults.append(f"{name}: {file}: {error.strerror or error}")
            continue
        except Exception:  # NumPy's own text recommends unpickling, and a damaged header raises much else
            faults.append(f"{name}: {file} is not a .npy file of numbers")
            continue
        if not isinstance(array, np.ndarray):
            array.close()
            faults.append(f"{name}: {file} holds several arrays")
            continue
        if name in arrays:
            faults.append(f"{name} is given twice")
        wanted = dtypes.get(name)
        if wanted in _CARRIERS and array.dtype.name == _CARRIERS[wanted]:
            array = array.view(DType(wanted).to_numpy())
        arrays[name] = array
    if faults:
        raise UsageError("inputs cannot be read", "give each as --input NAME=FILE.npy", faults=faults)
    return arrays


def _saving(array: Any) -> Callable[[BinaryIO], None]:
    import numpy as np

    carrier = _CARRIERS.get(array.dtype.name)
    return lambda file: np.save(file, array.view(carrier) if carrier else array, allow_pickle=False)


def finite(value: Any) -> float | None:
    """A figure for JSON, which has no infinities and no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def _summary(array: Any) -> OutputSummary:
    import numpy as np

    values = array.astype(np.float64)
    figures = {"min": values.min(), "max": values.max(), "mean": values.mean()} if array.size else {}
    least, greatest, mean = (finite(figures.get(name)) for name in ("min", "max", "mean"))
    return OutputSummary(array.dtype.name, array.shape, least, greatest, mean)
