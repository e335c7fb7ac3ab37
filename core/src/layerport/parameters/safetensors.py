"""Reads and writes safetensors files without copying; the parameters and the bundle use it.

Why not the library: its NumPy side copies each tensor, its metadata comes out in an order that changes from
run to run, and its writers want every tensor as bytes first.  The format is 8 bytes of length, a JSON
header, and the data.
Reading trusts nothing.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.parameters.arrays import Array, canonical_bytes
from layerport.system.strict_json import read_json

_NAMES = {
    DType.FLOAT64: "F64",
    DType.FLOAT32: "F32",
    DType.FLOAT16: "F16",
    DType.BFLOAT16: "BF16",
    DType.FLOAT8_E4M3FN: "F8_E4M3",
    DType.FLOAT8_E5M2: "F8_E5M2",
    DType.INT64: "I64",
    DType.INT32: "I32",
    DType.INT16: "I16",
    DType.INT8: "I8",
    DType.UINT64: "U64",
    DType.UINT32: "U32",
    DType.UINT16: "U16",
    DType.UINT8: "U8",
    DType.BOOL: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
# The format's own names end at 8 bits: the 4-bit types travel one per byte, and the metadata says so.
_CARRIERS = {DType.INT4: "I8", DType.UINT4: "U8"}
_LARGEST_HEADER = 100_000_000


def write(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of a file, in pieces: the memory of arrays in the standard form is handed out as it is."""
    # Wide elements first, so that each array is aligned to its element without gaps.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in names:
        array = arrays[name]
        dtype = DType.from_numpy(array.dtype)
        header[name] = {
            "dtype": _CARRIERS.get(dtype) or _NAMES[dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield canonical_bytes(arrays[name])


def write_file(path: str | Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write a file whole or not at all."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in write(arrays, metadata):
                file.write(piece)
        # mkstemp is stricter than the umask that the user chose for new files.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_file(path: str | Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays and metadata of a file; the arrays are views of a private map, so writing changes no file."""
    path = Path(path)
    try:
        size = path.stat().st_size
        data = np.memmap(path, np.uint8, "c") if size else np.empty(0, np.uint8)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})", "check the path") from error
    return _read(data.view(np.ndarray), str(path))


def read(data: bytes | bytearray | memoryview, where: str = "the data") -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays and metadata of a file's bytes; the arrays are views of them.  where: what an error calls them."""
    return _read(np.frombuffer(data, np.uint8), where)


def from_slice(value: Any) -> Any:
    """The rule for what `safetensors.safe_open(...).get_slice(name)` gives, for whichever framework."""
    name, shape = value.get_dtype(), value.get_shape()
    if name not in _DTYPES:
        raise UsageError(f"a safetensors slice of {name}", f"store it as one of {', '.join(_DTYPES)}")
    if 0 in shape:  # the library cannot slice an empty tensor
        return np.empty(shape, _DTYPES[name].to_numpy())
    try:
        return value[()]  # `...` is refused by older ones, `:` for a tensor without dims
    except AttributeError:  # opened for NumPy, in which the library knows no fp8
        raise UsageError(
            f"a safetensors slice of {name}, opened for a framework without that type",
            "open the file with framework='pt', or read it with layerport.Parameters.load",
        ) from None


def _read(data: NDArray[np.uint8], where: str) -> tuple[dict[str, Array], dict[str, str]]:
    try:
        return _parse(data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(f"{where}: not a sound safetensors file ({error})", "write or fetch the file again") from error


def _parse(data: NDArray[np.uint8]) -> tuple[dict[str, Array], dict[str, str]]:
    if data.size < 8:
        raise ValueError(f"{data.size} bytes, the length of the header alone takes 8")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(_LARGEST_HEADER, data.size - 8):
        raise ValueError(f"a header of {length} bytes in a file of {data.size}")
    header = read_json(data[8 : 8 + length].tobytes())
    body = data[8 + length :]
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("metadata that is no text")
    arrays: dict[str, Array] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        shape = entry["shape"]
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name}: dtype {entry['dtype']!r} is not one of {', '.join(_DTYPES)}")
        if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
            raise ValueError(f"{name}: offsets {start}, {end} and shape {shape} are no natural numbers")
        dtype = _DTYPES[entry["dtype"]]
        if end > body.size or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name}: bytes {start} to {end} of {body.size} for {entry['dtype']} of shape {shape}")
        spans.append((start, end))
        piece = body[start:end].view(dtype.to_numpy()).reshape(shape)
        if dtype is DType.BOOL and piece.size and piece.view(np.uint8).max() > 1:
            raise ValueError(f"{name}: a byte above 1 in a BOOL tensor")
        arrays[name] = piece if piece.flags.aligned else piece.copy()
    place = 0
    for start, end in sorted(spans):
        if start != place:
            raise ValueError(f"a gap or an overlap at byte {min(start, place)}")
        place = end
    if place != body.size:
        raise ValueError(f"{body.size - place} bytes that belong to no tensor")
    return arrays, metadata
