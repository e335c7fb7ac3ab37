"""The standard form of a layer's parameters: what every conversion leads to and every target starts from.

Anyone may import it, lazily: it needs NumPy.  The file format is safetensors; nothing is ever pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.parameters import safetensors
from layerport.parameters.arguments import Attribute, count
from layerport.parameters.arrays import Array, canonical_bytes, describe, standard_fault
from layerport.system.strict_json import is_whole, read_json

_FORMAT = 1
_METADATA_KEY = "layerport.parameters"


class Parameters(Mapping[str, Array]):
    """A frozen, ordered mapping of names to arrays in the standard form, with attributes.

    Two of them are equal when names, dtypes, shapes, bytes and attributes are, in whatever order.  The
    arrays may share memory with whoever gave them; to write into one is to break the digest, which is
    computed once.
    Raises UsageError that lists every array and attribute that is not in the standard form.
    """

    def __init__(
        self, arrays: Mapping[str, Array] | None = None, attributes: Mapping[str, Attribute] | None = None
    ) -> None:
        arrays, faults = dict(arrays or {}), []
        for name, array in arrays.items():
            if not isinstance(name, str) or not name or name == "__metadata__" or not is_whole(name):
                faults.append(f"{name!r} cannot be the name of a parameter")
            elif (fault := standard_fault(array)) is not None:
                faults.append(f"{name}: {fault}")
        kept: dict[str, Attribute] = {}
        for name, value in (attributes or {}).items():
            try:
                kept[name] = _check_attribute(value)
            except TypeError as error:
                faults.append(f"{name}: {error}")
        if faults:
            raise UsageError(
                f"{count(len(faults), 'parameter')} not in the standard form",
                "bring them there with layerport.conversion.to_standard",
                faults=faults,
            )
        self._arrays = arrays
        self._attributes: Mapping[str, Attribute] = MappingProxyType(kept)

    @property
    def attributes(self) -> Mapping[str, Attribute]:
        """The attributes by name, read-only."""
        return self._attributes

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays in the standard form."""
        return sum(array.nbytes for array in self._arrays.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex over names, dtypes, shapes, bytes and attributes; the order does not count."""
        names = sorted(self._arrays)
        header = _dumps(
            {
                "arrays": [[n, self._arrays[n].dtype.name, list(self._arrays[n].shape)] for n in names],
                "attributes": _encode_attributes(self._attributes),
            }
        ).encode()
        sha = hashlib.sha256(len(header).to_bytes(8, "little") + header)
        for name in names:
            sha.update(canonical_bytes(self._arrays[name]))
        return sha.hexdigest()

    def replace(self, **changes: Array | Attribute) -> Parameters:
        """A copy with entries replaced or added: an array is a parameter, all else an attribute.

        A name is one or the other: to replace an array by an attribute drops the array, and the other way
        round.
        """
        arrays = {n: a for n, a in self._arrays.items() if n not in changes}
        attributes = {n: a for n, a in self._attributes.items() if n not in changes}
        for name, value in changes.items():
            if isinstance(value, np.ndarray):
                arrays[name] = value
            else:
                attributes[name] = value
        return Parameters(
            {n: arrays[n] for n in dict.fromkeys([*self._arrays, *arrays]) if n in arrays},
            {n: attributes[n] for n in dict.fromkeys([*self._attributes, *attributes]) if n in attributes},
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all; the same content gives the same bytes."""
        safetensors.write_file(path, self._arrays, {_METADATA_KEY: self._metadata()})

    @classmethod
    def load(cls, path: str | Path) -> Parameters:
        """Read a safetensors file, ours or another's.  The arrays are views of a private (copy-on-write) map.

        Raises UsageError for a file that is not sound.
        """
        return cls._from_file(*safetensors.read_file(path), str(path))

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes | memoryview]:
        """What `save` writes, piece by piece: the memory of the arrays as it is."""
        return safetensors.write(self._arrays, {_METADATA_KEY: self._metadata()})

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, *, where: str = "the data") -> Parameters:
        """What `load` reads; the arrays are views of `data`, read-only where that is.

        where: what an error calls it.
        """
        return cls._from_file(*safetensors.read(data, where), where)

    def _metadata(self) -> str:
        # One key: safetensors' own writers give several keys in an order that changes from run to run.
        return _dumps(
            {
                "attribute_order": list(self._attributes),
                "attributes": _encode_attributes(self._attributes),
                "dtypes": {name: array.dtype.name for name, array in self._arrays.items()},
                "order": list(self._arrays),
                "version": _FORMAT,
            }
        )

    @classmethod
    def _from_file(cls, arrays: dict[str, Array], metadata: Mapping[str, str], where: str) -> Parameters:
        text = metadata.get(_METADATA_KEY)
        if text is None:
            return cls(arrays)
        try:
            described = read_json(text.encode())
            if described["version"] != _FORMAT:
                raise UsageError(
                    f"{where}: parameters of format {described['version']!r}, this layerport reads {_FORMAT}",
                    "install the version of layerport that wrote it, or write it again",
                )
            order, dtypes = described["order"], described["dtypes"]
            if sorted(order) != sorted(arrays) or sorted(dtypes) != sorted(arrays):
                raise ValueError(f"it describes {sorted(dtypes)}, but holds {sorted(arrays)}")
            restored = {name: _restore(name, arrays[name], DType(dtypes[name])) for name in order}
            encoded = described["attributes"]
            names = described["attribute_order"]
            if sorted(names) != sorted(encoded):
                raise ValueError(f"attributes {sorted(encoded)}, but an order of {sorted(names)}")
            return cls(restored, {name: _decode(encoded[name]) for name in names})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"{where}: the description of its parameters is not sound ({error})", "write the file again"
            ) from error

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Parameters):
            return NotImplemented
        return self is other or self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __copy__(self) -> Parameters:
        return self

    def __deepcopy__(self, memo: object) -> Parameters:
        return self

    def __reduce__(self) -> tuple[Callable[[bytes], Parameters], tuple[bytes]]:
        # Executors pickle their arguments: this way they get safetensors, and no code of ours is in the
        # pickle.
        return Parameters.from_bytes, (self.to_bytes(),)

    def __repr__(self) -> str:
        parts = [f"{name}: {describe(array)}" for name, array in self._arrays.items()]
        parts += [f"{name}={value!r}" for name, value in self._attributes.items()]
        return f"Parameters({', '.join(parts)})"


