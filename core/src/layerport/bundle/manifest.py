"""What a bundle's manifest holds, and the one place where it is read: whoever has a `Manifest` has checked values.

Imports no framework.  The types of `entries` are the schema: reading compares the file with them, and names every fault
with its path.  Keys that they do not know are kept and mean nothing here, so that a later layerport may add some.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import islice
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    NotRequired,
    TypeAlias,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from layerport.bundle.entries import DimEntry, Manifest, PortEntry
from layerport.bundle.names import FORMAT
from layerport.errors import BuildError, UsageError
from layerport.sizes.conditions import LIMIT, Condition
from layerport.sizes.dims import DimRange, follows_from
from layerport.sizes.dims import port as make_port
from layerport.sizes.tensors import TensorType
from layerport.system.strict_json import read_json

_MOST_FAULTS = 20
_MOST_WORK = 100_000_000  # about a second or two; long expressions take longer by character
_LARGEST = 2**63 - 1
_MOST_DIMS = 64


def read_manifest(data: bytes | bytearray, where: str) -> Manifest:
    """The manifest in a file's content.  Raises BuildError that lists what is wrong, each fault with its path."""
    try:
        value = read_json(data)
    except ValueError as error:
        raise _unreadable(where, [str(error)]) from error
    if isinstance(value, dict) and type(value.get("format")) is int and value["format"] != FORMAT:
        raise BuildError(
            f"{where} has format {value['format']}, this layerport reads {FORMAT}",
            "build it again, or install the layerport that wrote it",
        )
    faults: list[str] = []
    _check_of(Manifest)(value, None, faults)
    faults += [] if faults else islice(_disagreements(cast(Manifest, value)), _MOST_FAULTS + 1)
    if faults:
        raise _unreadable(where, faults)
    return cast(Manifest, value)


def _unreadable(where: str, faults: list[str]) -> BuildError:
    more = ["and more"] if len(faults) > _MOST_FAULTS else []
    return BuildError(
        f"{where} cannot be read: {faults[0]}", "build the bundle again", faults=[*faults[1:_MOST_FAULTS], *more]
    )


# The types

_Path: TypeAlias = "tuple[_Path, str | int] | None"
_KEY = " (a key)"
_Check: TypeAlias = Callable[[Any, _Path, list[str]], None]


