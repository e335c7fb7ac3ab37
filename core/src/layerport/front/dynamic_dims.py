"""The dynamic dims of an exported program: the names and limits that the user gave them, the sizes of the example."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.export.graph_signature import InputKind

from layerport.foreign import torch_private
from layerport.foreign.torch_private import pytree
from layerport.front.sources import Source
from layerport.sizes.dims import DimRange

_NAME = re.compile(r"[A-Za-z_]\w{0,127}", re.ASCII)


def as_torch_takes_them(dynamic_shapes: Any) -> Any:
    """The shapes in torch.export's form: a name given as a string is a dynamic dim, as it is for torch.onnx."""
    return pytree.tree_map(lambda dim: torch.export.Dim.DYNAMIC if isinstance(dim, str) else dim, dynamic_shapes)


def read_dims(source: Source, program: torch.export.ExportedProgram) -> dict[str, DimRange]:
    """Torch's symbols (s59), each with its dim: named as the user named it, else `<input>_dim<axis>`.

    Symbols that the user gave one name as a string are one dim where the example has one size for them.
    """
    given = _given_dims(source)
    dims: dict[str, DimRange] = {}
    strings: dict[str, DimRange] = {}
    sizes = list(_sizes_of_inputs(program))
    # A size such as 2*n comes after the plain ones, because n may be one of them.
    for node, place, axis, size in sorted(sizes, key=lambda one: not torch_private.expression(one[3]).is_symbol):
        for symbol in sorted(torch_private.expression(size).free_symbols, key=str):
            if str(symbol) in dims:
                continue
            dim = given.get((place, axis))
            dim = dim if torch_private.expression(size).is_symbol else getattr(dim, "root", None)
            made = _range(_name_of(dim) or f"{node}_dim{axis}", dim, symbol, size, program)
            if isinstance(dim, str) and dim in strings and strings[dim].opt == made.opt:
                made = _both(strings[dim], made)
                dims = {key: made if one.name == made.name else one for key, one in dims.items()}
            else:
                made = _renamed(made, {one.name for one in dims.values()})
            if isinstance(dim, str):
                strings[dim] = made
            dims[str(symbol)] = made
    return dims


def _sizes_of_inputs(program: torch.export.ExportedProgram) -> Iterator[tuple[str, int, int, torch.SymInt]]:
    """(name of the input, its place among all flat inputs, axis, size) of each dynamic size."""
    specs = [one for one in program.graph_signature.input_specs if one.kind is InputKind.USER_INPUT]
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for place, spec in enumerate(specs):
        node = nodes.get(spec.arg.name)
        value = node.meta.get("val") if node is not None else None
        for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if isinstance(size, torch.SymInt):
                yield spec.arg.name, place, axis, size


def _range(name: str, dim: Any, symbol: Any, size: torch.SymInt, program: torch.export.ExportedProgram) -> DimRange:
    limits = next((value for key, value in program.range_constraints.items() if str(key) == str(symbol)), None)
    least, greatest = 1, None
    if limits is not None:
        least = int(limits.lower)
        greatest = int(limits.upper) if limits.upper < 2**31 else None
    if least <= 2 and (getattr(dim, "min", None) or 0) < 2:
        # Torch says 2 where nothing was stated, because it treats sizes 0 and 1 apart while it traces.
        least = 1
    hint = torch_private.example_size(size, symbol)
    return DimRange(name, least, least if hint is None else int(hint), greatest)


def _both(one: DimRange, other: DimRange) -> DimRange:
    limits = [limit for limit in (one.max, other.max) if limit is not None]
    return DimRange(one.name, max(one.min, other.min), one.opt, min(limits, default=None))


def _renamed(dim: DimRange, taken: set[str]) -> DimRange:
    name = dim.name
    while name in taken:
        name += "_"
    return DimRange(name, dim.min, dim.opt, dim.max)


def _given_dims(source: Source) -> dict[tuple[int, int], Any]:
    """(place of the flat input, axis) -> what `dynamic_shapes` says of it."""
    if source.dynamic_shapes is None:
        return {}
    found = {}
    for place, spec in enumerate(_specs(source)):
        for axis, dim in spec.items() if isinstance(spec, Mapping) else enumerate(spec or ()):
            found[(place, axis)] = dim
    return found


def _specs(source: Source) -> Iterator[Any]:
    """The shape spec of each flat input, in the order of the call; None for one without."""
    assert isinstance(source.model, torch.nn.Module)
    bound = inspect.signature(source.model.forward).bind(*source.args, **source.kwargs)
    shapes = source.dynamic_shapes
    by_name = dict(shapes) if isinstance(shapes, Mapping) else dict(zip(bound.arguments, shapes, strict=False))
    for name, value in bound.arguments.items():
        if name not in source.kwargs and bound.signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
            yield from _of_leaves(value, by_name.get(name))
    gathered = [one.name for one in bound.signature.parameters.values() if one.kind is inspect.Parameter.VAR_KEYWORD]
    for name in gathered:
        by_name = {**(by_name.get(name) or {}), **by_name}
    for name, value in source.kwargs.items():
        yield from _of_leaves(value, by_name.get(name))


def _of_leaves(value: Any, spec: Any) -> Iterator[Any]:
    """The spec of each leaf of one argument, which nests as the argument does."""
    if isinstance(value, torch.Tensor) or type(value) not in pytree.SUPPORTED_NODES:
        yield spec
        return
    if isinstance(value, Mapping):
        spec = [spec.get(key) for key in value] if isinstance(spec, Mapping) else None
    specs = list(spec) if isinstance(spec, (list, tuple)) else []
    for place, child in enumerate(pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)[0]):
        yield from _of_leaves(child, specs[place] if place < len(specs) else None)


def _name_of(dim: Any) -> str | None:
    name = dim if isinstance(dim, str) else getattr(dim, "__name__", None)
    return name if name and _NAME.fullmatch(name) else None