def _check_attribute(value: Any) -> Attribute:
    if isinstance(value, (list, tuple)):
        kinds = {type(item) for item in value}
        if len(kinds) > 1 or not kinds <= {int, float, bool, str}:
            raise TypeError(f"expected a list of one of int, float, bool, str, got {value!r}")
        return tuple(value)
    if value is not None and type(value) not in (int, float, bool, str):
        raise TypeError(
            f"expected int, float, bool, str, a list of one of them or None, got {type(value).__qualname__}"
        )
    return value  # type: ignore[no-any-return]


def _dumps(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _encode_attributes(attributes: Mapping[str, Attribute]) -> dict[str, Any]:
    return {name: _encode(value) for name, value in attributes.items()}


def _encode(value: Attribute) -> Any:
    """JSON tells 1, 1.0 and true apart by itself; only infinities and NaN need a form of their own."""
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def _decode(value: Any) -> Attribute:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)  # type: ignore[misc]
    return float(value["float"]) if isinstance(value, dict) else value


def _restore(name: str, array: Array, dtype: DType) -> Array:
    """Give an array the dtype that safetensors has no name for (int4, uint4, one element per byte)."""
    if array.dtype == dtype.to_numpy():
        return array
    carrier = {DType.INT4: np.int8, DType.UINT4: np.uint8}.get(dtype)
    if carrier is None or array.dtype != carrier:
        raise ValueError(f"{name} is described as {dtype}, but stored as {array.dtype.name}")
    low, high = (-8, 7) if dtype is DType.INT4 else (0, 15)
    if array.size and (array.min() < low or array.max() > high):
        raise ValueError(f"{name} is described as {dtype}, but holds values beyond {low}..{high}")
    return array.view(dtype.to_numpy())
