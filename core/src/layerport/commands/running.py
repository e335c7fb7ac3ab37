"""`layerport run`: a bundle on inputs from .npy files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from layerport.errors import BuildError, UsageError

# NumPy's file format has no such types; their bytes travel as unsigned integers of the same size.
_CARRIERS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


def run_bundle(
    bundle: str, inputs: Sequence[str], out: str | None, *, device: str = "auto", force: bool = False
) -> dict[str, Any]:
    """Run and, with `out`, write each output as NAME.npy; the report says shape, dtype and range of each.

    inputs: NAME=FILE.npy; none at all takes the bundle's samples.  Nothing is written unless everything ran.
    """
    from layerport.session import load

    with load(bundle, device=device) as session:
        arrays = _read(inputs, {port.name: port.dtype for port in session.bundle.inputs})
        if not inputs:
            arrays = session.bundle.samples()[0]
        folder = _folder(out, [port.name for port in session.bundle.outputs], force)
        outputs = session.run(arrays)
    report = {name: _summary(array) for name, array in outputs.items()}
    if folder is not None:
        for name, path in _write(outputs, folder).items():
            report[name]["file"] = str(path)
    return {"device": session.why, "note": session.precision_note, "outputs": report}


def print_result(result: Mapping[str, Any]) -> None:
    """Print a `run_bundle`."""
    from layerport.commands.tables import print_table

    print_table(
        ["output", "type", "min", "max", "mean", "file"],
        [
            [
                name,
                f"{one['dtype']}{one['shape']}",
                *("" if one[figure] is None else f"{one[figure]:.6g}" for figure in ("min", "max", "mean")),
                one.get("file", "not written"),
            ]
            for name, one in result["outputs"].items()
        ],
    )
    print(result["device"])


def _read(inputs: Sequence[str], dtypes: Mapping[str, str]) -> dict[str, Any]:
    import numpy as np

    from layerport.dtypes import DType

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
        except (ValueError, EOFError):  # NumPy's own text recommends unpickling
            faults.append(f"{name}: {file} is not a .npy file of numbers")
            continue
        if not isinstance(array, np.ndarray):
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


def _folder(out: str | None, names: Sequence[str], force: bool) -> Path | None:
    if out is None:
        return None
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(
            f"{folder} is a file, not a folder", "name a folder with -o; each output becomes NAME.npy in it"
        )
    existing = [f"{name}.npy" for name in names if (folder / f"{name}.npy").exists()]
    if existing and not force:
        raise UsageError(f"{folder} has {', '.join(existing)} already, kept", "choose another folder, or add --force")
    return folder


def _write(outputs: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    import numpy as np

    paths, temporary = {}, []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in outputs.items():
            carrier = _CARRIERS.get(array.dtype.name)
            part = folder / f".{name}.npy.partial"
            temporary.append(part)
            with part.open("wb") as file:
                np.save(file, array.view(carrier) if carrier else array, allow_pickle=False)
            paths[name] = folder / f"{name}.npy"
        for name, path in paths.items():
            os.replace(folder / f".{name}.npy.partial", path)
    except OSError as error:
        raise BuildError(
            f"outputs cannot be written to {folder}: {error.strerror}", "choose another folder with -o"
        ) from error
    finally:
        for part in temporary:
            part.unlink(missing_ok=True)
    return paths


def finite(value: Any) -> float | None:
    """A figure for JSON, which has no infinities and no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def _summary(array: Any) -> dict[str, Any]:
    import numpy as np

    values = array.astype(np.float64)
    figures = {"min": values.min(), "max": values.max(), "mean": values.mean()} if array.size else {}
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        **{name: finite(figures.get(name)) for name in ("min", "max", "mean")},
    }