@cache
def _check_of(kind: Any) -> _Check:
    """What compares a value with a type of the schema, and adds to the faults what is wrong with it."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        return _record(kind)
    if origin is Annotated:
        return _plain(lambda value: type(value) is str and inner[1].holds(value), inner[1].words)
    if origin is list:
        return _each(list, enumerate, None, _check_of(inner[0]), "a list")
    if origin is dict:
        return _each(dict, dict.items, _check_of(inner[0]), _check_of(inner[1]), "an object")
    if origin in (Union, UnionType):
        kinds = [one for one in inner if one is not NoneType]
        if len(kinds) > 1:
            return _plain(lambda value: value is None or any(_TESTS[one](value) for one in kinds), "a number or text")
        check = _check_of(kinds[0])
        return lambda value, path, faults: None if value is None else check(value, path, faults)
    return _plain(*_PLAIN[kind])


_TESTS: dict[Any, Callable[[Any], bool]] = {
    str: lambda value: type(value) is str,
    int: lambda value: type(value) is int and 0 <= value <= _LARGEST,
    float: lambda value: type(value) in (int, float),
    Any: lambda value: True,
}
_PLAIN = {
    str: (_TESTS[str], "text"),
    int: (_TESTS[int], "a natural number of at most 63 bits"),
    float: (_TESTS[float], "a number"),
    Any: (_TESTS[Any], "anything"),
}


def _plain(test: Callable[[Any], bool], words: str) -> _Check:
    def check(value: Any, path: _Path, faults: list[str]) -> None:
        if not test(value):
            faults.append(_wrong(value, words, path))

    return check


def _each(kind: type, items: Callable[[Any], Iterable[Any]], keys: _Check | None, values: _Check, words: str) -> _Check:
    def check(value: Any, path: _Path, faults: list[str]) -> None:
        if not isinstance(value, kind):
            faults.append(_wrong(value, words, path))
            return
        for key, one in items(value):
            if keys is not None:
                keys(key, (path, _KEY), faults)
            values(one, (path, key), faults)
            if len(faults) > _MOST_FAULTS:
                return

    return check


def _record(kind: Any) -> _Check:
    fields = []
    for key, hint in get_type_hints(kind, include_extras=True).items():
        optional = get_origin(hint) is NotRequired
        fields.append((key, optional, _check_of(get_args(hint)[0] if optional else hint)))

    def check(value: Any, path: _Path, faults: list[str]) -> None:
        if not isinstance(value, dict):
            faults.append(_wrong(value, "an object", path))
            return
        for key, optional, inner in fields:
            if key in value:
                inner(value[key], (path, key), faults)
            elif not optional:
                faults.append(f"{_written((path, key))} is missing")

    return check


def _wrong(value: Any, words: str, path: _Path) -> str:
    got = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else f"{value!r:.80}"
    return f"{_written(path) or 'it'}: expected {words}, got {got}"


def _written(path: _Path) -> str:
    """A path as people write it: `layers[0].node`."""
    text = ""
    while path is not None:
        path, key = path
        plain = isinstance(key, str) and re.fullmatch(r"[A-Za-z_]\w{0,60}", key)
        text = (key if key is _KEY else f".{key}" if plain else f"[{key!r:.60}]") + text
    return text.removeprefix(".")


# What the parts say of each other


def _disagreements(manifest: Manifest) -> Iterator[str]:
    conditions = manifest.get("conditions", [])
    if len(conditions) > LIMIT:
        yield f"conditions: {len(conditions)}, at most {LIMIT} are read"
        return
    ports = (*manifest["inputs"], *manifest["outputs"])
    sizes = {dim for port in ports for dim in port["dims"] if isinstance(dim, str)}
    texts = [*sizes, *(one["condition"] for one in conditions)]
    if sum(len(text) * (300 + len(text)) for text in texts) > _MOST_WORK:
        yield f"sizes and conditions: {len(texts)} of {sum(map(len, texts))} characters, which is too much to parse"
        return
    known: dict[str, DimRange] = {}
    for entry in manifest["dims"]:
        try:
            made = dim_of(entry)
        except UsageError as error:
            yield f"dims: {error.fault}"
            continue
        if made.name in known:
            yield f"dims: {made.name} stands twice"
        known[made.name] = made
    strange = {size for size in sizes if not follows_from(size, known)}
    for kind, group in (("inputs", manifest["inputs"]), ("outputs", manifest["outputs"])):
        names: set[str] = set()
        for port in group:
            yield from _port_faults(kind, port, strange)
            if port["name"] in names:
                yield f"{kind}: {port['name']!r:.80} stands twice"
            names.add(port["name"])
    for one in conditions:
        try:
            Condition.read(one, known)
        except (ValueError, UsageError) as error:
            yield f"conditions: {error}"
    for target in manifest["targets"]:
        if target["file"] not in manifest["files"]:
            yield f"targets: plan {target['file']} is not among the files"
        yield from _profile_faults(target.get("profile", {}), manifest["inputs"])


def _port_faults(kind: str, port: PortEntry, strange: set[str]) -> Iterator[str]:
    try:
        port_of(port)
    except UsageError as error:
        yield f"{kind}: {error.fault}"
    if len(port["dims"]) > _MOST_DIMS:
        yield f"{kind}: {port['name']!r:.80} has {len(port['dims'])} dims, at most {_MOST_DIMS} are read"
        return
    for dim in port["dims"]:
        if dim in strange:
            yield f"{kind}: {port['name']!r:.80} has the dim {dim!r:.80}, which does not follow from the dims"


def _profile_faults(profile: Mapping[str, list[list[int]]], inputs: list[PortEntry]) -> Iterator[str]:
    ranks = {port["name"]: len(port["dims"]) for port in inputs}
    for name, shapes in profile.items():
        if name not in ranks or [len(shape) for shape in shapes] != [ranks[name]] * 3:
            yield f"targets: the profile of {name!r:.80} is not three shapes of an input"


def realised_counts(nodes: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Per layer, how many nodes were realised in which way.  nodes: the layer of each, and how it was realised."""
    counts: dict[str, dict[str, int]] = {}
    for layer, realised in nodes:
        per_layer = counts.setdefault(layer, {})
        per_layer[realised] = per_layer.get(realised, 0) + 1
    return counts


def dim_of(entry: DimEntry) -> DimRange:
    """The dim of an entry.  Raises UsageError where its range contradicts itself."""
    return DimRange(entry["name"], entry["min"], entry["opt"], entry["max"])


def port_of(entry: PortEntry) -> TensorType:
    """The port of an entry.  Raises UsageError where its name or dtype is none."""
    return make_port(entry["name"], entry["dtype"], entry["dims"])
