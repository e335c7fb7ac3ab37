"""Where the tensors of an ONNX model keep their data: every tensor anywhere in it, checked before a runtime opens it.

ONNX Runtime and TensorRT read whatever file a tensor names, so what it names must be known before.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from layerport.errors import BuildError, UsageError
from layerport.parameters.frameworks.onnx_dtypes import to_dtype
from layerport.system.plain_files import NotPlainError, open_plain

_KEYS = frozenset({"location", "offset", "length", "checksum"})
_NUMBER = re.compile(r"[0-9]{1,18}")
_MOST_FAULTS = 10
_TENSOR = onnx.TensorProto.DESCRIPTOR.full_name


def require_listed(model: Path, size_of: Callable[[str], int | None]) -> set[str]:
    """The files in which a model file's tensors keep their data, each checked tensor by tensor.

    size_of: how many bytes the file of a location has, None where a tensor must not name it.
    Raises BuildError that lists the tensors that name another file or bytes beyond its end, and for a file that is no
    model.
    """
    try:
        with open_plain(model) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            proto = onnx.ModelProto.FromString(content[:])
    except NotPlainError as error:
        raise BuildError(f"{model} is missing or not a plain file: {error}", "copy the whole bundle again") from error
    except Exception as error:  # protobuf has an error of its own for each way in which bytes are no message
        raise BuildError(
            f"{model} is not an ONNX model: {type(error).__name__}: {error}", "build the bundle again"
        ) from error
    locations, faults = locations_of(proto, size_of)
    if faults:
        raise BuildError(
            f"{model} keeps data of its tensors where it must not",
            "build the bundle again; if you did not change this one, trust it no more",
            faults=faults,
        )
    return locations


def locations_of(proto: onnx.ModelProto, size_of: Callable[[str], int | None]) -> tuple[set[str], list[str]]:
    """The files in which a model's tensors keep their data, and what is wrong with the places that they name."""
    locations: set[str] = set()
    faults: list[str] = []
    for tensor in external_tensors(proto):
        try:
            locations.add(_location(tensor, size_of))
        except ValueError as error:
            faults.append(f"tensor {tensor.name!r:.80} {error}")
    more = [f"and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else []
    return locations, [*faults[:_MOST_FAULTS], *more]


def external_tensors(message: Any, *, initializers: bool = True) -> Iterator[onnx.TensorProto]:
    """Every tensor in a message that keeps its data elsewhere; as `tensors_of`."""
    for tensor in tensors_of(message, initializers=initializers):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            yield tensor


def tensors_of(message: Any, *, initializers: bool = True) -> Iterator[onnx.TensorProto]:
    """Every tensor in a message.

    In graphs, subgraphs, functions and training graphs; as initializers, attributes and parts of sparse tensors.
    initializers: whether the initializers of graphs are among them.
    """
    if message.DESCRIPTOR.full_name == _TENSOR:
        yield message
        return
    for name, many in _ways(message.DESCRIPTOR):
        if name == "initializer" and not initializers:
            continue
        if many:
            for one in getattr(message, name):
                yield from tensors_of(one, initializers=initializers)
        elif message.HasField(name):
            yield from tensors_of(getattr(message, name), initializers=initializers)


@cache
def _ways(kind: Any) -> tuple[tuple[str, bool], ...]:
    """The fields of a message through which a tensor can be reached, and whether they are lists."""
    return tuple(
        (field.name, field.is_repeated)
        for field in kind.fields
        if field.message_type is not None and _reaches(field.message_type, frozenset())
    )


def _reaches(kind: Any, seen: frozenset[str]) -> bool:
    if kind.full_name == _TENSOR:
        return True
    inner = seen | {kind.full_name}
    return any(
        field.message_type.full_name not in seen and _reaches(field.message_type, inner)
        for field in kind.fields
        if field.message_type is not None
    )


def _location(tensor: onnx.TensorProto, size_of: Callable[[str], int | None]) -> str:
    """The file of a tensor.  Raises ValueError where it is not one that holds the tensor."""
    entries = [(entry.key, entry.value) for entry in tensor.external_data]
    stated = dict(entries)
    # Protobuf gives bytes for a text that is no UTF-8.
    if len(stated) != len(entries) or not _KEYS.issuperset(stated) or bytes in map(type, stated.values()):
        raise ValueError(f"has the place {entries!r:.80}; each of {', '.join(sorted(_KEYS))} may stand once, as text")
    location = str(stated.get("location", ""))
    size = size_of(location)
    if size is None:
        raise ValueError(f"keeps its data in {location!r:.80}, no file beside the model")
    numbers = {key: stated[key] for key in ("offset", "length") if key in stated}
    if not all(map(_NUMBER.fullmatch, numbers.values())):
        raise ValueError(f"has the place {numbers!r:.80} in {location}")
    start = int(numbers.get("offset", 0))
    needed = _bytes(tensor)
    length = int(numbers["length"]) if "length" in numbers else needed
    if length is None:
        raise ValueError(f"does not say how many bytes of {location} it takes")
    if needed is not None and length != needed:
        raise ValueError(f"takes {needed} bytes, and names {length} of {location}")
    if start + length > size:
        raise ValueError(f"names bytes {start} to {start + length} of {location}, which has {size}")
    return location


def _bytes(tensor: onnx.TensorProto) -> int | None:
    """The bytes of a tensor; None where its type has no standard form."""
    if any(dim < 0 for dim in tensor.dims):
        raise ValueError(f"has the dims {list(tensor.dims)!r:.80}")
    try:
        bits = to_dtype(tensor.data_type).bits
    except UsageError:
        return None
    # A bool takes a whole byte, 4-bit types two to a byte.
    return (math.prod(map(int, tensor.dims)) * int(bits) + 7) // 8
