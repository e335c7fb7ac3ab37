"""Where the tensors of an ONNX model keep their data: every tensor anywhere in it, checked before a runtime opens it.

ONNX Runtime and TensorRT read whatever file a tensor names, so what it names must be known before.
"""

from __future__ import annotations

import math
import mmap
import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from layerport.adapters.onnx_dtypes import to_dtype
from layerport.errors import BuildError, UsageError
from layerport.plain_files import NotPlainError, open_plain

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
        with open_plain(model) as file:
            if os.fstat(file.fileno()).st_size == 0:
                return set()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                # Each tensor with data elsewhere has this key, so most models need not be read twice.
                if content.find(b"location") < 0:
                    return set()
                proto = onnx.ModelProto.FromString(content[:])
    except NotPlainError as error:
        raise BuildError(f"{model} is missing or not a plain file: {error}", "copy the whole bundle again") from error
    except Exception as error:  # protobuf has an error of its own for each way in which bytes are no message
        raise BuildError(
            f"{model} is not an ONNX model: {type(error).__name__}: {error}", "build the bundle again"
        ) from error
    return require_known(proto, size_of, str(model))


def require_known(proto: onnx.ModelProto, size_of: Callable[[str], int | None], where: str) -> set[str]:
    """As `require_listed`, for a model that is loaded already; `where` is what an error calls it."""
    locations: set[str] = set()
    faults: list[str] = []
    for tensor in external_tensors(proto):
        try:
            locations.add(_location(tensor, size_of))
        except ValueError as error:
            faults.append(f"tensor {tensor.name!r:.80}: {error}")
    if faults:
        more = [f"and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else []
        raise BuildError(
            f"{where} keeps data of its tensors where it must not",
            "a tensor names one file beside the model, and bytes that are in it; write the model again",
            faults=[*faults[:_MOST_FAULTS], *more],
        )
    return locations


def external_tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor in a message that keeps its data elsewhere.

    In graphs, subgraphs, functions and training graphs; as initializers, attributes and parts of sparse tensors.
    """
    if message.DESCRIPTOR.full_name == _TENSOR:
        if message.data_location == onnx.TensorProto.EXTERNAL or message.external_data:
            yield message
        return
    for name, many in _ways(message.DESCRIPTOR):
        if many:
            for one in getattr(message, name):
                yield from external_tensors(one)
        elif message.HasField(name):
            yield from external_tensors(getattr(message, name))


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
    keys = [entry.key for entry in tensor.external_data]
    if len(set(keys)) != len(keys) or not _KEYS.issuperset(keys):
        raise ValueError(
            f"its data has the keys {', '.join(keys)!r:.80}, each of {', '.join(sorted(_KEYS))} may stand once"
        )
    stated = {str(entry.key): str(entry.value) for entry in tensor.external_data}
    location = stated.get("location", "")
    size = size_of(location)
    if size is None:
        raise ValueError(f"it keeps its data in {location!r:.80}, which is not a file of the model")
    numbers = {key: stated[key] for key in ("offset", "length") if key in stated}
    if not all(map(_NUMBER.fullmatch, numbers.values())):
        raise ValueError(f"its place in {location} is {numbers!r:.80}")
    start = int(numbers.get("offset", 0))
    needed = _bytes(tensor)
    length = int(numbers["length"]) if "length" in numbers else needed
    if length is None:
        raise ValueError(f"nothing says how many bytes of {location} it takes")
    if needed is not None and length != needed:
        raise ValueError(f"it takes {needed} bytes, and names {length} of {location}")
    if start + length > size:
        raise ValueError(f"it names bytes {start} to {start + length} of {location}, which has {size}")
    return location


def _bytes(tensor: onnx.TensorProto) -> int | None:
    """The bytes of a tensor; None where its type has no standard form."""
    if any(dim < 0 for dim in tensor.dims):
        raise ValueError(f"it has the dims {list(tensor.dims)!r:.80}")
    try:
        bits = to_dtype(tensor.data_type).bits
    except UsageError:
        return None
    # A bool takes a whole byte, 4-bit types two to a byte.
    return (math.prod(map(int, tensor.dims)) * int(bits) + 7) // 8
